"""Checksums of tensors: they tell whether two models hold the same weights, without keeping or sending either."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

SAMPLED = 2**16
"""Entries by which a tensor that was loaded from another file is told apart, where all of them would take too long."""
CHUNK, CHUNK_IN_CACHE = 2**23, 2**18
"""Entries of a tensor that are summed at one time: 128 MiB of intermediate values; on a CPU, what its cache holds."""
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32, 16: torch.int32}
"""Integers with the bit patterns of entries of so many bytes."""


def checksums(tensors: Mapping[str, Tensor], entries: int | None = None) -> dict[str, str]:
    """Fletcher's checksum of each tensor that this process holds whole; sharded ones are left out.

        sum_i w_i,  sum_i (i + 1) w_i     modulo 2^64, over the bit patterns w of its entries

    Two tensors of fewer than 2^31 entries that differ in one entry, or in any two, never have the same checksum: |w_i - w_i'| <
    2^32, so that neither sum can wrap back. More differences than that meet by chance, about once in 2^64.

    Args:
        entries: about how many entries of each tensor to take, evenly spaced; None for all.
    """
    whole = _whole(tensors)
    marks = _fletcher(_spaced(x, entries) for x in whole.values())
    return {name: f"{_dtype(x)} {list(x.shape)} {mark}" for (name, x), mark in zip(whole.items(), marks, strict=True)}


def fingerprint(tensors: Mapping[str, Tensor], entries: int | None = None) -> str:
    """A short hash of names, shapes and numbers: the same for the same numbers in another floating-point type.

    So a file in bfloat16 has one fingerprint, whether it is loaded as bfloat16 or as float32.

    Args:
        entries: as of `checksums`.
    """
    whole = _whole(dict(sorted(tensors.items())))
    marks = _fletcher(_in_float32(_spaced(x, entries)) for x in whole.values())
    lines = [f"{name} {list(x.shape)} {mark}" for (name, x), mark in zip(whole.items(), marks, strict=True)]
    return digest(lines)


def digest(lines: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that are equal for equal lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to_local() if isinstance(x, DTensor) else x for name, x in tensors.items() if _is_whole(x)}


def _is_whole(x: Tensor) -> bool:
    if isinstance(x, DTensor):
        return all(placement.is_replicate() for placement in x.placements)
    # ZeRO-3 leaves an empty tensor in the place of a weight; what is on meta has no values yet.
    return not hasattr(x, "ds_id") and not x.is_meta


def _spaced(x: Tensor, entries: int | None) -> Tensor:
    return x.detach().flatten()[:: max(1, x.numel() // entries) if entries else 1]


def _in_float32(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _fletcher(tensors: Iterable[Tensor]) -> list[str]:
    """Both sums of each tensor, in hexadecimal digits; tensors are asked for one at a time."""
    sums = [_sums(x) for x in tensors]
    # One transfer from each device, rather than one a tensor.
    numbers = {device: iter(torch.stack([s for s in sums if s.device == device]).tolist()) for device in {s.device for s in sums}}
    pairs = [next(numbers[s.device]) for s in sums]
    return [f"{total % 2**64:016x}{placed % 2**64:016x}" for total, placed in pairs]


def _sums(x: Tensor) -> Tensor:
    if x.is_complex():
        x = torch.view_as_real(x)
    words = x.contiguous().view(torch.int8 if x.dtype == torch.bool else _WORDS[x.element_size()]).flatten()
    size = CHUNK_IN_CACHE if x.device.type == "cpu" else CHUNK
    places = torch.arange(1, min(size, words.numel()) + 1, device=x.device)
    sums = torch.zeros(2, dtype=torch.int64, device=x.device)
    for first in range(0, words.numel(), size):
        part = words[first : first + size].long()
        total = part.sum()
        sums += torch.stack((total, (part * places[: part.numel()]).sum() + first * total))
    return sums
