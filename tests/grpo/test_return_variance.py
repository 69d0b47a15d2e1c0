"""What is measured of a stage: the components against an enumeration of all that can be drawn, and costs against known ones."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from tabular import paths
from tabular_policy import TabularPolicy
from tiny import PROMPTS, tiny_module, weights
from torch import Tensor

from varrl_lightning.algorithms.stages import prefix_stage
from varrl_lightning.algorithms.variance_components import BranchCosts
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.return_variance import ReturnMeter, branch_costs
from varrl_lightning.registry import MASK_SOURCES, build
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Sampling

GRIDS = ((1, 1), (1, 2), (1, 1))
PAUSE = 0.03


class Table:
    """A random number for each image that the policy can draw, higher where its first tokens are."""

    def __init__(self, policy: TabularPolicy) -> None:
        self.policy = policy
        self.values = torch.randn(policy.tree.states(3), generator=torch.Generator().manual_seed(5))
        self.values += torch.linspace(0, 4, len(self.values))

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.values[self.policy.leaves(images)]


class Slow:
    """Takes `PAUSE` for each image."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> list[float | None]:
        time.sleep(PAUSE * len(images))
        return [None, *(float(image[0].mean()) for image in images[1:])]


def grpo_of(reward: object) -> GRPO:
    return GRPO((), WeightedRewards.from_spec(reward), build(MASK_SOURCES, "full"), Sampling())


@pytest.mark.parametrize("m", [1, 2])
def test_the_components_are_those_of_the_enumerated_policy(m: int) -> None:
    policy = TabularPolicy(GRIDS, seed=4)
    reward = Table(policy)
    steps = [policy.tree.factorised(x.double().detach(), t) for t, x in enumerate(policy.token_logits())]
    branches, tails = paths(steps, 0, m)[0].exp(), paths(steps, m, 3).exp()
    rewards = reward.values.double().view_as(tails)
    mean = (tails * rewards).sum(dim=1)
    within = float((branches * ((tails * rewards.square()).sum(dim=1) - mean.square())).sum())
    between = float((branches * mean.square()).sum() - (branches * mean).sum().square())

    meter = ReturnMeter(policy, grpo_of(reward), prefix_stage(3, m, A=8, K=3), seed=0)
    for batch in range(2):
        meter.add([Prompt(f"{batch} {i}") for i in range(500)])
    assert meter.rewards.shape == (1000, 8, 3)
    found = meter.sums.components()
    assert found.within == pytest.approx(within, rel=0.04)
    assert found.between == pytest.approx(between, rel=0.04)
    assert abs(between - within) > 0.1 * between, "the two could be exchanged unseen"


def test_a_tail_costs_its_part_of_the_rollout_and_the_wait_for_its_score() -> None:
    seconds = {"rollout": 10.0, "tail": 6.0, "reward": 2.0, "update": 5.0, "scoring": 99.0}
    costs = branch_costs(seconds, prefix_stage(4, 2, A=2, K=2), branches=4)
    assert costs == BranchCosts(branch=(10 - 6 + 5) / 4, tail=(6 + 2) / 8)
    assert costs.of(2) * 4 == 17
    assert branch_costs(seconds | {"reward": 3.0, "drafts": 1.0}, prefix_stage(4, 2, A=2, K=2), branches=4) == costs


@pytest.mark.filterwarnings("ignore:the reward 'Slow' gave no score")
def test_costs_are_measured_and_nothing_is_trained() -> None:
    module = tiny_module(reward=Slow())
    before = weights(module)
    held = next(module.policy.parameters())
    held.grad = torch.ones_like(held)
    stage = prefix_stage(4, 2, A=2, K=2)
    meters = [ReturnMeter(module.policy, module.grpo, stage, seed, micro_batch_size=1) for seed in (0, 0)]
    for meter, update in zip(meters, (True, False), strict=True):
        for prompt in PROMPTS[:3]:
            meter.add([prompt], update=update)
    with_update, without = (meter.costs for meter in meters)
    assert PAUSE < with_update.tail < 3 * PAUSE
    assert 0 < without.branch < with_update.branch
    assert torch.equal(weights(module), before)
    assert torch.equal(held.grad, torch.ones_like(held))
    # One seed, one noise; an image without a score is none.
    assert torch.equal(meters[0].rewards.nan_to_num(9), meters[1].rewards.nan_to_num(9))
    assert meters[0].rewards.isnan().flatten(1).sum(dim=1).tolist() == [1, 1, 1]
