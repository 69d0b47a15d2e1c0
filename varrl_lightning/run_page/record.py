"""Reads what a run folder holds; what cannot be read is named, and the rest is kept."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from varrl_lightning.figures.samples import Sample, load_samples, sample_files
from varrl_lightning.figures.tables import Metrics, read_summary

T = TypeVar("T")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error, yaml.YAMLError)
"""What reading a file that a user has changed, or that is cut off, may raise."""


@dataclass
class RunRecord:
    """What one run has left.

    Args:
        name: short, and different for each run of a page.
        folder: the run folder.
        metrics: `metrics.csv`, empty when there is none.
        summary: `summary.json`, empty while the run goes on.
        config: `config.yaml` as a tree, empty when there is none.
        config_text: the same as text.
        alarms: the sentences of `alarms.json`, in their order.
        samples: step and samples of each file in `samples/raw`, the first step first.
        problems: sentences about files that could not be read.
    """

    name: str
    folder: Path
    metrics: Metrics
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    alarms: list[str] = field(default_factory=list)
    samples: list[tuple[int, list[Sample]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Updates made: of the summary, or of `metrics.csv` while there is none."""
        rows = [row["step"] for row in self.metrics.rows if row.get("step")]
        return int(self.summary.get("steps") or (1 + int(float(rows[-1])) if rows else 0))

    @property
    def begun(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.metrics.rows or self.samples or self.summary)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """The records of these folders, with names that tell them apart."""
    return [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]


def read_run(folder: Path, name: str) -> RunRecord:
    """The record of one folder; a file that cannot be read is a problem of the record, not an error."""
    problems: list[str] = []

    def read(file: str, reading: Callable[[], T], otherwise: T) -> T:
        try:
            return reading()
        except UNREADABLE as error:
            problems.append(f"{name}: {file} could not be read and is left out ({str(error).splitlines()[0]}).")
            return otherwise

    metrics = read("metrics.csv", lambda: _metrics(folder), Metrics(folder / "no file"))
    text = read("config.yaml", lambda: _text(folder / "config.yaml"), "")
    record = RunRecord(
        name,
        folder,
        metrics,
        summary=read("summary.json", lambda: read_summary(folder), {}),
        config=read("config.yaml", lambda: dict(yaml.safe_load(text) or {}), {}),
        config_text=text,
        alarms=read("alarms.json", lambda: [str(alarm["text"]) for alarm in json.loads(_text(folder / "alarms.json") or "[]")], []),
        problems=problems,
    )
    for path in sample_files(folder):
        record.samples += read(f"samples/raw/{path.name}", lambda path=path: [load_samples(path)], [])  # type: ignore[misc]
    if record.metrics.cut:
        problems.append(f"{name}: the last line of metrics.csv has no end and is left out: it was being written, or cut off.")
    if not record.metrics.rows:
        problems.append(f"{name}: metrics.csv has no numbers yet, so that there are no curves.")
    return record


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart; a folder that is given twice has a number behind it."""
    parts = [path.absolute().parts for path in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)]


def _metrics(folder: Path) -> Metrics:
    metrics = Metrics(folder / "metrics.csv")
    for row in metrics.rows:
        if row.get("step"):
            int(float(row["step"]))
    return metrics


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
