"""Does what a run writes fit on its disk? Checkpoints, pictures and logs, against the free space."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from varrl_lightning.callbacks.run_folder import check_run_folder, shown
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_run import RunLength
from varrl_lightning.memory.forecast import optimizer_bytes
from varrl_lightning.memory.tracking import size_of
from varrl_lightning.module import VARGRPO

LOGGED = 16 << 10
"""Bytes of a step in metrics.csv and in TensorBoard's events: the quick-start has 13 kB."""
PICTURES = 32
"""Pictures of a grid where the callback is not named."""
TIGHT = 2
"""Times what is needed, below which is warned."""
MB = 1e6


def disk_has_room(model: VARGRPO, trainer: Namespace, length: RunLength, evaluates: bool) -> Finding:
    """Check that the run folder can be written to, and that its disk holds what the run will write.

    Args:
        evaluates: whether there are validation or test prompts, of which pictures are kept.

    Raises:
        StartError: when the folder cannot be used.
    """
    folder = Path(trainer.default_root_dir)
    check_run_folder(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    checkpoint = checkpoint_bytes(model)
    kept = 1 + bool(length.validations) + sum(_kept_by(callback, length) for callback in _callbacks(trainer))
    height, width = model.policy.schedule().image_size
    count = next((_argument(c, "count", PICTURES) for c in _callbacks(trainer) if _is(c, "SampleGrids")), PICTURES)
    pictures = 2 * 3 * height * width * count * (2 + length.validations) if evaluates else 0
    logs = LOGGED * (length.steps or 0)
    needed = checkpoint * (kept + 1) + pictures + logs
    figure = (
        f"{free / MB:,.0f} MB free for {shown(folder)}; {needed / MB:,.0f} MB needed: {kept} checkpoints of "
        f"{checkpoint / MB:,.1f} MB and one while it is written, {pictures / MB:,.1f} MB of pictures, {logs / MB:,.1f} MB of logs"
    )
    if free < needed:
        advice = "The disk is full before the run ends. Make room, or give a folder on another disk as trainer.default_root_dir."
        return Finding("disk", False, figure, advice)
    tight = f"Less than {TIGHT} times what is needed: earlier runs and other programs write there too."
    return Finding("disk", True, figure, tight if free < TIGHT * needed else "")


def checkpoint_bytes(model: VARGRPO) -> int:
    """Bytes of a checkpoint: the weights that it saves, and the optimizer's state."""
    trained = [p for p in model.policy.parameters() if p.requires_grad]
    state, _, _ = optimizer_bytes(model.optimizer_factory, trained, foreach=False, single=False)
    return size_of(model.saved_tensors().values()) + state


def _callbacks(trainer: Namespace) -> Iterator[Any]:
    given = trainer.callbacks
    yield from given if isinstance(given, list) else [] if given is None else [given]


def _is(callback: Any, name: str) -> bool:
    return str(getattr(callback, "class_path", "")).rpartition(".")[2] == name


def _argument(callback: Any, name: str, default: int) -> int:
    value = getattr(getattr(callback, "init_args", None), name, None)
    return default if value is None else int(value)


def _kept_by(callback: Any, length: RunLength) -> int:
    """Checkpoints that a further ModelCheckpoint keeps; with save_top_k -1 one of each `every_n_train_steps`."""
    if not _is(callback, "ModelCheckpoint"):
        return 0
    best = _argument(callback, "save_top_k", 1)
    every = _argument(callback, "every_n_train_steps", 0)
    saves = (length.steps or 0) // every if every else length.validations
    return (saves if best < 0 else best) + bool(_argument(callback, "save_last", 0))
