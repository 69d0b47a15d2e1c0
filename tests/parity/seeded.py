"""Weights that anyone can make again from a tensor's name, shape and a seed, so that no file of weights has to be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import torch
from torch import Tensor


def seeded(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """A tensor that depends on its arguments alone; no entry is degenerate, so that a wrong formula shows.

    Matrices and kernels have variance 1 / fan-in, norms' weights lie around 1, everything else around 0.
    """
    # RandomState's stream is frozen by numpy's compatibility policy; Generator's is not.
    draw = np.random.RandomState(crc32(f"{seed}/{name}".encode())).standard_normal(tuple(shape))
    x = torch.from_numpy(draw).float().reshape(tuple(shape))
    if len(shape) >= 2 and name.endswith("weight"):
        return x / math.sqrt(math.prod(shape[1:]))
    if name.endswith("weight"):
        return 1 + 0.2 * x
    return 0.3 * x


def seeded_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, Tensor]:
    """A whole state dict from names and shapes."""
    return {name: seeded(name, shape, seed) for name, shape in shapes.items()}
