"""Keeps the last rollout's first groups, as an observer of a module's training steps."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.grpo.credit import Credit
from varrl_lightning.sample_tables.copies import ScoredImages, credit_of_first, scored_images
from varrl_lightning.sample_tables.rows import SampleRow, sample_rows
from varrl_lightning.types import Rollout, Scores


class SampleRecorder:
    """Copies the first groups of each rollout that is wanted to the memory of the CPU; a `RolloutObserver`.

    Pictures become PNG files when rows are taken, and not in each step.

    Args:
        groups: how many prompts, from the first of the update.
        side: the longer side of the pictures in pixels, where images are larger; None for their own size.
    """

    def __init__(self, groups: int, side: int | None) -> None:
        self.groups, self.side = groups, side
        self.wanted = True
        """Whether to copy the next rollout."""
        self._images: ScoredImages | None = None
        self._credit: Credit | None = None

    def scored(self, rollout: Rollout, scores: Mapping[str, Scores], mask: Float[Tensor, "N H W"] | None) -> None:
        """Copy the images and their scores; what was copied before is forgotten."""
        self._credit = None
        self._images = scored_images(rollout, scores, mask, self.groups, self.side) if self.wanted else None

    def credited(self, credit: Credit) -> None:
        """Copy the credit of the same groups."""
        if self._images is not None:
            self._credit = credit_of_first(credit, self.groups)

    def take(self, step: int) -> list[SampleRow]:
        """The rows of the last rollout, once; none where it was not wanted, or its step failed before the update."""
        images, credit = self._images, self._credit
        self._images = self._credit = None
        return [] if images is None or credit is None else sample_rows(images, credit, step)
