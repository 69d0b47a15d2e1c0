"""Noise with keys: every row has a key, every token gets one uniform from it.

The generator is counter-based (SplitMix64 in wrap-around int64 arithmetic), so a number depends on nothing but its key and its
counter: not on the micro-batch, the number of processes, the device, or where a run was resumed.
"""

from __future__ import annotations

from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_UNIFORMS = 0x5851F42D4C957F2D
"""Separates the uniforms of a key from its children."""


def row_key(seed: int, update: int, prompt_id: str) -> int:
    """Return the key of a prompt's noise in one update, a signed 64-bit integer; the same in every process and Python version.

    Examples:
        >>> key = row_key(seed=0, update=3, prompt_id="cat")
        >>> key == row_key(0, 3, "cat")
        True
        >>> key in (row_key(1, 3, "cat"), row_key(0, 4, "cat"), row_key(0, 3, "dog"))
        False
    """
    digest = blake2b(f"{seed}\x1f{update}\x1f{prompt_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def fold(keys: Int[Tensor, " R"], index: Int[Tensor, " R"] | int) -> Int[Tensor, " R"]:
    """Derive child key number `index` of each key: a branch, a continuation.

    Examples:
        >>> children = fold(torch.tensor([7, 7, 8]), torch.tensor([0, 1, 0]))
        >>> len(set(children.tolist()))  # another key or another index gives another child
        3
        >>> torch.equal(fold(torch.tensor([7]), 0), children[:1])  # whatever else is in the batch
        True
    """
    counter = torch.as_tensor(index, dtype=torch.int64, device=keys.device)
    return _mix(keys + _mix((counter + 1) * _GAMMA))


def uniforms(keys: Int[Tensor, " R"], scale: int, count: int) -> Float[Tensor, "R count"]:
    """Generate `count` uniform numbers of each key for one scale, float32 in [0, 1): multiples of 2^-24, so never 1.

    Args:
        count: n_t, or n_t * bits; the first numbers do not depend on it.

    Examples:
        >>> keys = torch.tensor([7, 8])
        >>> numbers = uniforms(keys, scale=2, count=4096)
        >>> torch.equal(uniforms(keys[1:], scale=2, count=3), numbers[1:, :3])  # a row alone, fewer numbers: the same ones
        True
        >>> (numbers.mean(dim=1) - 0.5).abs() < 0.02
        tensor([True, True])
    """
    stream = fold(keys ^ _UNIFORMS, scale)[:, None]
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    return _shift(_mix(stream + counter * _GAMMA), 40).to(torch.float32).mul(2.0**-24)


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's finaliser: a bijection of 64-bit words whose output bits each depend on all input bits."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """Shift right and fill with zeros: int64's own shift repeats the sign."""
    return torch.bitwise_and(x >> by, 2 ** (64 - by) - 1)
