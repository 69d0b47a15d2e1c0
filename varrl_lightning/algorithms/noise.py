"""Noise with keys: every row has a key, every token gets one uniform from it.

The generator is counter-based (SplitMix64 in wrap-around int64 arithmetic), so a number depends on nothing but its key and its
counter: not on the micro-batch, the number of processes, the device, or where a run was resumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64
_UNIFORMS = 0x5851F42D4C957F2D
"""Separates the uniforms of a key from its children."""
_STRATA = 0x14057B7EF767814F
"""Separates the permutations of a group's key from its uniforms."""
_COMMON = 0x2545F4914F6CDD1D
"""Separates the noise that the branches of a group have in common from the branches' own."""


@dataclass(frozen=True)
class Strata:
    """The groups that rows share `[0, 1)` with: for each token, each of the A rows of a group has another A-th of it.

    Args:
        keys: noise key of each row's group.
        numbers: number of each row in its group, in [0, A).
        size: A, rows of a group, of which a batch need not hold all.

    Examples:
        The second and the last of four branches, without the others:

        >>> strata = Strata(keys=torch.tensor([5, 5]), numbers=torch.tensor([1, 3]), size=4)
        >>> (uniforms(torch.tensor([7, 8]), 0, 3, strata) * 4).long()  # the quarter of each number: never the same one
        tensor([[3, 3, 0],
                [1, 2, 2]])
    """

    keys: Int[Tensor, " R"]
    numbers: Int[Tensor, " R"]
    size: int


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


def common(keys: Int[Tensor, " R"]) -> Int[Tensor, " R"]:
    """Derive from a group's key the one whose children are noise that all of the group have in common.

    Examples:
        >>> group = torch.tensor([7, 7])  # two branches of one group
        >>> fold(common(group), 0).unique().numel()
        1
        >>> bool((fold(common(group), 0) == fold(group, 0)).any())  # no branch has this noise for itself
        False
    """
    return keys ^ _COMMON


def uniforms(keys: Int[Tensor, " R"], scale: int, count: int, strata: Strata | None = None) -> Float[Tensor, "R count"]:
    """Generate `count` uniform numbers of each key for one scale, float32 in [0, 1): multiples of 2^-24, so never 1.

    With `strata` a number is (s + u) / A rounded down to a multiple of 2^-24, where u is the number without them and s the row's
    stratum: a random permutation of 0 ... A - 1 for each group and number, which depends on the group's key alone. Every row's
    numbers are uniform on these multiples still, exactly and independently of each other; those of two rows of a group are not
    independent, for they are in different strata.

    Args:
        count: n_t, or n_t * bits; the first numbers do not depend on it.
        strata: the groups of the rows; None for rows that are independent of each other.

    Examples:
        >>> keys = torch.tensor([7, 8])
        >>> numbers = uniforms(keys, scale=2, count=4096)
        >>> torch.equal(uniforms(keys[1:], scale=2, count=3), numbers[1:, :3])  # a row alone, fewer numbers: the same ones
        True
        >>> (numbers.mean(dim=1) - 0.5).abs() < 0.02
        tensor([True, True])

        Of the two rows of a group one is in the lower half and one in the upper, whatever the number:

        >>> halves = uniforms(keys, 2, 4096, Strata(torch.tensor([5, 5]), torch.tensor([0, 1]), size=2)) < 0.5
        >>> bool((halves[0] ^ halves[1]).all())
        True
    """
    stream = fold(keys ^ _UNIFORMS, scale)[:, None]
    counter = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    steps = _shift(_mix(stream + counter * _GAMMA), 40)
    if strata is not None:
        # In integers: a float32 cannot hold s + u, and rounds the largest of them up to s + 1.
        steps = ((_strata(strata, scale, count) << 24) + steps) // strata.size
    return steps.to(torch.float32).mul(2.0**-24)


def _strata(strata: Strata, scale: int, count: int) -> Int[Tensor, "R count"]:
    """The stratum of each row for each number: the rank of its draw among the draws of all A rows of its group.

    All draws of a stream differ, since `_mix` is a bijection. They are compared one row of the group after the other, so that a
    batch needs no memory for rows that it does not hold.
    """
    stream = fold(strata.keys ^ _STRATA, scale)[:, None]
    first = torch.arange(count, device=stream.device, dtype=torch.int64) * strata.size + 1
    own = _mix(stream + (first + strata.numbers[:, None]) * _GAMMA)
    ranks = torch.zeros_like(own)
    for number in range(strata.size):
        ranks += _mix(stream + (first + number) * _GAMMA) < own
    return ranks


def _mix(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """SplitMix64's finaliser: a bijection of 64-bit words whose output bits each depend on all input bits."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Int[Tensor, "*shape"], by: int) -> Int[Tensor, "*shape"]:
    """Shift right and fill with zeros: int64's own shift repeats the sign."""
    return torch.bitwise_and(x >> by, 2 ** (64 - by) - 1)
