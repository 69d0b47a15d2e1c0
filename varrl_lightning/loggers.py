"""Loggers that write `metrics.csv` and TensorBoard events to the run folder; what a run sends to whatever loggers there are."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.configuration.earlier_runs import keep_alone

FLUSH_EVERY = 20
"""Number of rows between writes."""


def log_step(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Send the metrics of a training step to all loggers, as often as the Trainer's `log_every_n_steps` says."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if every and ((_step(trainer) + 1) % every == 0 or trainer.should_stop):
        log_measured(trainer, metrics)


def log_measured(trainer: L.Trainer, metrics: Mapping[str, float]) -> None:
    """Send metrics of this training step to all loggers; one that is NaN was not measured, and is left out."""
    measured = {name: float(value) for name, value in metrics.items() if not math.isnan(value)}
    for logger in trainer.loggers if measured else ():
        # MLflow may keep each metric in a file: `kl/scale_1` would need a folder of the name that the file `kl` has.
        flat = isinstance(logger, MLFlowLogger)
        named = {name.replace("/scale_", "_scale_") if flat else name: value for name, value in measured.items()}
        logger.log_metrics({**named, "epoch": trainer.current_epoch}, _step(trainer))
        logger.save()


def _step(trainer: L.Trainer) -> int:
    """The number by which Lightning logs this step's metrics: there may be several optimizer steps to one."""
    step: int = trainer.fit_loop.epoch_loop._batches_that_stepped
    return step


def log_picture(loggers: Sequence[Logger], name: str, pixels: np.ndarray, step: int) -> None:
    """Send a picture to every logger that takes one: Weights & Biases, MLflow, Comet, TensorBoard, and any that is like these.

    Args:
        pixels: RGB, (H, W, 3), 0 to 255.
        step: training steps done.
    """
    for logger in loggers:
        experiment = getattr(logger, "experiment", None)
        if callable(getattr(logger, "log_image", None)):
            logger.log_image(key=name, images=[pixels], step=step)  # type: ignore[attr-defined]
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, key=name, step=step)
        elif callable(getattr(experiment, "add_image", None)):
            experiment.add_image(name, pixels, step, dataformats="HWC")  # type: ignore[union-attr]
        elif isinstance(logger, CometLogger):
            logger.experiment.log_image(pixels, name=name, step=step)


def log_table(loggers: Sequence[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
    """Send a table to every logger that takes one, as above; TensorBoard shows it as text.

    Args:
        rows: strings, numbers, truth values, and None for what there is not; none is NaN.
        step: training steps done.
    """
    for logger in loggers:
        experiment = getattr(logger, "experiment", None)
        if callable(getattr(logger, "log_table", None)):
            logger.log_table(key=name, columns=list(columns), data=[list(row) for row in rows], step=step)  # type: ignore[attr-defined]
        elif isinstance(logger, MLFlowLogger):  # its own log_table needs pandas
            table = {"columns": list(columns), "data": [list(row) for row in rows]}
            logger.experiment.log_dict(logger.run_id, table, f"{name}/step_{step:06d}.json")
        elif callable(getattr(experiment, "add_text", None)):
            experiment.add_text(name, _markdown(columns, rows), step)  # type: ignore[union-attr]
        elif isinstance(logger, CometLogger):
            logger.experiment.log_table(f"{name}_{step:06d}.csv", [list(row) for row in rows], headers=list(columns))


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    cells = (["" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def run_loggers(folder: str | Path, resume: bool = False) -> list[Logger]:
    """The loggers of every run: `metrics.csv` and `tensorboard/`.

    Args:
        resume: whether to go on with what is there; otherwise it is an earlier run's, and is kept below `earlier`.
    """
    return [MetricsCSV(folder, resume), Events(folder, resume)]


class Events(TensorBoardLogger):
    """Writes finite numbers to the run folder's `tensorboard/`; TensorBoard would warn about each of the others.

    Args:
        folder: the run folder.
        resume: whether to add to the events that are there; otherwise they are kept below `earlier`.
    """

    def __init__(self, folder: str | Path, resume: bool = False) -> None:
        super().__init__(folder, name="tensorboard", version="")
        self.resume = resume
        self.began = False
        self.kept: Path | None = None
        """Where the events of an earlier run are now; None where there were none."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the events."""
        if not self.began:
            self.began = True
            if not self.resume:
                self.kept = keep_alone(Path(self.log_dir))
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the finite values of a step."""
        super().log_metrics({name: value for name, value in metrics.items() if math.isfinite(value)}, step)


class MetricsCSV(Logger):
    """Writes a row for each step, and one for each validation, to `metrics.csv`; a cell is empty for NaN.

    It replaces Lightning's CSVLogger, which would delete the file that a resumed run has to continue.

    Args:
        folder: the run folder.
        resume: whether to keep the rows before the first step that is logged; otherwise the file starts empty, and one that is
            there is kept below `earlier`.
    """

    def __init__(self, folder: str | Path, resume: bool = False) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.resume = resume
        self.begun = False
        """Whether the run that it belongs to has begun in this folder."""
        self._columns: list[str] | None = None
        self._pending: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Logger name; required by Lightning."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: there is one version of the log; required by Lightning."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder; the command line writes config.yaml there too."""
        return str(self.path.parent)

    @property
    def has_rows(self) -> bool:
        """Whether anything was logged."""
        return self._columns is not None

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run folder's config.yaml holds the hyperparameters."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of a step."""
        step = 0 if step is None else step
        if self._columns is None:
            try:
                self._begin(step, metrics)
            except OSError as error:
                self._warn(error)
        if not self._pending or self._pending[-1]["step"] != step:
            if len(self._pending) >= FLUSH_EVERY:
                self.save()
            self._pending.append({"step": step})
        self._pending[-1].update({name: float(value) for name, value in metrics.items() if not math.isnan(value)})

    def _begin(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the rows logged before this step; a validation comes after the training step of the same number."""
        if not self.resume:
            keep_alone(self.path)
        rows = self._rows()
        rows = [row for row in rows if (int(float(row["step"])), _is_validation(row)) < (step, _is_validation(metrics))]
        self._rewrite(rows, sorted({name for row in rows for name in row} - {"step"}))

    @rank_zero_only
    def save(self) -> None:
        """Write the pending rows; when writing fails, keep them for the next time."""
        if self._columns is None:
            return  # nothing was logged yet: the file of an earlier run stays
        try:
            self._write_pending()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        rank_zero_warn(f"{self.path} could not be written: {error.strerror or error}. Its rows are kept, and written later.")

    def _write_pending(self) -> None:
        """Append the pending rows; new columns rewrite the complete file."""
        assert self._columns is not None
        columns = sorted({name for row in self._pending for name in row} - {"step"} | set(self._columns))
        if columns != self._columns:
            self._rewrite(self._rows(), columns)
        before = self.path.stat().st_size
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file).writerows(self._pending)
        except OSError:
            os.truncate(self.path, before)  # half a row would be read as a complete one
            raise
        self._pending = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the rows that are still pending."""
        self.save()

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        self._columns = columns
        with replacing(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = self._writer(file)
            writer.writeheader()
            writer.writerows(rows)

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, ["step", *(self._columns or ())], restval="")

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        lines = text[: text.rfind("\n") + 1].splitlines()  # a kill may cut the last row short, and "12" would be read as 1
        return [{k: v for k, v in row.items() if k is not None and v} for row in csv.DictReader(lines) if row.get("step")]


def _is_validation(row: Mapping[str, Any]) -> bool:
    return any(name.startswith("val/") for name in row)
