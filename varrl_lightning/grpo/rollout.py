"""Samples the images of a stage as a tree of prompts, starts, branches and continuations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.algorithms.noise import common, row_key
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Cond, State
from varrl_lightning.types import Prompt, Rollout, Sampling, Stage


def prompt_keys(seed: int, update: int, prompts: Sequence[Prompt], device: torch.device) -> Int[Tensor, " P"]:
    """The noise key of each prompt in one update; branches and continuations derive theirs from it.

    A prompt that occurs several times in a batch gets another key each time, by the number of times it came before.
    """
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        again = f" again {seen[prompt.id]}" if seen[prompt.id] else ""
        keys.append(row_key(seed, update, prompt.id + again))
        seen[prompt.id] += 1
    return torch.tensor(keys, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Share:
    """The part of numbered work 0, 1, ... n - 1 that one of several processes does.

    Args:
        items: numbers in order; as many on every process, so that all make the same calls.
        real: the first `real` items are this process's own; the rest repeat the last one, to fill up, and must not count.
    """

    items: tuple[int, ...]
    real: int

    @classmethod
    def of(cls, n: int, rank: int = 0, world_size: int = 1) -> Share:
        """The `rank`-th of `world_size` contiguous shares, of ceil(n / world_size) items each."""
        each = -(-n // world_size)
        numbers = range(rank * each, (rank + 1) * each)
        return cls(tuple(min(i, n - 1) for i in numbers), min(max(n - rank * each, 0), each))


class _Scales:
    """Tells a stopwatch how many scales of a rollout are sampled; each counts once for each chunk."""

    def __init__(self, stopwatch: Stopwatch, of: int) -> None:
        self.stopwatch, self._done, self._of = stopwatch, 0, of
        stopwatch.tell("rollout", 0, of)

    def count(self) -> None:
        self._done += 1
        self.stopwatch.tell("rollout", self._done, self._of)


@torch.no_grad()
def sample_tree(
    policy: VARPolicy,
    prompts: Sequence[Prompt],
    stage: Stage,
    sampling: Sampling,
    keys: Int[Tensor, " P"] | torch.Generator,
    images_at_once: int | None = None,
    on_images: Callable[[Float[Tensor, "N 3 H W"], list[Prompt]], None] | None = None,
    branches: Sequence[int] | None = None,
    stopwatch: Stopwatch | None = None,
    noise: NoiseOptions = NoiseOptions(),  # noqa: B008  frozen
) -> Rollout:
    """Sample `stage.starts` states s_a per prompt, fork them into A branches up to b, and each branch into K continuations up to T.

    With K = 0 nothing is sampled after b: the images are the branches' own drafts. The tokens of a branch do not depend on K.

    What is sampled depends on the keys alone, neither on `images_at_once` nor on which process samples which branches.

    Args:
        prompts: P prompts of one image size.
        keys: one per prompt; or a generator, whose numbers depend on the order of the rows.
        images_at_once: most images that are sampled and decoded at one time, at least those of one branch; None for all.
        on_images: called with the images of each such chunk, and a prompt for each image, before the next chunk is sampled.
        branches: which of the P * A to sample; all when None.
        stopwatch: measures `tail`: the continuations and the decoding of their images. It is told how many scales are done, those
            of all chunks together.
        noise: what the branches and continuations of a group share of their noise.

    Raises:
        ValueError: when the prompts are of several sizes, or when noise is to be shared and there is a generator in place of keys.
    """
    noise.check_keys(keys)
    sizes = {p.size for p in prompts}
    if len(sizes) != 1:
        raise ValueError(f"a rollout needs at least one prompt and holds one image size, got {len(prompts)} of sizes {sizes}")
    branches = range(len(prompts) * stage.branches) if branches is None else branches
    prompt_rows = sorted({branch // stage.branches for branch in branches})
    cond = policy.encode_prompts([prompts[i] for i in prompt_rows])
    their_keys = keys if isinstance(keys, torch.Generator) else keys[prompt_rows]
    each = stage.images_per_branch
    step = len(branches) if images_at_once is None else max(1, images_at_once // each)
    parts = []
    stopwatch = stopwatch or Stopwatch()
    scales = _Scales(stopwatch, -(-len(branches) // step) * (stage.stop if stage.scores_drafts else len(cond.schedule)))
    for first in range(0, len(branches), step):
        chunk = branches[first : first + step]
        places = [(prompt_rows.index(branch // stage.branches), branch % stage.branches) for branch in chunk]
        shared = None
        if noise.continuations == "common" and isinstance(their_keys, Tensor):
            shared = common(their_keys[[prompt for prompt, _ in places]])
        forks = _forks(policy, cond, their_keys, sampling, stage, places, noise, scales)
        parts.append(_grow(policy, forks, stage, len(cond.schedule), shared, scales))
        del forks  # its cache must not be there while the next chunk's is made
        if on_images is not None:
            owners = [prompts[branch // stage.branches] for branch in chunk]
            on_images(parts[-1].images, [prompt for prompt in owners for _ in range(each)])
    leaf_keys = [part.keys for part in parts if part.keys is not None]
    return Rollout(
        stage=stage,
        prompts=prompts,
        schedule=cond.schedule,
        tokens=_join([part.tokens for part in parts]),
        tail_tokens=_join([part.tail_tokens for part in parts]),
        images=torch.cat([part.images for part in parts]),
        log_probs=_join([part.log_probs for part in parts]),
        keys=torch.cat(leaf_keys) if leaf_keys else None,
        branches=branches,
        drafts=torch.cat([part.drafts for part in parts if part.drafts is not None]) if stage.with_drafts else None,
    )


def _forks(
    policy: VARPolicy,
    cond: Cond,
    keys: Int[Tensor, " P"] | torch.Generator,
    sampling: Sampling,
    stage: Stage,
    places: Sequence[tuple[int, int]],
    noise: NoiseOptions,
    scales: _Scales,
) -> State:
    """States s_a of some branches, each given as (row of its prompt, its number in the group).

    An s_a that branches of several chunks share is sampled again for each: it is short, and the same each time.
    """
    each = stage.branches // stage.starts
    families = sorted({(prompt, branch // each) for prompt, branch in places})
    needed = sorted({prompt for prompt, _ in families})
    index = torch.tensor(needed, device=policy.device)
    root = policy.begin(cond.at(index), sampling, keys if isinstance(keys, torch.Generator) else keys[index])
    roots = root.children([needed.index(prompt) for prompt, _ in families], [start for _, start in families])
    starts = policy.sample(roots, stage.start, after_scale=scales.count)
    return starts.children(
        [families.index((prompt, branch // each)) for prompt, branch in places],
        [branch % each for _, branch in places],
        stratified=each if noise.branches == "stratified" else None,
    )


@dataclass(frozen=True)
class _Part:
    """The results of one chunk of branches. Their states are not kept: these hold the prompts' features for every row."""

    tokens: list[Tensor]
    tail_tokens: list[Tensor]
    log_probs: list[Tensor]
    keys: Tensor | None
    images: Float[Tensor, "N 3 H W"]
    drafts: Float[Tensor, "R 3 H W"] | None


def _grow(policy: VARPolicy, forks: State, stage: Stage, depth: int, shared: Int[Tensor, " R"] | None, scales: _Scales) -> _Part:
    """Branches from s_a to b, their leaves at T, and the images of these; a branch without continuations is its own leaf.

    Args:
        shared: of each branch, the key that its leaves' noise derives from; its own where None.
    """
    branches = policy.sample(forks, stage.stop, final=stage.scores_drafts, after_scale=scales.count)
    if stage.scores_drafts:
        leaves = branches = branches.finished()
        images = _decoded(policy, leaves)
    else:
        # Fork while the branches still have their cache, and release it before the leaves grow.
        leaves, branches = branches.fork(stage.continuations, shared), branches.finished()
        with scales.stopwatch("tail"):
            leaves = policy.sample(leaves, depth, after_scale=scales.count).finished()
            images = _decoded(policy, leaves)
    drafts = _decoded(policy, branches) if stage.with_drafts else None
    keys = leaves.keys if isinstance(leaves.keys, Tensor) else None
    return _Part(branches.tokens, leaves.tokens[stage.stop :], branches.log_probs[stage.start :], keys, images, drafts)


def _decoded(policy: VARPolicy, state: State) -> Float[Tensor, "R 3 H W"]:
    return policy.decode_latent(state.latent).float().clamp(0, 1)


def _join(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Concatenate lists over scales along their rows."""
    return [torch.cat(scales) for scales in zip(*parts, strict=True)]
