"""Counters of a run's progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

CALIBRATED_GROUPS = 64
"""Groups that are kept of those of which drafts and whole images were scored: they make the interval that warns."""


@dataclass
class RunCounters:
    """The counters of a run; noise, stages and schedules follow from them, never from Lightning's `global_step`.

    Args:
        rollouts_done: training steps, each one rollout.
        updates_done: optimizer steps, dropped and skipped ones included.
        bad_steps: optimizer steps whose loss or gradient was not finite.
        bad_steps_in_a_row: bad steps since the last finite one.
        skipped_steps: optimizer steps that were not made, since nothing in the rollout had a gradient or none of it had a score.
        unjudged_rollouts: rollouts of which no reward has scored an image.
        unjudged_in_a_row: unjudged rollouts since the last that was judged.
        separate_batches: 1 once the training loader has given the processes different prompts.
        draft_taus: of the last `CALIBRATED_GROUPS` groups, tau-b of drafts with whole images and its ceiling, see `group_taus`.
    """

    rollouts_done: int = 0
    updates_done: int = 0
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0
    skipped_steps: int = 0
    unjudged_rollouts: int = 0
    unjudged_in_a_row: int = 0
    separate_batches: int = 0
    draft_taus: list[list[float]] = field(default_factory=list)

    @property
    def updates_made(self) -> int:
        """Optimizer steps that the optimizer was asked for: none of the others can have moved a weight."""
        return self.updates_done - self.skipped_steps

    def metrics(self) -> dict[str, float]:
        """The counters that a step logs."""
        return {name: float(getattr(self, name)) for name in ("bad_steps", "skipped_steps", "unjudged_rollouts")}

    def keep_draft_taus(self, taus: Sequence[Sequence[float]]) -> None:
        """Add the two numbers of some groups, and forget the oldest."""
        self.draft_taus = [*self.draft_taus, *map(list, taus)][-CALIBRATED_GROUPS:]

    def state_dict(self) -> dict[str, Any]:
        """The counters by name, as a checkpoint holds them."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters from `state_dict`; other entries are ignored, and what an older version did not count is 0."""
        later = ("skipped_steps", "unjudged_rollouts", "unjudged_in_a_row", "separate_batches", "draft_taus")
        new = asdict(RunCounters())
        for name in new:
            setattr(self, name, state.get(name, new[name]) if name in later else state[name])
