"""Collects the alarms that callbacks have raised."""

from __future__ import annotations

from collections.abc import Sequence


class Alarms:
    """The alarms of callbacks: of each that has a list `alarms` of texts, to which it adds the newest at the end."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def new(self, callbacks: Sequence[object]) -> list[str]:
        """Those that have come since the last call, callback by callback."""
        found: list[str] = []
        for number, callback in enumerate(callbacks):
            raised = getattr(callback, "alarms", None)
            if isinstance(raised, list):
                found += map(str, raised[self._known.get(number, 0) :])
                self._known[number] = len(raised)
        return found
