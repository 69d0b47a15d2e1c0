"""Paths of a run's files, and messages for its user."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of all files that a run writes: the Trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir)


def checkpoint_path(trainer: L.Trainer, name: str) -> Path:
    """The path of the run's `last`, to resume from, or of its `best`."""
    return checkpoint_in(run_folder(trainer), name)


def checkpoint_in(folder: str | Path, name: str) -> Path:
    """The path of `last` or `best` of the run in a folder."""
    return Path(folder) / "checkpoints" / f"{name}.ckpt"


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
