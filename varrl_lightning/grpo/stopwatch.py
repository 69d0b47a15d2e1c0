"""Measures the seconds of the parts of a training step, and says how far each of them is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch

Observer: TypeAlias = "Callable[[str, int, int], None]"
"""Is told a part of a step, how much of it is done, and of how much: scales of `rollout`, images of `reward`, micro-batches of
`update`. A GPU may still compute what counts as done. It is called in the thread that trains."""


class Stopwatch:
    """Measures named parts of a step, each summed over its runs; waits for the GPU, which computes asynchronously.

    Args:
        observer: is told how far the parts are; None for nobody.
    """

    def __init__(self, observer: Observer | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._observer = observer

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs within."""
        start = _now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + _now() - start

    def tell(self, part: str, done: int, of: int) -> None:
        """Tell the observer, if there is one."""
        if self._observer is not None:
            self._observer(part, done, of)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
