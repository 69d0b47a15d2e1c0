"""The variance of the rewards in the log: a step's own components, and the K of all steps, of which older ones fade."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import PROMPTS, tiny_module
from torch import Tensor

from varrl_lightning.algorithms.stages import prefix_stage
from varrl_lightning.algorithms.variance_components import VarianceSums
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.training.variance_log import KEPT, VarianceLog

SECONDS = {"rollout": 3.0, "tail": 2.0, "reward": 1.0, "update": 2.0}
"""A branch costs 3, each of two continuations 1.5."""
STAGE = prefix_stage(4, 2, A=2, K=2)


def credit_of(rewards: Tensor) -> Credit:
    """A credit of which only the rewards matter."""
    module = tiny_module(group_size=2)
    rollout, scores = module.grpo.sample(module.policy, PROMPTS[:1], STAGE, prompt_keys(0, 0, PROMPTS[:1], torch.device("cpu")))
    return replace(module.grpo.assign(rollout, scores), rewards=rewards, valid=torch.isfinite(rewards))


def test_components_are_of_the_step_and_k_of_all_steps() -> None:
    log = VarianceLog()
    first, second = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]]), torch.tensor([[[0.0, 1.0], [8.0, 7.0]]])
    # By hand: within 2, between (16 - 2) / 2 = 7; then within .5, between (49 - .5) / 2 = 24.25.
    found = log.metrics(STAGE, credit_of(first), SECONDS)
    assert found == pytest.approx(
        {
            "variance/within": 2.0,
            "variance/between": 7.0,
            "variance/signal": 7 / 8,
            "variance/implied_K": math.sqrt(2 / 7 * 3 / 1.5),
        }
    )
    found = log.metrics(STAGE, credit_of(second), SECONDS | {"update": 5.0})
    assert found["variance/within"] == 0.5
    assert found["variance/between"] == 24.25
    within, between = (VarianceSums.of(second) + VarianceSums.of(first) * KEPT).components()
    cost_ratio = (6 + KEPT * 3) / (1.5 + KEPT * 1.5)
    assert found["variance/implied_K"] == pytest.approx(math.sqrt(within / between * cost_ratio))
    # Another stage has its own sums.
    assert log.metrics(replace(STAGE, stop=3), credit_of(first), SECONDS)["variance/implied_K"] == pytest.approx(
        math.sqrt(2 / 7 * 3 / 1.5)
    )


def test_what_is_unknown_is_absent() -> None:
    common = VarianceLog(NoiseOptions(continuations="common"))
    assert common.metrics(STAGE, credit_of(torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])), SECONDS) == {}
    assert VarianceLog().metrics(replace(STAGE, continuations=1), credit_of(torch.ones(1, 2, 1)), SECONDS) == {}
    cycle = (replace(STAGE, continuations=0), replace(STAGE, with_drafts=True))
    calibrated = VarianceLog(cycle=cycle)
    rewards = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    assert calibrated.metrics(cycle[1], credit_of(rewards), SECONDS) == {}
    assert "variance/implied_K" in calibrated.metrics(STAGE, credit_of(rewards), SECONDS)
    one_each = torch.tensor([[[1.0, math.nan], [2.0, math.nan]]])
    assert VarianceLog().metrics(STAGE, credit_of(one_each), SECONDS) == {}
    noise_alone = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
    assert VarianceLog().metrics(STAGE, credit_of(noise_alone), SECONDS) == {
        "variance/within": 2.0,
        "variance/between": -1.0,
        "variance/signal": 0.0,
    }
