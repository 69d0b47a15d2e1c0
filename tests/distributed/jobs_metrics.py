"""Metrics whose parts are on several processes, by torchmetrics' own reduction."""

from __future__ import annotations

import torch
from torch import distributed

from tests.metrics.test_cvtg import cases
from varrl_lightning.algorithms.word_metrics import cvtg_words
from varrl_lightning.metrics.scores import CategoryMean, MeanScore
from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy


def measured(first: int) -> list[float]:
    """Word accuracy, NED, a mean, and two means by category, of 200 cases, of which the first process has `first`."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    numbered = list(enumerate(cases(200)))
    part = numbered[:first] if distributed.get_rank() == 0 else numbered[first:]
    found = []
    for metric in (WordAccuracy(), NormalizedEditDistance()):
        metric.update([cvtg_words(prompt) for _, (prompt, _) in part], [lines for _, (_, lines) in part])
        found.append(metric.compute().item())
    values = torch.tensor([float(i % 7) for i, _ in part])
    mean, by = MeanScore(), CategoryMean(["even", "odd"])
    mean.update(values)
    by.update(values, ["odd" if i % 2 else "even" for i, _ in part])
    categories = by.compute()
    return [*found, mean.compute().item(), categories["even"].item(), categories["odd"].item()]
