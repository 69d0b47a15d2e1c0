"""Checkpoints of DeepSpeed: folders that all processes write together and one process reads."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.imports import RequirementCache

from varrl_lightning.policies.lora import is_adapter

REQUIREMENT = "deepspeed>=0.19"
_PART = "*_optim_states.pt"
"""The name of the one such file of each process."""
_ENGINE_KEYS = (
    "module",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "frozen_param_fragments",
    "buffer_names",
    "shared_params",
)
"""Keys that DeepSpeed adds to a checkpoint for itself."""


def check_installed() -> None:
    """Check, before DeepSpeed is imported, that it is installed.

    Raises:
        ModuleNotFoundError: when it is not; names the command that installs it.
    """
    if not RequirementCache(REQUIREMENT):
        raise ModuleNotFoundError(f"ZeRO needs {REQUIREMENT}, which is not installed: pip install 'varrl-lightning[deepspeed]'")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns when it finds out by itself


def is_zero_folder(path: str | Path) -> bool:
    """Whether a path is a folder that DeepSpeed has written to its end."""
    return (Path(path) / "latest").is_file()


def count_writers(folder: Path) -> int:
    """The number of processes that wrote a folder; 0 where it is no folder of DeepSpeed's."""
    return len(list((folder / "checkpoint").glob(_PART)))


def read_zero_folder(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's folder as the checkpoint of a run on one process, without the optimizer; weights in fp32.

    Of a policy with an adapter `state_dict` holds the adapter alone. The folder's pickles are trusted.

    Raises:
        ModuleNotFoundError: without DeepSpeed.
        ValueError: when it is no folder of DeepSpeed's, or was not written to its end.
    """
    folder = Path(path)
    states = sorted((folder / "checkpoint").glob("*mp_rank_00_model_states.pt"))
    if not states or not (folder / "latest").is_file():
        raise ValueError(
            f"{path} is no checkpoint of DeepSpeed's, or was not written to its end: it has no file 'latest' beside a folder "
            "'checkpoint'"
        )
    check_installed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # it reports its progress
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="checkpoint")
    adapted = any(map(is_adapter, weights))
    rest = torch.load(states[0], map_location="cpu", weights_only=False)
    kept = {name: value for name, value in rest.items() if name not in _ENGINE_KEYS}
    return kept | {"state_dict": {name: x.detach().clone() for name, x in weights.items() if is_adapter(name) or not adapted}}
