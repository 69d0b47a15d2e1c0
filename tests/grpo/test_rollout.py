"""A rollout drawn in parts is the rollout, and holds no more than a part of it at a time."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from tabular_policy import TabularPolicy
from tiny import PROMPTS, TinyPolicy, tiny_policy
from torch import Tensor

from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.types import Prompt, Rollout, Sampling, Stage

GRIDS = ((1, 1), (1, 2), (1, 3))
STAGES = {
    "prefix": Stage(0, 2, branches=6, continuations=2),
    "drafts": Stage(0, 2, branches=6, continuations=0),
    "suffix": Stage(2, 3, branches=6),
    "suffix of three starts": Stage(2, 3, branches=6, starts=3),
    "suffix of six starts": Stage(1, 3, branches=6, starts=6),
    "whole": Stage(0, 3, branches=6),
}


def tabular(stage: Stage, images_at_once: int | None, **options: Any) -> Rollout:
    policy = TabularPolicy(GRIDS, vocab_size=5, labels=3)
    prompts = [Prompt(str(i), label=i % 3) for i in range(3)]
    keys = prompt_keys(0, 0, prompts, torch.device("cpu"))
    return sample_tree(policy, prompts, stage, Sampling(cfg=1.5), keys, images_at_once, **options)


@cache
def drawn_at_once(name: str) -> Rollout:
    return tabular(STAGES[name], None)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("images_at_once", [1, 3, 5, 12, 25])
def test_the_parts_make_the_whole(name: str, images_at_once: int) -> None:
    whole, parts = drawn_at_once(name), tabular(STAGES[name], images_at_once)
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.keys, parts.keys)
    for one, other in ((whole.tokens, parts.tokens), (whole.tail_tokens, parts.tail_tokens), (whole.log_probs, parts.log_probs)):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("images_at_once", [1, 4, 7, 30])
def test_no_part_is_larger_than_asked_for(name: str, images_at_once: int) -> None:
    """But for the continuations of one branch, which belong together; and each image comes with its own prompt."""
    seen: list[tuple[Tensor, list[Prompt]]] = []
    rollout = tabular(STAGES[name], images_at_once, on_images=lambda images, prompts: seen.append((images, prompts)))
    assert max(len(images) for images, _ in seen) <= max(images_at_once, STAGES[name].continuations)
    assert torch.equal(torch.cat([images for images, _ in seen]), rollout.images)
    assert [prompt for _, prompts in seen for prompt in prompts] == rollout.image_prompts


class Remembering(TinyPolicy):
    """Knows which of its caches still exist."""

    def scale_features(self, *args: Any) -> Any:
        features, cache = super().scale_features(*args)
        self.kept = [*getattr(self, "kept", []), weakref.ref(cache.layers[0][0])]
        return features, cache

    def alive(self) -> int:
        gc.collect()
        return sum(reference() is not None for reference in self.kept)


def test_keys_and_values_of_a_part_are_gone_when_the_next_begins() -> None:
    policy = tiny_policy(kind=Remembering)
    counts: list[int] = []
    keys = prompt_keys(0, 0, PROMPTS, policy.device)
    stage = Stage(0, 2, branches=2, continuations=2)
    sample_tree(policy, PROMPTS, stage, Sampling(top_k=8), keys, 4, lambda *_: counts.append(policy.alive()))
    assert counts == [0] * len(PROMPTS)


def test_a_fork_into_one_shares_everything_but_its_noise() -> None:
    policy = tiny_policy()
    state = policy.sample(policy.begin(policy.encode_prompts(PROMPTS[:2]), Sampling(), torch.tensor([1, 2])), 2)
    forked = state.fork(1)
    assert forked.cache is state.cache
    assert forked.latent is state.latent
    assert not torch.equal(forked.keys, state.keys)


def test_children_are_the_same_in_parts() -> None:
    policy = tiny_policy()
    state = policy.sample(policy.begin(policy.encode_prompts(PROMPTS[:1]), Sampling(cfg=2.0), torch.tensor([1])), 2)
    whole = policy.sample(state.fork(5), 4)
    parts = [policy.sample(state.children([0] * len(numbers), numbers), 4) for numbers in ([0, 1], [4, 2, 3])]
    for t in range(4):
        assert torch.equal(whole.tokens[t][[0, 1, 4, 2, 3]], torch.cat([part.tokens[t] for part in parts]))
