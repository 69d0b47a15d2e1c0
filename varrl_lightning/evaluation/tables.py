"""Tables of results beside the paper's, for the console, JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from varrl_lightning.metrics.paper import CVTG_COLUMNS, HPSV3_CATEGORIES, SOURCE, TABLE_1, TABLE_2
from varrl_lightning.metrics.scores import ALL
from varrl_lightning.prompts.benchmarks import Benchmark

MEASURES = {
    "word_accuracy": "Word Accuracy",
    "ned": "NED",
    "cvtg_word_accuracy": "Word Accuracy by CVTG-2K",
    "cvtg_ned": "NED by CVTG-2K",
    "clip_score": "CLIPScore",
    "reward": "Reward",
}
"""Column headings of the measures; a measure without one is headed by its name."""


@dataclass(frozen=True)
class Results:
    """Measurements of one policy with one way of sampling.

    Args:
        measures: by name, see `MEASURES`.
        categories: mean reward by category, `All` among them, as `CategoryMean.compute` gives it.
        hpsv3: whether that reward is HPSv3, so that it may stand beside the paper's Table 2.
        judge: whether these are the scores of a reward of `evaluate_with`, which no table of the paper has.
    """

    measures: Mapping[str, float]
    categories: Mapping[str, float]
    hpsv3: bool = False
    judge: bool = False


@dataclass(frozen=True)
class ResultTable:
    """Rows of numbers under headings; NaN where there is none.

    Args:
        ours: the rows that were measured here; the others are the paper's.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    ours: frozenset[str]
    digits: int = 4

    def rich(self) -> RichTable:
        """The table for the console."""
        table = RichTable(title=self.title, title_justify="left")
        table.add_column("")
        for column in self.columns:
            table.add_column(column, justify="right")
        for name, values in self.rows.items():
            table.add_row(name, *map(self._cell, values), style="bold" if name in self.ours else None)
        return table

    def markdown(self) -> str:
        """The table in Markdown, under a heading; the rows measured here in bold."""
        lines = [f"## {self.title}", "", f"| | {' | '.join(self.columns)} |", f"|---|{'---:|' * len(self.columns)}"]
        for name, values in self.rows.items():
            mark = "**" if name in self.ours else ""
            cells = (f"{mark}{cell}{mark}" if cell != "-" else cell for cell in map(self._cell, values))
            lines.append(f"| {mark}{name.replace('|', chr(92) + '|')}{mark} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Rows by name, each a mapping from heading to number; None where there is none."""
        rows = {
            name: {c: v if math.isfinite(v) else None for c, v in zip(self.columns, values, strict=True)}
            for name, values in self.rows.items()
        }
        return {"title": self.title, "ours": [name for name in rows if name in self.ours], "rows": rows}

    def _cell(self, value: float) -> str:
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "-"


def tables(results: Mapping[str, Results], benchmark: Benchmark | None = None, images: int | None = None) -> list[ResultTable]:
    """Tables of the measurements, and for a benchmark the paper's rows above them.

    Args:
        results: by the name of their row, such as `sampler` and `greedy`, or `before` and `after`.
        benchmark: which of the paper's tables to set them beside; see `benchmark_of`.
        images: how many each was measured on, for the titles.

    Raises:
        ValueError: without results.
    """
    if not results:
        raise ValueError("there are no results to show; expected at least one row")
    of = "" if images is None else f", {images} images"
    shown = [_measured(results, f"Measured{of}")]
    results = {name: r for name, r in results.items() if not r.judge}
    if benchmark == "CVTG-2K":
        ours = {name: _row(_by_cvtg(r.measures), ("word_accuracy", "ned", "clip_score")) for name, r in results.items()}
        shown.append(_beside(f"CVTG-2K{of}, beside Table 1 of {SOURCE}", CVTG_COLUMNS, TABLE_1, ours, digits=4))
    columns = tuple(dict.fromkeys(c for r in results.values() for c in (ALL, *r.categories) if r.categories))
    beside = benchmark == "HPSv3" and all(r.hpsv3 for r in results.values())
    if beside:
        columns = (ALL, *HPSV3_CATEGORIES)
    if columns:
        ours = {name: _row(r.categories, columns) for name, r in results.items()}
        paper = TABLE_2 if beside else {}
        title = f"HPSv3{of}, beside Table 2 of {SOURCE}" if paper else f"Reward by category{of}"
        shown.append(_beside(title, columns, paper, ours, digits=2 if paper else 4))
    return shown


def _measured(results: Mapping[str, Results], title: str) -> ResultTable:
    measured = dict.fromkeys(name for r in results.values() for name in r.measures)
    names = [*(m for m in MEASURES if m in measured), *(m for m in measured if m not in MEASURES)]
    rows = {row: _row(r.measures, names) for row, r in results.items()}
    return ResultTable(title, tuple(MEASURES.get(n, n) for n in names), rows, frozenset(rows))


def _beside(
    title: str,
    columns: tuple[str, ...],
    paper: Mapping[str, tuple[float, ...]],
    ours: Mapping[str, tuple[float, ...]],
    digits: int,
) -> ResultTable:
    # A row that has the name of one of the paper's must not replace it.
    named = {f"{name} (this run)" if paper else name: values for name, values in ours.items()}
    return ResultTable(title, columns, {**paper, **named}, frozenset(named), digits)


def _by_cvtg(measures: Mapping[str, float]) -> dict[str, float]:
    """The measures with those by the benchmark's own definition in place of the others, where there are any."""
    return {**measures, **{name.removeprefix("cvtg_"): value for name, value in measures.items() if name.startswith("cvtg_")}}


def _row(values: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    return tuple(float(values.get(name, math.nan)) for name in names)


def write_results(folder: Path, result_tables: Sequence[ResultTable], about: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `test.json` and `test.md`; returns their paths.

    Args:
        about: what the numbers depend on (checkpoint, prompts, seed, versions); JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_markdown = folder / "test.json", folder / "test.md"
    content = {"about": dict(about), "tables": [table.as_json() for table in result_tables]}
    as_json.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    listed = "".join(f"- {name}: {value}\n" for name, value in about.items())
    as_markdown.write_text("\n".join(["# Test results\n", listed, *(t.markdown() for t in result_tables)]), encoding="utf-8")
    return as_json, as_markdown
