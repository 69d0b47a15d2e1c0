"""Reads the files that `torch.save` wrote, without running any code that they may hold."""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varrl_lightning.weights.hub import first_line

PICKLE = b"\x80"
"""First byte of a pickle that is no archive of torch.save."""
_NUMBERS = (np.float64, np.float32, np.float16, np.int64, np.int32, np.bool_)
_NUMPY_NUMBER: Any = np.float64(0).__reduce__()[0]
"""What makes a number of numpy again from its bytes; it has no public name."""
# What trainers keep beside their tensors. Making these objects calls nothing that a file could choose: they only hold values.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    types.SimpleNamespace,
    *((pathlib.PosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((_NUMPY_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(number)) for number in _NUMBERS),
]


def read_torch_file(path: Path) -> Any:
    """The content of a torch file, as far as it is tensors, plain values and namespaces of these.

    Raises:
        ValueError: when it is damaged, or holds objects of other classes; names the first.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # a warning about pickle protocols precedes the error that is raised anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None and _first_byte(path) != PICKLE:
            raise damaged(path, error) from error
        what = f"would call {unsafe[1]} when read" if unsafe else "was not written by torch.save"
        raise ValueError(
            f"{path} is a pickle that holds more than tensors, and {what}. A pickle can run any code, so "
            "this one is refused. Where you trust its author, load it once with torch.load(..., weights_only=False) and write its "
            "dict of tensors with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> ValueError:
    """The error for a file that cannot be read."""
    size = path.stat().st_size
    return ValueError(f"{path} ({size} bytes) is damaged, cut short or no weights file ({first_line(error)}); download it again")


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)
