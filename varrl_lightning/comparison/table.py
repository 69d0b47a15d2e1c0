"""The results of a comparison: one tidy file, `results.csv`, a row per run and reading, and each test prompt's values beside it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from varrl_lightning.comparison.jobs import Job, Run
from varrl_lightning.configuration.atomic_write import replace_text, replacing
from varrl_lightning.errors import StartError

OF_RUN = ("run", "phase", "recipe", "seed", "m", "K", "prompts", "learning_rate", "total_updates", "axes")
OF_READING = ("updates", "images", "seconds", "split", "way", "n")
OF_MAKING = ("wall_seconds", "stopped", "training", "weights", "judging", "train", "validation", "test")
"""Seconds of the whole run with its readings, why it stopped early, and digests of all that it was made from."""
MADE = OF_MAKING[2:]
Row = dict[str, str]


class Table:
    """The tidy file of a comparison.

    | columns | |
    |---|---|
    | `run`, `phase`, `recipe`, `seed` | a run's name; `start` (one, before training), `tune` or `final` |
    | `m`, `K` | of the recipe's prefix stage; empty where it has none |
    | `prompts`, `learning_rate`, `total_updates` | of an update, at its peak, and of the whole run, to whose end the rate falls |
    | `axes` | what the run's end serves: `time`, `images`, `updates`, several of them, or nothing |
    | `updates`, `images`, `seconds` | before this reading; seconds by the measured costs |
    | `split`, `way`, `n` | `curve` and `validation` (validation prompts), `test`; `sampled` or `greedy`; number of prompts |
    | the measures | means over the prompts; empty where there is none |
    | `wall_seconds`, `stopped` | of the run with its readings on whichever machine; why it ended early |
    | `training` ... `test` | digests of the recipe, the weights at the start, the way of judging, and the prompt files |

    The test's value of each prompt is in `prompts/RUN.json.gz`, in the order of the file, by way and measure.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / "results.csv"

    def rows(self) -> list[Row]:
        """All rows; none when there is no file.

        Raises:
            StartError: when a line lacks columns, as after a merge that went wrong.
        """
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for number, row in enumerate(rows, start=2):
            if None in row or None in row.values() or missing(row):
                raise StartError(f"{self.path}, line {number}: expected the columns {', '.join(rows[0])}. Remove the line's run.")
        return rows

    def of_runs(self) -> dict[str, list[Row]]:
        """The rows of each run, by its name."""
        runs: dict[str, list[Row]] = {}
        for row in self.rows():
            runs.setdefault(row["run"], []).append(row)
        return runs

    def check(self, jobs: Iterable[Job]) -> set[str]:
        """The names of the jobs whose rows are there.

        Raises:
            StartError: when rows were made from something else than the job; names what differs.
        """
        runs, there = self.of_runs(), set()
        for job in jobs:
            for row in runs.get(job.run.name, ()):
                differ = [
                    f"{name} ({row[name]}, now {job.made[name]})"
                    for name in MADE
                    if name in job.made and row[name] != job.made[name]
                ]
                if differ:
                    raise StartError(
                        f"{self.path}: the rows of {job.run.name} were made with another {', '.join(differ)} than requested now. "
                        "Remove them to make the run again, or give another --output."
                    )
                there.add(job.run.name)
        return there

    def add(self, job: Job, result: Mapping[str, Any], of_run: Mapping[str, Any], spent: Sequence[tuple[int, float]]) -> None:
        """Add the rows of a run that has ended, in one step: a command that is killed leaves all of them or none.

        Args:
            result: of `Job.make`.
            of_run: its `m`, `K` and `axes`.
            spent: images and seconds before each reading.
        """
        run = job.run
        values = {way: {job.measure: row["prompts"]} for row in result["readings"] if row["prompts"] for way in [row["way"]]}
        if values:
            self._write_prompts(run, values)
        shared = {"run": run.name, "phase": run.phase, "recipe": run.recipe, "seed": run.seed, "prompts": run.prompts}
        shared |= {"learning_rate": run.learning_rate, "total_updates": run.updates, **of_run, **job.made}
        shared |= {"wall_seconds": result["wall_seconds"], "stopped": result["stopped"]}
        readings = [
            {**shared, **{name: row[name] for name in ("updates", "split", "way", "n")}, "images": images, "seconds": seconds}
            | row["values"]
            for row, (images, seconds) in zip(result["readings"], spent, strict=True)
        ]
        self._write([*self.rows(), *({name: _text(x) for name, x in row.items()} for row in readings or [shared])])

    def set_axes(self, axes: Mapping[str, str]) -> None:
        """Say of runs that exist what they serve now."""
        rows = self.rows()
        if any(row["axes"] != axes.get(row["run"], row["axes"]) for row in rows):
            self._write([row | {"axes": axes.get(row["run"], row["axes"])} for row in rows])

    def _write(self, rows: Sequence[Row]) -> None:
        measures = dict.fromkeys(name for row in rows for name in row if name not in (*OF_RUN, *OF_READING, *OF_MAKING))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*OF_RUN, *OF_READING, *measures, *OF_MAKING], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_text(self.path, text.getvalue())

    def _prompts_file(self, run: str) -> Path:
        return self.folder / "prompts" / f"{run}.json.gz"

    def _write_prompts(self, run: Run, values: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        rounded = {way: {name: [round(x, 5) for x in each] for name, each in of_way.items()} for way, of_way in values.items()}
        with replacing(self._prompts_file(run.name)) as part:
            part.write_bytes(gzip.compress(json.dumps(rounded).encode(), mtime=0))

    def of_prompts(self, row: Row, measure: str) -> list[float]:
        """Each prompt's value of a reading of the test.

        Raises:
            StartError: when the file is missing, or is not that of the row.
        """
        path = self._prompts_file(row["run"])
        try:
            values = json.loads(gzip.decompress(path.read_bytes()))[row["way"]][measure]
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise StartError(
                f"{path} has no {measure} of the prompts, {row['way']}: {error!r}. Remove the rows of {row['run']}."
            ) from error
        if len(values) != int(row["n"]) or abs(sum(values) / len(values) - float(row[measure])) > 1e-4:
            raise StartError(
                f"{path} does not have the mean of its row in {self.path.name}. Remove it and the rows of {row['run']}."
            )
        return list(values)


def missing(row: Mapping[str, Any]) -> list[str]:
    """Columns that a row lacks."""
    return [name for name in (*OF_RUN, *OF_READING, *OF_MAKING) if name not in row]


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, no other command may add to the folder.

    Raises:
        StartError: when another one does.
    """
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"another `varrl compare` is adding to {folder}; wait for its end, or give another --output"
            ) from error
        yield
    finally:
        os.close(handle)
