"""Counters of a run's progress."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class RunCounters:
    """The counters of a run; noise, stages and schedules follow from them, never from Lightning's `global_step`.

    Args:
        rollouts_done: training steps, each one rollout.
        updates_done: optimizer steps, dropped ones included.
        bad_steps: optimizer steps whose loss or gradient was not finite.
        bad_steps_in_a_row: bad steps since the last finite one.
    """

    rollouts_done: int = 0
    updates_done: int = 0
    bad_steps: int = 0
    bad_steps_in_a_row: int = 0

    def state_dict(self) -> dict[str, int]:
        """The counters by name, as a checkpoint holds them."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore the counters from `state_dict`; other entries are ignored."""
        for name in asdict(self):
            setattr(self, name, state[name])
