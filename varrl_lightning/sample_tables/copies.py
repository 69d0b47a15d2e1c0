"""Copies of a part of a rollout and of its credit in the memory of the CPU; they hold nothing of the device's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from varrl_lightning.grpo.credit import Credit
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ScoredImages:
    """Images of the first groups of a rollout with their scores.

    Args:
        stage, prompts, schedule: as in the rollout.
        places: of each image its branch, counted prompt by prompt, and its continuation.
        images: RGB, 0 to 255.
        scores: scores of these images, by reward name.
        masks: pixel masks, 0 to 255; None where all pixels count.
    """

    stage: Stage
    prompts: Sequence[Prompt]
    schedule: Schedule
    places: Sequence[tuple[int, int]]
    images: UInt8[Tensor, "N 3 H W"]
    scores: Mapping[str, Scores]
    masks: UInt8[Tensor, "N H W"] | None


def scored_images(
    rollout: Rollout, scores: Mapping[str, Scores], mask: Float[Tensor, "N H W"] | None, groups: int, side: int | None = None
) -> ScoredImages:
    """Copy the images of the first groups, as far as this process has sampled them.

    Args:
        scores: scores of the rollout's images, by reward name.
        mask: which pixels the scores are about, in [0, 1]; None for all.
        groups: how many prompts, from the first of the update.
        side: the longer side of the copies in pixels, where images are larger; None for their own size.
    """
    stage = rollout.stage
    K, end = stage.images_per_branch, groups * stage.branches
    # A share may be filled up with repetitions of its last branch: the first one counts.
    first = {branch: row for row, branch in reversed(list(enumerate(rollout.branches))) if branch < end}
    places = [(branch, k) for branch in sorted(first) for k in range(K)]
    rows = [first[branch] * K + k for branch, k in places]
    return ScoredImages(
        stage=stage,
        prompts=list(rollout.prompts[:groups]),
        schedule=rollout.schedule,
        places=places,
        images=as_bytes(_at_most(rollout.images[rows], side)),
        scores={name: s.rows(rows).to(CPU) for name, s in scores.items()},
        masks=None if mask is None else as_bytes(_at_most(mask[rows][:, None], side))[:, 0],
    )


def credit_of_first(credit: Credit, groups: int) -> Credit:
    """A copy of the credit of the first groups."""
    rows = groups * credit.returns.shape[1]
    by_group = {name: _copy(getattr(credit, name)[:groups]) for name in ("rewards", "valid", "returns")}
    names = ("advantages", "active", "mask", "policy_weights", "kl_weights")
    return Credit(**by_group, **{name: _copy(getattr(credit, name)[:rows]) for name in names})


def as_bytes(values: Float[Tensor, "..."]) -> UInt8[Tensor, "..."]:
    """Values in [0, 1] as 0 to 255, rounded, in a copy of their own."""
    return (values.float().clamp(0, 1) * 255).round().byte().to(CPU)


def _copy(values: Tensor) -> Tensor:
    return values.to(CPU, copy=True)


def _at_most(images: Float[Tensor, "N C H W"], side: int | None) -> Float[Tensor, "N C h w"]:
    """Images whose longer side is at most `side`: each pixel is the mean of those that it covers."""
    h, w = images.shape[-2:]
    if side is None or max(h, w) <= side or not len(images):
        return images
    scale = side / max(h, w)
    return interpolate(images.float(), size=(max(round(h * scale), 1), max(round(w * scale), 1)), mode="area")
