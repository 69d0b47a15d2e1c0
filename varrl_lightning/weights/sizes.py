"""Reads a model's sizes from the names and shapes of a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

import torch
from torch import Tensor


def numbered(names: Iterable[str], prefix: str) -> int:
    """Count the parts numbered 0, 1, 2, ... right after a prefix: 2 for `blocks.` with `blocks.0.x` and `blocks.1.x`."""
    numbers = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    return next(i for i in count() if str(i) not in numbers)


def require(tensors: Mapping[str, Tensor], source: str, what: str, dims: Mapping[str, int]) -> None:
    """Check that the tensors from which sizes are read exist, with the right number of dimensions.

    Args:
        source: the file that the tensors are from.
        what: the kind of file that is expected.
        dims: number of dimensions of each tensor, by name.

    Raises:
        ValueError: lists those that are missing or have another number of dimensions.
    """
    absent = [name for name in dims if name not in tensors]
    misshaped = [
        f"{name} {list(tensors[name].shape)} must have {number} dimensions"
        for name, number in dims.items()
        if name in tensors and tensors[name].dim() != number
    ]
    if absent or misshaped:
        missing = [f"it has no {', '.join(absent)}"] if absent else []
        raise ValueError(f"{source} is no {what}: {'; '.join(missing + misshaped)}; it has {sorted(tensors)[:5]}, ...")


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of weights by its name in a config.

    Raises:
        ValueError: lists the known names.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
