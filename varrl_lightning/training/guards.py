"""Options that decide what stops a run, or keeps it from starting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from varrl_lightning.configuration.specs import OptionGroup
from varrl_lightning.text_encoders.cuts import CutPrompts
from varrl_lightning.types import check_choices

ReaderMode = Literal["error", "warn", "ignore"]


@dataclass(frozen=True)
class Guards(OptionGroup):
    """When a run stops because something is wrong with it.

    Args:
        max_bad_steps: the run stops after this many steps in a row whose loss or gradient is not finite, or this many rollouts in
            a row of which no reward has scored an image; >= 1.
        equal_batches: what it means when a loader of your own gives all processes the same prompts: one batch that they share
            (`shared`), or batches of their own that happen to be equal (`separate`). `auto` asks the loader: the batches are
            separate where it has a DistributedSampler, as Lightning adds one, or gave different prompts before; else shared.
        check_ranks_every_n_steps: several processes compare weights, counters, configuration and prompts at the start, and again
            after every so many training steps; 0 for the start alone.
        cut_prompts: `error` or `warn`, before training, where the policy's text encoder cuts off words to be written.
        reader_check: before training, rewards that read text are given words of the training prompts, drawn plainly. Where one that
            trains reads less than half of them right, it is an `error`, or a mere warning (`warn`); `ignore` does not try.
        font: a TrueType or OpenType file for these words; DejaVu Sans draws what it has no glyphs for, and all of them when None.

    Raises:
        ValueError: on a value out of its range.
    """

    max_bad_steps: int = 5
    equal_batches: Literal["auto", "shared", "separate"] = "auto"
    check_ranks_every_n_steps: int = 50
    cut_prompts: CutPrompts = "error"
    reader_check: ReaderMode = "error"
    font: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.max_bad_steps < 1:
            raise ValueError(f"guards.max_bad_steps must be at least 1, got {self.max_bad_steps}")
        if self.check_ranks_every_n_steps < 0:
            raise ValueError(
                f"guards.check_ranks_every_n_steps must be 0 (at the start alone) or more, got {self.check_ranks_every_n_steps}"
            )
