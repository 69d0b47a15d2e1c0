"""Reads weights, and loads them only where every name and shape fits."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from varrl_lightning.weights.files import INDEX, SHOWN, find_weights, read_index, shortened
from varrl_lightning.weights.hub import first_line

PICKLE = b"\x80"
"""First byte of a pickle that is no archive of torch.save."""


def read_tensors(path: str | Path, filename: str | None = None, nested: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read named tensors onto the CPU, without running any code that a file may hold.

    The network is used only when `path` is nothing local and has the form of a hub id.

    Args:
        path: a file (.safetensors, .pth, .pt, .bin, .ckpt), a folder, or a hub id `owner/name` or `owner/name/file.pth`. A folder
            or repository holds one weights file, or an index of shards as transformers writes it.
        filename: the file, index or inner folder to read of a folder or repository.
        nested: names under which a torch file may keep its tensors, such as `("ema", "model")`; the first that exists is taken.

    Raises:
        FileNotFoundError: when there is no such file, here or on the hub; the message names what was tried and how to download it.
        ValueError: for a file that is damaged or holds more than tensors, and when several files could be meant.
    """
    place, name = find_weights(str(path), filename)
    if not name.endswith(INDEX):
        return _read_file(place.fetch(name), nested)
    tensors: dict[str, Tensor] = {}
    shard_of: dict[str, str] = {}
    for shard, listed in read_index(place, name).items():
        part = _read_file(place.fetch(shard), nested)
        if duplicates := sorted(part.keys() & tensors.keys()):
            raise ValueError(f"{place.label}: the tensor {duplicates[0]} is in two shards, {shard_of[duplicates[0]]} and {shard}")
        if absent := sorted(listed - part.keys()):
            raise ValueError(f"{place.label}: by {name}, {shard} holds {shortened(absent)}, but it does not; download both again")
        tensors |= part
        shard_of |= dict.fromkeys(part, shard)
    return tensors


def differences(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that are missing, unexpected or of another shape, one line each; empty when all fit."""
    problems = [f"missing {name} {list(wanted[name].shape)}" for name in wanted.keys() - tensors.keys()]
    problems += [f"unexpected {name} {list(tensors[name].shape)}" for name in tensors.keys() - wanted.keys()]
    problems += [
        f"misshaped {name}: {list(tensors[name].shape)} in the file, {list(wanted[name].shape)} in the model"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name].shape
    ]
    return sorted(problems)


def load_strictly(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, ignore: Sequence[str] = (), dtype: torch.dtype | None = None
) -> None:
    """Load tensors into a module whose names and shapes are exactly theirs; the module remembers their `source`.

    A module on the `meta` device gets its memory here; none of it is shared with `tensors`.

    Args:
        source: the file that the tensors are from, for the message.
        ignore: patterns (`*`, `?`) of names that are left out of `tensors`.
        dtype: of all floating-point tensors; None keeps the module's dtype, or takes float32 for a module on `meta`.

    Raises:
        ValueError: when a tensor is missing, unexpected, misshaped or of another kind (integer, float); lists them.
    """
    kept = {name: x for name, x in tensors.items() if not any(fnmatchcase(name, pattern) for pattern in ignore)}
    wanted = module.state_dict()
    problems = differences(kept, wanted) or [
        f"{name} is {kept[name].dtype} in the file, {x.dtype} in the model"
        for name, x in wanted.items()
        if kept[name].is_floating_point() != x.is_floating_point()
    ]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        raise ValueError(f"{source} does not fit {type(module).__name__}:\n  " + "\n  ".join(problems[:SHOWN] + more))
    if any(x.is_meta for x in wanted.values()):
        module.load_state_dict({name: _owned(kept[name], x, dtype) for name, x in wanted.items()}, assign=True)
    else:
        if dtype is not None:
            module.to(dtype)
        module.load_state_dict(kept)
    unloaded = [name for name, x in [*module.named_parameters(), *module.named_buffers()] if x.is_meta]
    if unloaded:
        raise ValueError(
            f"{type(module).__name__} has tensors on the meta device that no file holds: {shortened(unloaded)}; "
            "build them on another device"
        )
    module.__dict__["source"] = source


def _owned(tensor: Tensor, place: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy for the module: the memory of a mapped file must not become the model's."""
    if not place.is_floating_point():
        dtype = place.dtype
    elif dtype is None:
        dtype = torch.float32 if place.is_meta else place.dtype
    return tensor.to(dtype=dtype, copy=True, memory_format=torch.contiguous_format)


def _read_file(path: Path, nested: Sequence[str]) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(19) == b"version https://git":
            raise ValueError(f"{path} holds not the weights but a Git LFS pointer to them; run `git lfs pull` in its folder")
    if path.suffix != ".safetensors":
        return _named_tensors(_unpickle(path), path, nested)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from error
    return tensors


def _unpickle(path: Path) -> Any:
    """The content of a torch file, as far as it is tensors and plain values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning about pickle protocols precedes the error that is raised anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None and _first_byte(path) != PICKLE:
            raise _damaged(path, error) from error
        what = f"would call {unsafe[1]} when read" if unsafe else "was not written by torch.save"
        raise ValueError(
            f"{path} is a pickle that holds more than tensors, and {what}. A pickle can run any code, so "
            "this one is refused. Where you trust its author, load it once with torch.load(..., weights_only=False) and write its "
            "dict of tensors with safetensors.torch.save_file"
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise _damaged(path, error) from error


def _first_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1)


def _damaged(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size
    return ValueError(f"{path} ({size} bytes) is damaged, cut short or no weights file ({first_line(error)}); download it again")


def _named_tensors(content: Any, path: Path, nested: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the first of the `nested` ones."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a dict of tensors")
    under = next((name for name in nested if isinstance(content.get(name), Mapping)), None)
    values = content if under is None else content[under]
    others = [f"{name} ({type(x).__name__})" for name, x in values.items() if not (isinstance(x, Tensor) and isinstance(name, str))]
    if others:
        where = f", under {under!r}," if under else f" (looked for {', '.join(nested)})" if nested else ""
        raise ValueError(
            f"{path}{where} holds more than named tensors: {shortened(others)}; all its names: {shortened(list(values))}"
        )
    return dict(values)
