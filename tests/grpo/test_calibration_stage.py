"""A calibration scores the drafts of K = 0 and the whole images of K = 2, of the same branches, and trains on the whole ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import kendalltau
from torch import Tensor

from tests.tiny import PROMPTS, LeftBright, tiny_module
from varrl_lightning.algorithms.stages import calibration, prefix_stage
from varrl_lightning.gradient_agreement.meter import AgreementMeter
from varrl_lightning.gradient_agreement.variants import Variant, own_stages
from varrl_lightning.grpo.credit import BranchScores
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Rollout, Stage

PAUSE = 0.003
DRAFTS, WHOLES = prefix_stage(4, 2, A=4, K=0), prefix_stage(4, 2, A=4, K=2)
BOTH = calibration(DRAFTS)


class Relative:
    """How much brighter on the left an image is than the mean of those it is called with, half a group refused."""

    whole_groups = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert len(images) in (4, 8)
        assert len(set(prompts)) == 1
        values = LeftBright()(images, prompts)
        return values - values.mean()


class Slow(LeftBright):
    """Takes `PAUSE` for each image."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        time.sleep(PAUSE * len(images))
        return super().__call__(images, prompts)


def sampled(module: VARGRPO, stage: Stage, **options: Any) -> tuple[Rollout, BranchScores]:
    keys = prompt_keys(0, 0, PROMPTS[:3], module.policy.device)
    return module.grpo.sample(module.policy, PROMPTS[:3], stage, keys, **options)


@pytest.mark.parametrize("reward", [LeftBright, Relative])
@pytest.mark.parametrize("images_at_once", [None, 3, 6])
def test_it_has_the_drafts_and_the_whole_images_of_both_stages(reward: type, images_at_once: int | None) -> None:
    module = tiny_module(reward=reward(), mask_source="disagreement")
    rollout, scores = sampled(module, BOTH, images_at_once=images_at_once)
    drafts, draft_scores = sampled(tiny_module(reward=reward()), DRAFTS)
    wholes, whole_scores = sampled(module, WHOLES)
    name = reward.__name__
    assert rollout.drafts is not None
    assert scores.drafts is not None
    torch.testing.assert_close(rollout.drafts, drafts.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.drafts.values[name], draft_scores.values[name])
    torch.testing.assert_close(rollout.images, wholes.images, atol=1e-4, rtol=0)
    torch.testing.assert_close(scores.values[name], whole_scores.values[name])
    assert (drafts.images - wholes.images[::2]).abs().max() > 0.01, "the tail changes the image"
    credit, of_wholes = module.grpo.assign(rollout, scores), module.grpo.assign(wholes, whole_scores)
    for part in ("returns", "policy_weights", "mask"):
        torch.testing.assert_close(getattr(credit, part), getattr(of_wholes, part))


@pytest.mark.parametrize("combine", ["weighted_sum", "standardised_sum"])
def test_the_ranks_are_those_of_the_rewards_as_they_are_combined(combine: str) -> None:
    """With a weight below 0, so that the order of the images is turned round on both sides."""
    rewards = {"light": {"reward": LeftBright(), "weight": -2.0}, "again": {"reward": Relative(), "weight": 0.5}}
    module = tiny_module(reward=rewards, combine=combine)
    rollout, scores = sampled(module, BOTH)
    returns, taus = module.grpo.draft_taus(scores, BOTH)
    light = -LeftBright()(rollout.images, []).unflatten(0, (3, 4, 2))
    draft = -LeftBright()(rollout.drafts, []).unflatten(0, (3, 4))  # type: ignore[arg-type]
    assert torch.equal(returns.argsort(dim=1), draft.argsort(dim=1))
    for found, group, images in zip(taus.tolist(), draft, light, strict=True):
        each = [kendalltau(group.numpy(), images[:, k].numpy()).statistic for k in (0, 1)]
        assert found == pytest.approx([sum(each) / 2, kendalltau(*images.T.numpy()).statistic])


def test_parts_of_several_processes_are_joined() -> None:
    module = tiny_module()
    _, whole = sampled(module, BOTH)
    parts = [sampled(module, BOTH, branches=branches)[1] for branches in (range(6), (*range(6, 12), 11))]
    joined = BranchScores.join(parts, 12).to(torch.device("cpu"))
    assert joined.drafts is not None
    assert whole.drafts is not None
    torch.testing.assert_close(joined.drafts.values["LeftBright"], whole.drafts.values["LeftBright"])


def test_the_seconds_of_drafts_are_a_part_of_the_rewards() -> None:
    module, stopwatch = tiny_module(reward=Slow()), Stopwatch()
    sampled(module, BOTH, stopwatch=stopwatch)
    seconds = stopwatch.seconds
    assert 12 * PAUSE < seconds["drafts"] < seconds["reward"]
    assert seconds["scoring"] > 36 * PAUSE


def test_one_whole_image_is_too_few_and_other_stages_have_no_drafts() -> None:
    with pytest.raises(ValueError, match="at least 2 whole images of a branch, got continuations = 1"):
        Stage(0, 2, 4, continuations=1, with_drafts=True)
    module = tiny_module()
    rollout, scores = sampled(module, WHOLES)
    assert rollout.drafts is None
    with pytest.raises(ValueError, match="'prefix' were not scored"):
        module.grpo.draft_taus(scores, WHOLES)


def test_the_gradient_of_a_calibration_is_that_of_its_whole_images() -> None:
    module = tiny_module(num_continuations=0, calibrate_every=2, alternation=["prefix"])
    variants = [*own_stages(module.grpo), Variant("whole", replace(module.grpo, cycle=(WHOLES,)))]
    meter = AgreementMeter(module.policy, variants)
    for prompts in (PROMPTS[:2], PROMPTS[2:4]):
        meter.add(prompts)
    drafts, both, whole = meter.measured()
    assert (drafts.variant, both.variant) == ("prefix", "calibration")
    assert both.cosine == pytest.approx(whole.cosine, abs=1e-6)
    assert drafts.cosine != pytest.approx(whole.cosine, abs=1e-3)
