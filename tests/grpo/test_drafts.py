"""K = 0: an image is what a branch's own scales decode to, and nothing after them is sampled, in every family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import LeftBright, M, TinyPolicy, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from torch import Tensor

from tests import families
from varrl_lightning.grpo.rollout import sample_tree
from varrl_lightning.mask_sources.base import BaseMaskSource
from varrl_lightning.mask_sources.saliency import last_latent
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.types import Box, Prompt, Rollout, Sampling, Scores, Stage

GUIDED = Sampling(cfg=2.0)
A = 3

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def asked(policy: VARPolicy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scales that a policy is asked for from here on."""
    scales: list[int] = []
    features = policy.scale_features

    def counted(inputs: Any, cache: Any, latents: list[Tensor], first: int, schedule: Any) -> Any:
        scales.extend(range(first, first + len(latents)))
        return features(inputs, cache, latents, first, schedule)

    monkeypatch.setattr(policy, "scale_features", counted)
    return scales


@pytest.mark.parametrize("family", families.FAMILIES)
def test_an_image_is_what_the_first_scales_decode_to(family: str, weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, cond = families.FAMILIES[family](weights_folder)
    prompts = [Prompt(str(i)) for i in range(len(cond))]
    monkeypatch.setattr(policy, "encode_prompts", lambda some: cond.at(torch.tensor([int(p.text) for p in some])))
    keys = torch.arange(len(cond))
    scales = asked(policy, monkeypatch)
    for m in (1, 2):
        continued = sample_tree(policy, prompts, Stage(0, m, A, 2), GUIDED, keys)
        scales.clear()
        drafts = sample_tree(policy, prompts, Stage(0, m, A, 0), GUIDED, keys)
        assert scales == list(range(m))
        assert drafts.tail_tokens == []
        assert families.same(drafts.tokens, continued.tokens)
        assert families.same(drafts.log_probs, continued.log_probs)
        state = policy.sample(policy.begin(cond, GUIDED, keys).fork(1).fork(A), m)
        assert torch.equal(drafts.images, policy.decode_latent(state.latent).float().clamp(0, 1))
        assert torch.equal(drafts.keys, state.keys)
        assert drafts.images.shape == (A * len(cond), 3, *cond.schedule.image_size)
        assert drafts.image_prompts == [prompt for prompt in prompts for _ in range(A)]
        assert (drafts.images - continued.images[::2]).abs().max() > 1e-3, "the tail adds something"
        decoded = policy.decode_latent(last_latent(drafts, policy, slice(1, 3))).clamp(0, 1)
        torch.testing.assert_close(decoded, drafts.images[1:3], rtol=0, atol=1e-3)  # of weights that amplify rounding


def test_keys_and_values_that_no_scale_reads_are_not_kept() -> None:
    policy = tiny_policy()
    state = policy.begin(policy.encode_prompts([Prompt('"STONE"')]), GUIDED, torch.arange(1))
    first, again, final = policy.sample(state, 1), policy.sample(state, 2), policy.sample(state, 2, final=True)
    assert families.same(final.tokens, again.tokens)
    positions = [s.cache.layers[0][0].shape[2] for s in (first, again, final)]
    assert [n - positions[0] for n in positions] == [0, policy.schedule().lengths[1], 0]


# --- training -----------------------------------------------------------------------------------------------------------------


class BrightBox(LeftBright):
    """With the half of each image that is brighter as its region."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:  # type: ignore[override]
        left, right = (half.mean((1, 2, 3)) for half in images.chunk(2, dim=-1))
        width, height = images.shape[-1] / 2, images.shape[-2]
        boxes = [
            [Box(0, 0, width, height) if brighter else Box(width, 0, 2 * width, height)] for brighter in (left > right).tolist()
        ]
        return Scores(super().__call__(images, prompts), regions=boxes)


class Compares(LeftBright):
    """Ranks the images of a whole group."""

    whole_groups = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        assert len(images) == len(prompts) == 4
        assert len(set(prompts)) == 1
        return super().__call__(images, prompts).argsort().argsort().float()


def without_a_tail() -> TinyPolicy:
    """A policy whose scales after m add nothing to an image, so that a draft is the whole image."""
    policy = tiny_policy()
    for codes in policy.tokenizer.codes[M:]:
        codes.data.zero_()
    return policy


def trained(policy: TinyPolicy, K: int, **options: Any) -> tuple[Tensor, dict[str, float]]:
    module = tiny_module(policy, alternation=["prefix"], num_continuations=K, **options)
    before = weights(module)
    trainer = tiny_trainer(max_steps=2)
    trainer.fit(module, tiny_loader())
    assert not torch.equal(weights(module), before)
    return weights(module), {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reward": BrightBox(), "mask_source": "boxes", "images_at_once": 3},
        {"mask_source": "disagreement", "updates_per_rollout": 2, "micro_batch_size": 3},
        {"mask_source": "saliency", "first_scale": "shared"},
        {"reward": Compares(), "images_at_once": 3},
        {"reward": {"a": {"reward": LeftBright()}, "b": {"reward": BrightBox()}}, "combine": "standardised_sum"},
    ],
    ids=["full", "boxes", "disagreement", "saliency", "whole groups", "two rewards"],
)
def test_where_the_tail_adds_nothing_drafts_train_as_whole_images(options: dict[str, Any]) -> None:
    """The images, and so scores, masks, advantages and weights, are the same then; but nothing after m is sampled for drafts."""
    drafts, logged = trained(without_a_tail(), 0, **options)
    whole, of_whole = trained(without_a_tail(), 1, **options)
    torch.testing.assert_close(drafts, whole, atol=2e-6, rtol=0)
    times = ("seconds", "second", "step_time", "gap")
    compared = {name for name in logged if not any(word in name for word in times)}
    assert {"reward", "mask_coverage", "num_tokens", "grad_norm"} <= compared
    assert logged.keys() == of_whole.keys()
    for name in compared:
        assert logged[name] == pytest.approx(of_whole[name], abs=1e-4), name
    assert logged["images_per_second"] > 0


def test_a_suffix_beside_it_draws_whole_images(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module(num_continuations=0, alternation=["prefix", "suffix"])
    scales = asked(module.policy, monkeypatch)
    keys, prompts = torch.arange(1), [Prompt('"STONE"')]
    for stage, wanted in zip(module.cycle, ([0, 1], [0, 1, 2, 3]), strict=True):
        scales.clear()
        rollout, scores = module.grpo.sample(module.policy, prompts, stage, keys)
        assert scales == wanted
        assert len(rollout.images) == len(scores) == 4


def test_at_the_last_scale_it_is_plain_grpo_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="num_continuations = 0 and the alternation are ignored"):
        module = tiny_module(m=4, num_continuations=0)
    assert module.cycle == (Stage(0, 4, 4, name="all"),)


# --- what cannot do with drafts -----------------------------------------------------------------------------------------------


class TailReader(BaseMaskSource):
    """Looks at the tokens of the tail."""

    whole_images = True

    def __call__(self, rollout: Rollout, scores: Scores, policy: VARPolicy) -> Tensor:
        return rollout.images[:, 0] * rollout.tail_tokens[0].max()


def test_a_mask_source_that_needs_whole_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask source 'TailReader' needs whole images .* 'prefix' has 0 continuations"):
        tiny_module(mask_source=TailReader(), num_continuations=0)
    tiny_module(mask_source=TailReader(), num_continuations=1)
    with pytest.warns(UserWarning, match="plain GRPO"):
        tiny_module(mask_source=TailReader(), num_continuations=0, m=4)


class OneSize(BaseReward):
    """Limits the size of images."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise AssertionError("it was called")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.size == (16, 16):
                raise ValueError(f"prompt {prompt.id!r}: at most 8 x 8 pixels can be scored, got {prompt.size}")


def test_a_reward_that_limits_sizes_says_so_before_training() -> None:
    """Drafts have the size of whole images, so that a limit holds for both."""
    module = tiny_module(reward=OneSize(), num_continuations=0, alternation=["prefix"])
    with pytest.raises(ValueError, match="prompt 'a': at most 8 x 8 pixels can be scored"):
        module.check_prompts([Prompt('"STONE"', id="a", size=(16, 16))])
