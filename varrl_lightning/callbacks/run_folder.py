"""Paths of a run's files, how a run begins in its folder, and messages for its user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger

from varrl_lightning.configuration.earlier_runs import CONFIG, RESULTS, keep_earlier_run
from varrl_lightning.errors import StartError
from varrl_lightning.loggers import Events, MetricsCSV

ROOM = 1 << 20
"""Bytes that must be free for a run to begin; a checkpoint needs many more, and its save says so."""


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of all files that a run writes: the Trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir)


def checkpoint_path(trainer: L.Trainer, name: str) -> Path:
    """The path of the run's `last`, to resume from, or of its `best`."""
    return checkpoint_in(run_folder(trainer), name)


def checkpoint_in(folder: str | Path, name: str) -> Path:
    """The path of `last` or `best` of the run in a folder."""
    return Path(folder) / "checkpoints" / f"{name}.ckpt"


@rank_zero_only
def check_run_folder(run: Path) -> None:
    """See that a run can write to its folder, before anything is loaded; nothing is left there.

    Raises:
        StartError: when a file is in the way, the rights are missing, or the disk is full.
    """
    existing = next(path for path in (run, *run.absolute().parents) if path.is_symlink() or path.exists())
    wrong = [] if existing.is_dir() else [f"{existing} is not a folder"]
    for name in ("earlier", *RESULTS, CONFIG):
        path, wanted = run / name, "file" if "." in name else "folder"
        if path.exists() and path.is_dir() != (wanted == "folder"):
            wrong.append(f"{path} is not a {wanted}")
        elif path.exists() and not os.access(path, os.W_OK):
            wrong.append(f"{path} may not be written to")
    try:
        if not wrong:
            with tempfile.TemporaryFile(dir=existing) as file:
                file.write(bytes(ROOM))
    except OSError as error:
        wrong.append(f"{existing}: {error.strerror or error}")
    if wrong:
        raise StartError(
            f"the run folder {shown(run)} cannot be used: {'; '.join(wrong)}. Nothing was loaded. Mend that, or give another "
            "folder as --trainer.default_root_dir"
        )


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
    given = None if given is None else Path(given)
    try:
        kept = keep_earlier_run(run, given, into=_kept_events(trainer), live=_live(trainer, metrics))
    except OSError as error:
        raise StartError(
            f"what an earlier run has left in {shown(run)} could not be moved to {shown(run / 'earlier')}: {error}. Nothing is "
            "lost; give the folder's rights back, or another trainer.default_root_dir"
        ) from error
    metrics.resume = True  # of another run nothing is left there
    if kept is not None:
        say(f"What an earlier run had left in {shown(run)} is now in {shown(kept)}")


def _kept_events(trainer: L.Trainer) -> Path | None:
    """Where the loggers have moved an earlier run's events, since Lightning lets them begin first."""
    return next((x.kept for x in trainer.loggers if isinstance(x, Events) and _same(Path(x.save_dir), run_folder(trainer))), None)


def _live(trainer: L.Trainer, metrics: MetricsCSV) -> set[str]:
    """What this run's loggers write to already."""
    live = {"metrics.csv"} if metrics.has_rows else set()
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and _same(Path(logger.log_dir), run_folder(trainer) / "tensorboard"):
            live |= {"tensorboard"} if not isinstance(logger, Events) or logger.began else set()
    return live


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
