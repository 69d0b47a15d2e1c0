"""What the names of a checkpoint's tensors tell of a model's sizes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count

import torch


def numbered(names: Iterable[str], prefix: str) -> int:
    """How many parts are numbered 0, 1, 2, ... right after a prefix: 2 for `blocks.` with `blocks.0.x` and `blocks.1.x`."""
    found = {name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)}
    return next(i for i in count() if str(i) not in found)


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str) -> torch.dtype:
    """The dtype of weights by its name in a config.

    Raises:
        ValueError: lists the names there are.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]
