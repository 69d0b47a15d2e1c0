"""The algorithm as a value: what it checks of itself, and that its parts are used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, LeftBright, tiny_loader, tiny_module, tiny_policy, tiny_trainer
from torch import Tensor

from varrl_lightning import GRPO, CreditOptions, KLOptions, Objective, Sampling, Score, Scores
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.registry import MASK_SOURCES, build
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Rollout, Stage

REWARDS = WeightedRewards({"left": WeightedReward(LeftBright())})
STAGE = Stage(0, 2, 4, 2, name="prefix")


def left_half(rollout: Rollout, scores: Scores, policy: VARPolicy) -> Tensor:
    mask = torch.zeros(len(rollout.images), *rollout.images.shape[-2:])
    mask[..., : mask.shape[-1] // 2] = 1.0
    return mask


def test_the_score_follows_the_sampling() -> None:
    grpo = GRPO((STAGE,), REWARDS, Full(), Sampling(top_k=8), objective=Objective(Score("sampler")))
    assert grpo.objective.score == Score("sampler", Sampling(top_k=8))
    with pytest.raises(ValueError, match=r"objective\.score\.sampling must be that of the rollouts, .*top_k=8.*, got .*top_k=4"):
        GRPO((STAGE,), REWARDS, Full(), Sampling(top_k=8), objective=Objective(Score("sampler", Sampling(top_k=4))))


def test_a_plain_function_is_a_mask_source_and_the_kl_may_be_masked() -> None:
    policy = tiny_policy()
    grpo = GRPO((STAGE,), REWARDS, build(MASK_SOURCES, left_half), policy.default_sampling)
    keys = prompt_keys(0, 0, PROMPTS[:2], policy.device)
    rollout, scores = grpo.sample(policy, PROMPTS[:2], STAGE, keys)
    credit = grpo.assign(rollout, scores)
    assert 0 < credit.mask.mean() < 1
    assert torch.equal(credit.kl_weights > 0, torch.ones_like(credit.mask, dtype=torch.bool))
    masked = replace(grpo, objective=replace(grpo.objective, kl=KLOptions(masked=True))).assign(rollout, scores)
    assert torch.equal(masked.kl_weights > 0, credit.mask > 0)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_without_a_trainer_it_has_the_gradient_of_training() -> None:
    """Of the first step of a module with the same options and keys."""
    module = tiny_module(kl_coef=0.0)
    policy, stage = module.policy, module.grpo.stage(0)
    keys = prompt_keys(module.seed, 0, PROMPTS[:2], policy.device)
    rollout, scores = module.grpo.sample(policy, PROMPTS[:2], stage, keys)
    rows = module.grpo.assign(rollout, scores).rows(rollout.branches, real=len(rollout.branches))
    for micro_batch in module.grpo.losses(policy, None, rollout, rows, size=3, old={}):
        micro_batch.loss.backward()
    by_hand = [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    kept: list[Tensor] = []
    trained = tiny_module(kl_coef=0.0, max_grad_norm=None)
    original = trained.updater.before_optimizer_step
    trained.updater.before_optimizer_step = lambda *a: (  # type: ignore[method-assign]
        kept.extend(p.grad.clone() for p in trained.policy.parameters() if p.grad is not None),
        original(*a),
    )[1]
    tiny_trainer(max_steps=1).fit(trained, tiny_loader(PROMPTS[:2]))
    by_hand = [g for g in by_hand if g.abs().max() > 0]
    in_training = [g for g in kept if g.abs().max() > 0]
    assert len(by_hand) == len(in_training) > 10
    for one, other in zip(by_hand, in_training, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("options", "message"), [({"eta": 0.0}, "eta must be > 0"), ({"alpha": -1.0}, "alpha must be >= 0")])
def test_credit_options_are_checked_where_they_are_defined(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CreditOptions(**options)
