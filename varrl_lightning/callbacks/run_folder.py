"""Paths of a run's files, how a run begins in its folder, and messages for its user."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from varrl_lightning.configuration.earlier_runs import keep_earlier_run
from varrl_lightning.errors import StartError
from varrl_lightning.loggers import Events, MetricsCSV


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of all files that a run writes: the Trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir)


def checkpoint_path(trainer: L.Trainer, name: str) -> Path:
    """The path of the run's `last`, to resume from, or of its `best`."""
    return checkpoint_in(run_folder(trainer), name)


def checkpoint_in(folder: str | Path, name: str) -> Path:
    """The path of `last` or `best` of the run in a folder."""
    return Path(folder) / "checkpoints" / f"{name}.ckpt"


def begin_run(trainer: L.Trainer, given: str | Path | None) -> None:
    """Keep what an earlier run has left in the folder, and see that `metrics.csv` is written, whatever the Trainer's loggers.

    Every callback that writes to the folder calls this before it does; only the first call of a Trainer's has an effect. The
    first process moves the files; none of them is one that another process reads.

    Args:
        given: the checkpoint that the run begins from, if there is one.

    Raises:
        StartError: when the earlier run's files cannot be moved.
    """
    if dry(trainer):
        return
    metrics = _metrics_of(trainer)
    if metrics.begun:
        return
    metrics.begun = True
    if not trainer.is_global_zero or given == "hpc":
        return
    run = run_folder(trainer)
    events = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger) and _same(Path(x.log_dir), run / "tensorboard")]
    live = {"tensorboard"} if any(not isinstance(x, Events) or x.began for x in events) else set()
    live |= {"metrics.csv"} if metrics.has_rows else set()
    try:
        kept = keep_earlier_run(
            run, None if given is None else Path(given), next((x.kept for x in events if isinstance(x, Events)), None), live
        )
    except OSError as error:
        raise StartError(
            f"what an earlier run has left in {shown(run)} could not be moved to {shown(run / 'earlier')}: {error}. Nothing is "
            "lost; give the folder's rights back, or another trainer.default_root_dir"
        ) from error
    metrics.resume = True  # of another run nothing is left there
    if kept is not None:
        say(f"What an earlier run had left in {shown(run)} is now in {shown(kept)}")


def _metrics_of(trainer: L.Trainer) -> MetricsCSV:
    """The Trainer's logger of the run folder's metrics.csv; it is given one where it has none."""
    path = run_folder(trainer) / "metrics.csv"
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV) and _same(logger.path, path):
            return logger
    added = MetricsCSV(run_folder(trainer))
    trainer.loggers = [*trainer.loggers, added]
    return added


def _same(a: Path, b: Path) -> bool:
    return os.path.abspath(a) == os.path.abspath(b)


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def dry(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which writes no files."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@rank_zero_only
def say(text: str) -> None:
    """Print a line for the user, once in a run of several processes."""
    print(text, flush=True)
