"""Where a run's files are."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only


def run_folder(trainer: L.Trainer) -> Path:
    """The folder that holds everything a run leaves: the Trainer's `default_root_dir`."""
    return Path(trainer.default_root_dir)


def last_checkpoint(trainer: L.Trainer) -> Path:
    """The state to resume from."""
    return run_folder(trainer) / "checkpoints" / "last.ckpt"


def shown(path: Path) -> str:
    """A path as a user would type it: relative where it lies below the current folder."""
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def dry(trainer: L.Trainer) -> bool:
    """Whether this is a `fast_dev_run`, which leaves nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@rank_zero_only
def say(text: str) -> None:
    """A line for the user, once in a run of several processes."""
    print(text, flush=True)
