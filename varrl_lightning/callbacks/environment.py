"""Where a run was made: versions, device, processes, and the commit of the code."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning as L
import torch

_PACKAGES = ("torch", "lightning", "varrl-lightning", "rapidocr", "onnxruntime")
_PACKAGE = Path(__file__).parent.parent


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that the results depend on; None for one that is not installed."""
    numbers: dict[str, str | None] = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            numbers[name] = version(name)
        except PackageNotFoundError:
            numbers[name] = None
    return numbers


def environment(trainer: L.Trainer) -> dict[str, str | int]:
    """Device, processes, precision, threads and system of a run."""
    device = trainer.strategy.root_device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": trainer.world_size,
        "nodes": trainer.num_nodes,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def commit(package: Path = _PACKAGE) -> str | None:
    """The commit of the checkout that a package is run from, with `+` where tracked files have changed; None where it is installed.

    A file that is not tracked says that another project's checkout is around an installed package.
    """
    try:
        for command in (["ls-files", "--error-unmatch", "__init__.py"], ["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"]):
            answer = subprocess.run(["git", *command], cwd=package, capture_output=True, text=True, check=True, timeout=10).stdout
            if command[0] == "rev-parse":
                head = answer.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if answer else "")
