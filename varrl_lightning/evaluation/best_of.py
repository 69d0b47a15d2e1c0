"""Samples several candidates of each prompt and keeps the one that a reward likes best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.grpo.rollout import sample_tree
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.groups import whole_groups
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt, Rollout, Sampling, Stage


@dataclass(frozen=True)
class BestOf:
    """How the best of several candidates is chosen.

    Args:
        candidates: N, of each prompt, at least 2.
        rewards: the candidate with the highest weighted sum is kept; one without a score only where none has one.
        prune_at: scales after which all candidates but one are dropped, by the reward of their drafts: the other scales are then
            sampled once a prompt, and the reward scores what these scales alone decode to. None scores whole images.

    Raises:
        ValueError: on a number out of its range.
    """

    candidates: int
    rewards: WeightedRewards
    prune_at: int | None = None

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"the best of {self.candidates} is no choice; give at least 2 candidates")
        if self.prune_at is not None and self.prune_at < 1:
            raise ValueError(f"prune_at must be at least 1 scale, got {self.prune_at}")

    def check_policy(self, policy: VARPolicy) -> None:
        """Check that there are scales left to sample after the choice.

        Raises:
            ValueError: when there are none.
        """
        T = len(policy.schedule())
        if self.prune_at is not None and self.prune_at >= T:
            raise ValueError(
                f"prune_at must be below {T}, the number of scales, got {self.prune_at}; leave it out to score whole images"
            )


class Chosen(NamedTuple):
    """What was chosen.

    Args:
        images: the best candidate of each prompt.
        values: what the reward gave each candidate, or its draft; NaN where it gave no score.
        best: the number of the best candidate, from 0.
    """

    images: Float[Tensor, "P 3 H W"]
    values: Float[Tensor, "P N"]
    best: Int[Tensor, " P"]


@torch.no_grad()
def best_of(
    policy: VARPolicy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    keys: Int[Tensor, " P"],
    how: BestOf,
    images_at_once: int | None = None,
) -> Chosen:
    """Sample N candidates of each prompt, score them, and keep the best.

    The candidates of a prompt depend on its key, N and `prune_at` alone. With `prune_at`, the best draft is completed as candidate
    `best` would have been: its first scales are sampled again from the same noise, which costs less than keeping the states of all.

    Args:
        prompts: P prompts of one image size.
        keys: noise keys of the prompts, see `prompt_keys`.
        images_at_once: most images sampled and decoded at one time; None for all.
    """
    T = len(policy.encode_prompts(prompts[:1]).schedule)
    stage = Stage(0, how.prune_at or T, branches=how.candidates)
    scored = stage if how.prune_at is None else replace(stage, continuations=0)
    candidates = sample_tree(policy, prompts, scored, sampling, keys, images_at_once)
    values = _values(how.rewards, candidates).view(len(prompts), how.candidates)
    best = values.nan_to_num(nan=-math.inf).argmax(dim=1)
    rows = (torch.arange(len(prompts), device=best.device) * how.candidates + best).tolist()
    if how.prune_at is None:
        return Chosen(candidates.images[rows], values, best)
    del candidates
    return Chosen(sample_tree(policy, prompts, stage, sampling, keys, images_at_once, branches=rows).images, values, best)


def _values(rewards: WeightedRewards, rollout: Rollout) -> Float[Tensor, " N"]:
    groups = whole_groups(rollout.branches, rollout.stage).values()
    total = rewards.total(rewards.score_all(rollout.images, rollout.image_prompts, groups))
    return total.values.masked_fill(~total.usable, math.nan).to(rollout.images.device)
