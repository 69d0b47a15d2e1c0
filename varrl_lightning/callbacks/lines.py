"""What a run shows in a file or a notebook: a line a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from varrl_lightning.callbacks.pace import duration
from varrl_lightning.callbacks.run_folder import say

_SHOWN = {"reward": "reward", "word_accuracy": "word accuracy", "val/word_accuracy": "validation", "val/reward": "validation"}
_PARTS = ("rollout", "reward", "update")


class Lines:
    """Lines with step, stage, numbers, seconds of the parts, and the time left; an alarm is at the end of the next one.

    Args:
        total: steps of the run; None where it has no end.
        lines: about how many lines for all of them; None for one each.
        left: seconds until the end of the run; None where that is not known.
    """

    def __init__(self, total: int | None, lines: int | None, left: Callable[[], float | None]) -> None:
        self._total, self._left = total, left
        self._every = 1 if lines is None else max((total or 1000) // lines, 1)
        self._alarms: list[str] = []

    def step(self, done: int, stage: str, metrics: Mapping[str, float]) -> None:
        """Print the line of a step that is over, if it is due."""
        if done % self._every and done != self._total:
            return
        of = f"/{self._total}" if self._total else ""
        left = self._left()
        time_left = f"{duration(left)} left" if left else ""
        parts = [f"step {done}{of}", f"{stage:<7}", numbers(metrics), _seconds(metrics), time_left, *self._alarms]
        say("  ".join(filter(None, parts)))
        self._alarms = []

    def alarm(self, text: str) -> None:
        """Have the next line say an alarm."""
        self._alarms.append(f"alarm {text}")

    def stop(self) -> None:
        """Print the alarms that no line has followed."""
        for alarm in self._alarms:
            say(alarm)


def numbers(metrics: Mapping[str, float]) -> str:
    """The numbers that say whether a run learns: of its last step, and of its last validation."""
    found: dict[str, str] = {}
    for name, label in _SHOWN.items():
        if name in metrics:
            found.setdefault(label, f"{label} {metrics[name]:.3f}")
    return "  ".join(found.values())


def _seconds(metrics: Mapping[str, float]) -> str:
    parts = [(name, metrics[f"seconds/{name}"]) for name in _PARTS if f"seconds/{name}" in metrics]
    named = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts)
    return f"{sum(seconds for _, seconds in parts):.2f} s ({named})" if parts else ""
