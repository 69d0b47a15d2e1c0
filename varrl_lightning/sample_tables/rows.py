"""One row for each image that a run was trained on: what was asked for, drawn, read and scored, and the credit that followed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.grpo.credit import Credit
from varrl_lightning.sample_tables.copies import ScoredImages, as_bytes
from varrl_lightning.sample_tables.pngs import png


@dataclass(frozen=True)
class SampleRow:
    """One image of one branch of a training rollout.

    Args:
        step: training steps done with this one, as in the names of the files of `samples/`.
        stage: name of the stage.
        prompt: its text.
        words: the words that it asks for.
        group: number of the prompt in the update, from 0.
        branch: number of the branch in its group, from 0.
        continuation: number of the image in its branch, from 0.
        image: PNG; it may be smaller than what was scored. Empty where tables were read without pictures.
        read: the words that were read; None when no reward reads.
        reward: what training took for this image; None where it had no score.
        rewards: the score of each reward, by its name; None where it gave none.
        parts: named parts of the scores, as `REWARD.PART`; None where there is none.
        return_: the return of the branch, named `return` in files; None for a branch without a score.
        advantage: that of the branch; 0 where its group has nothing to compare.
        masks: how much each token counts, one grey PNG for each trained scale, a pixel for a token, 255 for 1.
        image_mask: the pixels that the mask source named, a grey PNG as large as `image`; None where it named none.
        scales: the names of `masks`, such as `scale 3, 2x4`: number from 1, rows and columns.
    """

    step: int
    stage: str
    prompt: str
    words: tuple[str, ...]
    group: int
    branch: int
    continuation: int
    image: bytes
    read: tuple[str, ...] | None
    reward: float | None
    rewards: Mapping[str, float | None]
    parts: Mapping[str, float | None]
    return_: float | None
    advantage: float
    masks: tuple[bytes, ...]
    image_mask: bytes | None
    scales: tuple[str, ...] = ()


def sample_rows(images: ScoredImages, credit: Credit, step: int) -> list[SampleRow]:
    """The rows of some images.

    Args:
        credit: that of their branches; more of them may follow.
        step: training steps done with this one.
    """
    return [_row(images, i, credit, step) for i in range(len(images.places))]


def _row(scored: ScoredImages, i: int, credit: Credit, step: int) -> SampleRow:
    stage, scores, (branch, k) = scored.stage, scored.scores, scored.places[i]
    group, number = divmod(branch, stage.branches)
    prompt = scored.prompts[group]
    texts = next((s.texts for s in scores.values() if s.texts is not None), None)
    usable = bool(credit.valid[group, number, k])
    return SampleRow(
        step=step,
        stage=stage.name,
        prompt=prompt.text,
        words=prompt.words,
        group=group,
        branch=number,
        continuation=k,
        image=png(scored.images[i].permute(1, 2, 0).numpy()),
        read=None if texts is None else tuple(texts[i]),
        reward=_number(credit.rewards[group, number, k]) if usable else None,
        rewards={name: _number(s.values[i]) if s.usable[i] else None for name, s in scores.items()},
        parts={f"{name}.{part}": _number(v[i]) for name, s in scores.items() for part, v in s.components.items()},
        return_=_number(credit.returns[group, number]),
        advantage=float(credit.advantages[branch]),
        masks=tuple(png(mask) for mask in _token_masks(scored, credit.mask[branch])),
        image_mask=None if scored.masks is None else png(scored.masks[i].numpy()),
        scales=_scale_names(scored),
    )


def _token_masks(scored: ScoredImages, mask: Float[Tensor, " L"]) -> list[np.ndarray]:
    """The mask of each trained scale on its grid, 0 to 255."""
    start, stop = scored.stage.start, scored.stage.stop
    parts = as_bytes(mask).split(scored.schedule.lengths[start:stop])
    return [part.view(grid).numpy() for part, grid in zip(parts, scored.schedule.grids[start:stop], strict=True)]


def _scale_names(scored: ScoredImages) -> tuple[str, ...]:
    """The names of the trained scales."""
    grids = scored.schedule.grids
    return tuple(f"scale {t + 1}, {grids[t][0]}x{grids[t][1]}" for t in range(scored.stage.start, scored.stage.stop))


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(float(value)) else None
