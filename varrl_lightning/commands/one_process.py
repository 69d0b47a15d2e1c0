"""What commands share that measure a configuration's model on one process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy

RANKS = ("WORLD_SIZE", "SLURM_NTASKS")


def refuse_ranks(command: str) -> None:
    """Check that a command was started as one process.

    Raises:
        ConfigError: names the variable of the launcher.
    """
    for name in RANKS:
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(f"{command} measures on one process, but {name} is {os.environ[name]}: start it without a launcher")


def device_of(name: str | None, accelerator: object) -> torch.device:
    """The device that was named; else a GPU, where there is one and `trainer.accelerator` is not the CPU."""
    if name is not None:
        return torch.device(name)
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def built_for_measuring(config: ParsedConfig, device: str | None) -> tuple[VARGRPO, PromptDataModule, str | None]:
    """The module on its device and at the checkpoint that was given, its data with training prompts, and the checkpoint's path.

    Raises:
        ConfigError, StartError: as for `fit`.
    """
    model, data = config.build()
    with reraise_as(StartError, ValueError, OSError, RuntimeError):
        model.to(device_of(device, config.get("trainer.accelerator")))
        if isinstance(model.reference, VARPolicy):
            model.reference.to(model.policy.device)
        data.setup("fit")
        data.train_dataloader()  # says what to set where there are no training prompts
        if checkpoint := config.checkpoint():
            load_checkpoint(checkpoint, model, model.saved_tensors())
    return model, data, checkpoint


def writable_file(option: str, name: str | None) -> Path | None:
    """The file of an option, checked before a measurement, which may take hours.

    Raises:
        ConfigError: when it cannot be written.
    """
    if name is None:
        return None
    path = Path(name)
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{option} {name} cannot be written: expected a file in a folder that exists and can be written to")
    return path


def write_json(path: Path, answer: Mapping[str, object]) -> int:
    """Write a measurement; returns the exit status."""
    try:
        replace_text(path, json.dumps(answer, indent=2) + "\n")
    except OSError as error:
        print(f"varrl: could not write {path}: {error}", file=sys.stderr)
        return FAILED
    return 0
