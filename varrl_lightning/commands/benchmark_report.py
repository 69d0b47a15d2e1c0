"""Writes the results of `varrl test`: tables beside the paper's rows, and pairs of pictures by category."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from varrl_lightning.callbacks.environment import versions
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.evaluation.tables import Results, tables, write_results
from varrl_lightning.figures.pairs import category_figures, choose_pairs
from varrl_lightning.figures.pictures import save_figure
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.benchmarks import benchmark_of, categories_of
from varrl_lightning.types import Prompt

ROWS = {"test": "sampler", "test/greedy": "greedy"}
"""Rows by the first part of the metrics' names; those of a judge begin as these do."""
NARROWEST_COLUMN = 10
"""Characters of a column: in a narrow terminal or a pipe, a table overflows rather than having its numbers cut."""


def draw_pairs(module: VARGRPO, prompts: Sequence[Prompt], trainer: L.Trainer) -> Evaluation | None:
    """Sample and score the prompts of the pairs; None where prompts have no categories, or the chosen ones differ in size."""
    if not categories_of(prompts):
        return None
    chosen = [prompts[i] for places in choose_pairs(prompts).values() for i in places]
    if len({p.size for p in chosen}) > 1:
        return None
    module.to(trainer.strategy.root_device)
    return module.evaluate(chosen)


def _results(collected: Mapping[str, Evaluation]) -> dict[str, Results]:
    """The results of each row: of the sampler, and greedily, and below each the judges'."""
    results = {}
    for name, evaluation in collected.items():
        way, _, judge = name.partition("/judges/")
        if way in ROWS:
            row = f"{ROWS[way]}, {judge}" if judge else ROWS[way]
            results[row] = replace(evaluation.results(), judge=bool(judge))
    return results


def report_test(
    collected: Mapping[str, Evaluation],
    pairs: tuple[Evaluation | None, Evaluation | None],
    folder: Path,
    about: Mapping[str, Any],
) -> list[Path]:
    """Print the tables and write test.json, test.md and pairs_*.png; return the paths of the files.

    Args:
        collected: evaluations by the first part of their metrics' names; `test` among them.
        pairs: images before and after.
        folder: where the files go.
        about: what the numbers depend on.
    """
    prompts = collected["test"].prompts  # those that were scored: `limit_test_batches` may leave some out
    result_tables = tables(_results(collected), benchmark_of(prompts), len(prompts))
    about = {**about, "prompts": str(about["prompts"]), "images": len(prompts), "versions": versions()}
    written = list(write_results(folder, result_tables, about))
    before, after = pairs
    if before is not None and after is not None:
        for number, figure in enumerate(category_figures(before, after), start=1):
            written.append(folder / f"pairs_{number}.png")
            save_figure(figure, written[-1])
    for table in result_tables:
        width = max(Console().width, 20 + NARROWEST_COLUMN * len(table.columns))
        Console(file=sys.stdout, width=width).print(table.rich())
    print("\n".join(map(str, written)))
    return written
