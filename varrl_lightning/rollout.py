"""One sampler for every stage: a tree of prompts, starts, branches and continuations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.algorithms.noise import row_key
from varrl_lightning.policies.base import State, VARPolicy
from varrl_lightning.types import Prompt, Rollout, Sampling, Stage


def prompt_keys(seed: int, update: int, prompts: Sequence[Prompt], device: torch.device) -> Int[Tensor, " P"]:
    """The noise key of each prompt in one update; branches and continuations derive theirs from it.

    A prompt that comes again in the same batch gets another key, by how often it came before.
    """
    seen: Counter[str] = Counter()
    keys = []
    for prompt in prompts:
        again = f" again {seen[prompt.id]}" if seen[prompt.id] else ""
        keys.append(row_key(seed, update, prompt.id + again))
        seen[prompt.id] += 1
    return torch.tensor(keys, dtype=torch.int64, device=device)


@torch.no_grad()
def sample_tree(
    policy: VARPolicy,
    prompts: Sequence[Prompt],
    stage: Stage,
    sampling: Sampling,
    keys: Int[Tensor, " P"] | torch.Generator,
    images_at_once: int | None = None,
    watch: Callable[[Float[Tensor, "N 3 H W"], list[Prompt]], None] | None = None,
) -> Rollout:
    """Draw `stage.starts` states s_a per prompt, fork them into A branches up to b, and each branch into K continuations up to T.

    What is drawn depends on the keys alone, not on `images_at_once`.

    Args:
        prompts: P prompts of one image size.
        keys: one per prompt; or a generator, whose draws depend on the order of the rows.
        images_at_once: upper bound of the images drawn and decoded at one time, at least the K of one branch; None for all.
        watch: is given the images of each such part, and a prompt for each image, before the next part is drawn.
    """
    sizes = {p.size for p in prompts}
    if len(sizes) != 1:
        raise ValueError(f"a rollout needs at least one prompt and holds one image size, got {len(prompts)} of sizes {sizes}")
    cond = policy.encode_prompts(prompts)
    limit = len(prompts) * stage.images_per_prompt if images_at_once is None else images_at_once
    parts = []
    step = max(1, limit // stage.images_per_prompt)
    for first in range(0, len(prompts), step):
        rows = slice(first, first + step)
        root = policy.begin(cond.rows(rows), sampling, keys if isinstance(keys, torch.Generator) else keys[rows])
        owners = [prompt for prompt in prompts[rows] for _ in range(stage.images_per_prompt)]
        for forks in _forks(policy, root, stage, max(1, limit // stage.continuations)):
            parts.append(_grow(policy, forks, stage, len(cond.schedule)))
            if watch is not None:
                watch(parts[-1][2], owners[: len(parts[-1][2])])
            owners = owners[len(parts[-1][2]) :]
    branches, leaves, images = zip(*parts, strict=True)
    return Rollout(
        stage=stage,
        prompts=prompts,
        schedule=cond.schedule,
        tokens=_join([b.tokens for b in branches]),
        tail_tokens=_join([leaf.tokens[stage.stop :] for leaf in leaves]),
        images=torch.cat(images),
        log_probs=_join([b.log_probs[stage.start :] for b in branches]),
        keys=None if isinstance(keys, torch.Generator) else torch.cat([leaf.keys for leaf in leaves]),
    )


def _forks(policy: VARPolicy, root: State, stage: Stage, at_once: int) -> Iterator[State]:
    """States s_a of all branches, in their order and at most `at_once` at a time; none depends on the others."""
    starts = policy.sample(root.fork(stage.starts), stage.start)
    each = stage.branches // stage.starts
    rows = max(1, at_once // each)
    for first in range(0, len(starts.cond), rows):
        some = starts.rows(slice(first, first + rows))
        for child in range(0, each, at_once):
            yield some.fork(min(at_once, each - child), child)


def _grow(policy: VARPolicy, forks: State, stage: Stage, depth: int) -> tuple[State, State, Tensor]:
    """(branches at b, leaves at T, images of the leaves) of a few branches, without their caches."""
    branches = policy.sample(forks, stage.stop)
    # Forked before the branches' own cache is let go, and grown after it.
    leaves, branches = branches.fork(stage.continuations), branches.finished()
    leaves = policy.sample(leaves, depth).finished()
    return branches, leaves, policy.decode_latent(leaves.latent).float().clamp(0, 1)


def _join(parts: Sequence[list[Tensor]]) -> list[Tensor]:
    """Concatenate lists over scales along their rows."""
    return [torch.cat(scales) for scales in zip(*parts, strict=True)]
