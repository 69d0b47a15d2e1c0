"""One process reads a folder that a sharded run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from varrl_lightning.strategies.sharded_checkpoints import read_folder
from varrl_lightning.strategies.zero_checkpoints import is_zero_folder, read_zero_folder


def read_sharded(path: str | Path, parts: Literal["weights", "outline"] = "weights") -> dict[str, Any]:
    """Read the checkpoint that a run on one process would have written, without the optimizer.

    Args:
        parts: `outline` reads no tensor of a folder of FSDP2's; DeepSpeed's are always read whole.

    Raises:
        ValueError: when it is no folder of a sharded run, or was not written to its end.
        ModuleNotFoundError: for a folder of DeepSpeed's without DeepSpeed.
    """
    return read_zero_folder(path) if is_zero_folder(path) else read_folder(path, parts)
