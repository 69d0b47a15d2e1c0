"""A rollout that several processes sample together, and the scores of its groups, also of those that are split over processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.grpo.credit import BranchScores
from varrl_lightning.grpo.grpo import GRPO, Seen
from varrl_lightning.grpo.rollout import Share
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.groups import PartialScores
from varrl_lightning.strategies import Parallel
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

Explain = Callable[[], AbstractContextManager[None]]


def sample_on_all(
    grpo: GRPO,
    policy: VARPolicy,
    prompts: Sequence[Prompt],
    stage: Stage,
    keys: Int[Tensor, " P"],
    share: Share,
    parallel: Parallel,
    images_at_once: int | None,
    stopwatch: Stopwatch,
    explained: Explain,
    seen: Seen | None = None,
) -> tuple[Rollout, BranchScores]:
    """This process's part of a rollout, and the scores of all P * A branches.

    Args:
        share: the branches that this process samples.
        stopwatch, images_at_once: as in `GRPO.sample`.
        explained: the context in which a process works by itself, which explains its errors.
        seen: is shown this process's images with their scores.
    """

    def sampled() -> tuple[Rollout, PartialScores]:
        with explained():
            return grpo.sample_and_score_part(
                policy, prompts, stage, keys, images_at_once=images_at_once, branches=share.items, stopwatch=stopwatch
            )

    def by_branch(rollout: Rollout, scores: PartialScores) -> tuple[Rollout, BranchScores]:
        with explained():
            return rollout, grpo.scores_by_branch(policy, rollout, scores, seen)

    split = split_groups(len(prompts), stage, parallel.world_size) if grpo.rewards.whole_groups else []
    with parallel.sampling([policy]):
        if not split:
            rollout, parts = parallel.run_on_all(lambda: by_branch(*sampled()))
        else:
            (rollout, own), _ = parallel.run_on_all(lambda: (sampled(), None))
            whole = _with_split_groups(grpo, rollout, own, split, parallel, stopwatch, explained)
            if (drafts := rollout.of_drafts) and own.drafts:
                before = stopwatch.seconds["reward"]
                of_drafts = _with_split_groups(grpo, drafts, own.drafts, split, parallel, stopwatch, explained)
                stopwatch.seconds["drafts"] += stopwatch.seconds["reward"] - before
                whole = replace(whole, drafts=of_drafts)
            rollout, parts = parallel.run_on_all(lambda: by_branch(rollout, whole))
    return rollout, BranchScores.join(parts, len(prompts) * stage.branches).to(policy.device)


@dataclass(frozen=True)
class SplitGroup:
    """A group whose branches are sampled by several processes; the first of them scores it.

    Args:
        prompt: number of its prompt.
        shares: the branches of each process that samples any, counted from the first of the group.
    """

    prompt: int
    shares: Mapping[int, range]

    @property
    def scorer(self) -> int:
        """The process that is given all its images."""
        return min(self.shares)


def split_groups(prompts: int, stage: Stage, world_size: int) -> list[SplitGroup]:
    """The groups of `prompts` prompts whose branches are sampled by several processes, in order."""
    A = stage.branches
    groups: dict[int, dict[int, range]] = {prompt: {} for prompt in range(prompts)}
    for rank in range(world_size):
        share = Share.of(prompts * A, rank, world_size)
        for prompt in sorted({branch // A for branch in share.items[: share.real]}):
            first = prompt * A
            own = [branch - first for branch in share.items[: share.real] if branch // A == prompt]
            groups[prompt][rank] = range(own[0], own[-1] + 1)
    return [SplitGroup(prompt, shares) for prompt, shares in groups.items() if len(shares) > 1]


def gathered_images(rollout: Rollout, split: Sequence[SplitGroup], parallel: Parallel) -> dict[int, Float[Tensor, "N 3 H W"]]:
    """The A * K images of each split group that this process scores, by the number of its prompt; every process must call this.

    Images travel between devices, from those that sampled them to the one that scores the group, and nowhere else.
    """
    A, K = rollout.stage.branches, rollout.stage.images_per_branch
    images = rollout.images
    whole: dict[int, Tensor] = {}
    sent: list[tuple[int, Tensor]] = []
    received: list[tuple[int, Tensor]] = []
    for group in split:
        mine = group.shares.get(parallel.rank)
        if mine is None:
            continue
        start = K * rollout.branches.index(group.prompt * A + mine.start)
        own = images[start : start + K * len(mine)]
        if group.scorer != parallel.rank:
            sent.append((group.scorer, own))
            continue
        whole[group.prompt] = images.new_empty((A * K, *images.shape[1:]))
        for rank, branches in group.shares.items():
            place = whole[group.prompt][K * branches.start : K * branches.stop]
            if rank == parallel.rank:
                place.copy_(own)
            else:
                received.append((rank, place))
    parallel.exchange(sent, received)
    return whole


def _with_split_groups(
    grpo: GRPO,
    rollout: Rollout,
    own: PartialScores,
    split: Sequence[SplitGroup],
    parallel: Parallel,
    stopwatch: Stopwatch,
    explained: Explain,
) -> PartialScores:
    """The scores of a process, with those of the groups that it has sampled a part of."""
    images_per_prompt = rollout.stage.images_per_prompt

    def scored() -> tuple[None, dict[int, dict[str, Scores]]]:
        found: dict[int, dict[str, Scores]] = {}
        with explained():
            for prompt, images in gathered.items():
                stopwatch.tell("reward", len(found) * images_per_prompt, len(gathered) * images_per_prompt)
                found[prompt] = grpo.rewards.score_part(images, [rollout.prompts[prompt]] * images_per_prompt, whole_group=True)
        return None, found

    with stopwatch("groups"):
        gathered = gathered_images(rollout, split, parallel)
        start = time.perf_counter()
        _, of_all = parallel.run_on_all(scored)
        stopwatch.seconds["scoring"] += time.perf_counter() - start if gathered else 0.0
    stopwatch.seconds["reward"] += stopwatch.seconds.pop("groups")
    groups = {
        prompt: {name: scores.to(rollout.images.device) for name, scores in group.items()}
        for part in of_all
        for prompt, group in part.items()
    }
    return replace(own, groups={**own.groups, **groups})
