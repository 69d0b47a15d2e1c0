"""What was measured of a variant."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from varrl_lightning.types import Stage

Scale = int | None
"""A scale, counted from 0; None for all scales of a stage."""


@dataclass(frozen=True)
class Measured:
    """The measurement of a variant, for all of its scales or for one.

    Args:
        variant: name of the variant.
        stage: the scales, branches and continuations.
        scale: counted from 0; None for all scales of the stage.
        cosine: mean cosine over all pairs of batches.
        standard_error: standard error of the cosine, by a jackknife over batches.
        difference: difference to the first variant's cosine; NaN for a scale that the first variant does not train.
        difference_standard_error: standard error of the paired difference, by the same jackknife.
        signal: estimate of |E g|^2 / E |g|^2; may be negative.
        length: root of the mean squared length of a gradient.
        batches: number of batches that had a gradient.
        left_out: number of batches that had none; they are in the gains all the same, as gradients of 0.
        gain: <E g, G> / (|E g| |G|), G the gradient of the expected reward, in the metric of an AdamW state: how far the mean
            gradient points along G. NaN without such a metric, for a single scale, and where too few batches give a length.
        gain_standard_error: its standard error, by a jackknife over batches.
        relative_gain: the gain as a multiple of the first variant's.
        relative_gain_standard_error: standard error of the multiple, by the same jackknife.
        batch_gain: the same with sqrt(E |g|^2) for |E g|: what the step of a single batch gains for its length.
        batch_gain_standard_error, relative_batch_gain, relative_batch_gain_standard_error: as for the gain.
    """

    variant: str
    stage: Stage
    scale: Scale
    cosine: float
    standard_error: float
    difference: float
    difference_standard_error: float
    signal: float
    length: float
    batches: int
    left_out: int
    gain: float = math.nan
    gain_standard_error: float = math.nan
    relative_gain: float = math.nan
    relative_gain_standard_error: float = math.nan
    batch_gain: float = math.nan
    batch_gain_standard_error: float = math.nan
    relative_batch_gain: float = math.nan
    relative_batch_gain_standard_error: float = math.nan

    def flat(self) -> dict[str, Any]:
        """The measurement as the row of a table: the stage's fields among the others; scales count from 1."""
        fields = asdict(self)
        fields["scale"] = None if self.scale is None else self.scale + 1
        stage = {key: value for key, value in fields.pop("stage").items() if key != "name"}
        return {"variant": fields.pop("variant"), **stage, **fields}
