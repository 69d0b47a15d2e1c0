"""Reads the numbers of a run from its folder."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Curve:
    """One column of `metrics.csv`: only the rows where it has a finite value."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.steps)


class Metrics:
    """`metrics.csv` by column; a missing file or column is an empty curve.

    A last line without an end is left out: it is being written, or a kill has cut it off, and "12" would be read as 1.
    """

    def __init__(self, path: Path) -> None:
        text = path.read_bytes().decode("utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        self.cut = whole != text
        """Whether a last line was left out."""
        self.rows: list[dict[str, str]] = list(csv.DictReader(whole.splitlines()))

    def __getitem__(self, name: str) -> Curve:
        return self._curve(name, self.rows)

    def where_equal(self, name: str, other: str) -> Curve:
        """A column, in the rows where it equals another column."""
        return self._curve(name, [row for row in self.rows if row.get(name) == row.get(other)])

    @staticmethod
    def _curve(name: str, rows: list[dict[str, str]]) -> Curve:
        points = [(int(float(row["step"])), _number(row.get(name))) for row in rows if row.get("step")]
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        return Curve([step for step, _ in finite], [value for _, value in finite])

    def matching(self, prefix: str, suffix: str = "") -> dict[str, Curve]:
        """The non-empty columns `prefix...suffix`, by the part between."""
        names = {name for row in self.rows for name in row if name and name.startswith(prefix) and name.endswith(suffix)}
        curves = {name[len(prefix) : len(name) - len(suffix)]: self[name] for name in sorted(names)}
        return {name: curve for name, curve in curves.items() if curve}


def read_summary(run: Path) -> dict[str, Any]:
    """`summary.json`, empty while there is none."""
    path = run / "summary.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _number(cell: str | None) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError:
        return math.nan
