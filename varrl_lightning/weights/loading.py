"""Reads weights, and loads them only where every name and shape fits."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from varrl_lightning.weights.files import INDEX, KEY, SHOWN, Place, find_weights, read_index, shortened, split_key
from varrl_lightning.weights.state_dicts import position, wanted_tensors
from varrl_lightning.weights.torch_files import damaged, read_torch_file
from varrl_lightning.weights.wrappers import under_names_of, without_wrappers


def read_tensors(
    path: str | Path, filename: str | None = None, nested: Sequence[str] = (), marks: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Read named tensors onto the CPU, without running any code that a file may hold.

    The network is used only when `path` is nothing local and has the form of a hub id. Where a torch file has its tensors in an
    inner dict, as trainers write it, or wrappers have put something before all names, one line on stderr says what was taken.

    Args:
        path: a file (.safetensors, .pth, .pt, .bin, .ckpt), a folder, or a hub id `owner/name` or `owner/name/file.pth`. A folder
            or repository holds one weights file, or an index of shards as transformers writes it. `::` and a place may follow,
            where a file holds several state dicts: `global_step_1000.pth::trainer/gpt_ema_fsdp`.
        filename: the file, index or inner folder to read of a folder or repository.
        nested: names under which a torch file may keep its tensors, such as `("ema", "model")`; the first that exists is taken.
        marks: names of tensors (`*` for any characters) by which the wanted state dict is known among others in the file, and
            which show what a wrapper has put before the names; without marks only `module.`, `model.` and the like are taken off.

    Raises:
        FileNotFoundError: when there is no such file, here or on the hub; the message names what was tried and how to download it.
        ValueError: for a file that is damaged or has no tensors; where several files or state dicts could be meant: lists them.
    """
    given, key = split_key(str(path))
    place, name = find_weights(given, filename)
    if not name.endswith(INDEX):
        content = _content(file := place.fetch(name))
        shown = given if filename is None and given.endswith(file.name) else str(file)
        tensors, taken = wanted_tensors(content, shown, key, nested, marks)
        about = position(content, taken)
    else:
        if key:
            raise ValueError(f"{path}: shards hold one state dict; leave {KEY}{key} out")
        tensors, shown, taken, about = _read_shards(place, name, nested), given, "", ""
    try:
        plain, parts = without_wrappers(tensors, marks)
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from error
    if taken or parts:
        _say(shown, taken, parts, about)
    return plain


@cache
def _say_once(line: str) -> None:
    if getattr(rank_zero_only, "rank", None) in (None, 0):
        print(line, file=sys.stderr, flush=True)


def _say(file: str, taken: str, parts: Sequence[str], about: str) -> None:
    """One line about what was taken of a file; said once where it is read for several models."""
    where = f" of {taken}" if taken else ""
    without = f", names without {' and '.join(parts)}" if parts else ""
    _say_once(f"{file}: took the tensors{where}{f' ({about})' if about else ''}{without}")


def _read_shards(place: Place, index: str, nested: Sequence[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    shard_of: dict[str, str] = {}
    for shard, listed in read_index(place, index).items():
        part, _ = wanted_tensors(_content(file := place.fetch(shard)), str(file), nested=nested)
        if duplicates := sorted(part.keys() & tensors.keys()):
            raise ValueError(f"{place.label}: the tensor {duplicates[0]} is in two shards, {shard_of[duplicates[0]]} and {shard}")
        if absent := sorted(listed - part.keys()):
            raise ValueError(f"{place.label}: by {index}, {shard} holds {shortened(absent)}, but it does not; download both again")
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
    wanted = module.state_dict()
    tensors = under_names_of(wanted, tensors)
    kept = {name: x for name, x in tensors.items() if not any(fnmatchcase(name, pattern) for pattern in ignore)}
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


def _content(path: Path) -> Any:
    """What a weights file holds: named tensors, or a torch file's content."""
    with path.open("rb") as file:
        if file.read(19) == b"version https://git":
            raise ValueError(f"{path} holds not the weights but a Git LFS pointer to them; run `git lfs pull` in its folder")
    if path.suffix != ".safetensors":
        return read_torch_file(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise damaged(path, error) from error
