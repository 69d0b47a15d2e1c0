"""Checks whether a checkpoint belongs to a model, before anything is written."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from varrl_lightning.errors import CheckpointError
from varrl_lightning.policies.averaging import has_average
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies.read_checkpoint import read_sharded
from varrl_lightning.strategies.zero_checkpoints import is_zero_folder
from varrl_lightning.weights.loading import differences

SHOWN = 10
Parts = Literal["weights", "outline"]


def check_checkpoint(path: str | Path, model: L.LightningModule, wanted: Mapping[str, Tensor]) -> None:
    """Read a checkpoint and compare it with the model; the model's weights stay as they are, its counters move.

    A checkpoint folder of DeepSpeed's is not read here: its engine checks it on loading.

    Args:
        wanted: the tensors that a checkpoint of the model holds.

    Raises:
        CheckpointError: when the file is no checkpoint, or has missing, unexpected or misshaped tensors; lists them.
        ValueError: raised by the model's `on_load_checkpoint`.
    """
    if not is_zero_folder(path):
        _fitting(path, model, wanted, "outline")


def load_checkpoint(path: str | Path, model: L.LightningModule, wanted: Mapping[str, Tensor]) -> None:
    """Check a checkpoint as above, and load its weights into the model.

    Raises:
        CheckpointError: as above.
        ValueError: as above.
    """
    model.load_state_dict(_fitting(path, model, wanted, "weights")["state_dict"])


def _fitting(path: str | Path, model: L.LightningModule, wanted: Mapping[str, Tensor], parts: Parts) -> dict[str, Any]:
    checkpoint = _read(path, parts)
    held, expected = (any(map(is_adapter, names)) for names in (checkpoint["state_dict"], wanted))
    if held != expected:
        raise CheckpointError(
            f"{path} holds {'an' if held else 'no'} adapter, the policy of this configuration has {'none' if held else 'one'}. "
            "Use the config.yaml that lies in the checkpoint's run folder."
        )
    held, expected = has_average(checkpoint["state_dict"]), has_average(wanted)
    if held != expected:
        raise CheckpointError(
            f"{path} holds {'an' if held else 'no'} average of the weights, this configuration has {'none' if held else 'one'}. "
            f"Set model.ema_decay {'as in' if held else 'to null, as in'} the config.yaml that lies in the checkpoint's run folder."
        )
    problems = differences(checkpoint["state_dict"], wanted)
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise CheckpointError(
            f"the checkpoint {path} does not fit the model of this configuration:\n  "
            + "\n  ".join(problems[:SHOWN] + more)
            + "\nUse the config.yaml that lies in the checkpoint's run folder."
        )
    model.on_load_checkpoint(checkpoint)
    return checkpoint


def _read(path: str | Path, parts: Parts) -> dict[str, Any]:
    try:
        if Path(path).is_dir():
            return read_sharded(path, parts)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (ValueError, ModuleNotFoundError) as error:  # of a folder
        raise CheckpointError(f"{error}{_others(Path(path))}") from error
    except OSError as error:
        raise CheckpointError(no_checkpoint(path, error.strerror or str(error))) from error
    except (RuntimeError, EOFError, IndexError, KeyError, CheckpointException, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is no checkpoint of a fit run, or is damaged: {reason}{_others(Path(path))}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is no checkpoint of a fit run: it has no state_dict")
    return checkpoint


def no_checkpoint(path: str | Path, why: str) -> str:
    """Say that a checkpoint cannot be read, what lies beside it, and what may be given."""
    beside = _others(Path(path))
    return f"cannot read the checkpoint {path}: {why}{beside}. Give a path, or `last` or `best` for those of the run folder"


def _others(path: Path) -> str:
    """A sentence that names the other checkpoints in the folder, or an empty one."""
    others = sorted(str(p) for p in path.parent.glob("*.ckpt*") if p.name != path.name)
    return f". Beside it: {', '.join(others)}" if others else ""
