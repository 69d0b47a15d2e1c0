"""Metrics of two processes are those of one; a second with workers that other files have started."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.distributed.workers import Workers
from tests.metrics.test_cvtg import cases
from varrl_lightning.algorithms.word_metrics import cvtg_words
from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy


def test_two_processes_give_what_one_gives(workers: Callable[[int], Workers]) -> None:
    """Torchmetrics' own reduction, on a real process group; the parts are of different sizes."""
    accuracy, ned = WordAccuracy(), NormalizedEditDistance()
    for metric in (accuracy, ned):
        metric.update([cvtg_words(prompt) for prompt, _ in cases(200)], [lines for _, lines in cases(200)])
    values = [i % 7 for i in range(200)]
    expected = [accuracy.compute().item(), ned.compute().item(), np.mean(values), np.mean(values[0::2]), np.mean(values[1::2])]
    for found in workers(2)("tests.distributed.jobs_metrics:measured", first=70):
        assert found == pytest.approx(expected, rel=1e-6)
