"""Differences between log-probabilities that must agree, scale by scale, for checks of `varrl doctor`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Rollout, Score

SAME_PATH = 1e-5
"""Nats per token by which two passes of teacher forcing may differ in fp32 on a CPU."""
TWO_PATHS = 1e-4
"""The same for sampler and teacher forcing: with logits of 25, fp32 causes up to 3e-5, a wrong position or cache .01 or more."""
RARE = 1e-3
"""Share of tokens that may differ by more: of two nearly equal codes at the edge of top-k, rounding decides which is kept."""
Gaps = dict[int, list[Tensor]]
"""Differences in nats by scale, from 0."""


def same_path(device: torch.device) -> float:
    """Nats per token by which two passes of teacher forcing may differ; a GPU picks its kernels by the number of rows."""
    return SAME_PATH if device.type == "cpu" else TWO_PATHS


def bound_of(policy: VARPolicy) -> float:
    """`same_path`, or the rounding of the shortest type that the transformer has weights in, in nats."""
    types = {p.dtype for p in policy.transformer.parameters() if p.is_floating_point()}
    return max([same_path(policy.device), *(torch.finfo(dtype).eps for dtype in types)])


def log_probs(policy: VARPolicy, rollout: Rollout, score: Score, rows_at_once: int | None = None) -> list[Tensor]:
    """Log-probabilities of the trained scales of a rollout by teacher forcing, some rows at a time."""
    stage = rollout.stage
    cond = policy.encode_prompts(rollout.prompts).repeat(stage.branches)
    step = rows_at_once or len(cond)
    parts = []
    for first in range(0, len(cond), step):
        rows = slice(first, first + step)
        tokens = [t[rows] for t in rollout.tokens]
        scored = policy(tokens, cond.rows(rows), stage.start, stage.stop, score=score)
        parts.append([x.detach() for x in scored.log_prob])
    return [torch.cat(scales) for scales in zip(*parts, strict=True)]


def compare(gaps: Gaps, rollout: Rollout, one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Add the differences of two lists over the trained scales of a rollout."""
    for scale, (a, b) in enumerate(zip(one, other, strict=True), start=rollout.stage.start):
        gaps.setdefault(scale, []).append((a - b).abs().flatten())


def within_bound(what: str, gaps: Gaps, bound: float, advice: str) -> tuple[bool, str, str]:
    """Whether differences are within bounds on every scale, what they are, and the advice where they are not.

    Args:
        what: differs, in words.
        bound: in nats.
        advice: `{}` in it is the first scale outside.
    """
    by_scale = {scale + 1: torch.cat(parts) for scale, parts in sorted(gaps.items())}
    wrong = [scale for scale, gap in by_scale.items() if float((gap <= bound).float().mean()) < 1 - RARE]
    largest = ", ".join(f"{scale}: {float(gap.max()):.1e}" for scale, gap in by_scale.items())
    figure = f"largest {what} by scale: {largest} (bound {bound:.0e})"
    return not wrong, figure, advice.format(wrong[0]) if wrong else ""


def largest_gap(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """The largest difference in nats over all scales; infinite where either is not a number."""
    gaps = torch.cat([(a - b).abs().flatten() for a, b in zip(one, other, strict=True)])
    return float(gaps.nan_to_num(nan=torch.inf).max())
