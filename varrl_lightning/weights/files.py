"""Finds weights files: in local folders, and in repositories of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from varrl_lightning.weights.hub import download, hub_id, list_files

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
INDEX = ".index.json"
DEFAULTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""File names that transformers writes; of a folder the first of these that exists is read."""
NO_WEIGHTS = ("metadata*.pt", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args.bin")
"""Names of files that trainers write beside weights."""
KEY = "::"
"""Between a file and the place of a state dict in it: `global_step_1000.pth::trainer/gpt_ema_fsdp`."""
SHOWN = 20
"""Number of names in a message."""


@dataclass(frozen=True)
class Place:
    """A local folder, or a repository on the hub.

    Args:
        label: its name in messages.
        names: lists the files in it, with / between folders.
        fetch: the local path of a file in it.
    """

    label: str
    names: Callable[[], list[str]]
    fetch: Callable[[str], Path]


def split_key(path: str) -> tuple[str, str]:
    """A path without the place of a state dict after `::`, and this place; empty without one."""
    file, mark, key = path.rpartition(KEY)
    return (file, key.strip("/")) if mark and not Path(path).expanduser().exists() else (path, "")


def find_weights(path: str, filename: str | None = None) -> tuple[Place, str]:
    """Find the weights: their place, and the name of the file or of the index of shards in it.

    Raises:
        FileNotFoundError: when nothing can be found.
        ValueError: when several files could be meant.
    """
    place, name = _locate(path, filename)
    return place, name if name.endswith((INDEX, *ENDINGS)) else _only_file(place, name)


def find_folder(path: str | Path) -> Place:
    """A local folder, or a repository on the hub.

    Raises:
        FileNotFoundError: when there is neither.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(local)
    if local.exists():
        raise FileNotFoundError(f"{path} is a file; expected a folder, or a repository of the hub")
    repo, inside = hub_id(str(path))
    if inside:
        raise FileNotFoundError(f"no such folder: {path}; a repository of the hub would be owner/name")
    return Place(repo, partial(list_files, repo), partial(download, repo))


def read_index(place: Place, index: str) -> dict[str, set[str]]:
    """The shards that an index names, each with the names of its tensors.

    Raises:
        FileNotFoundError: when a shard is missing.
        ValueError: when the file is no index.
    """
    try:
        weight_map = json.loads(place.fetch(index).read_text(encoding="utf-8"))["weight_map"]
        shard_of = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place.label}/{index} is no index of shards: expected JSON with a 'weight_map' ({error!r})") from error
    folder, slash, _ = index.rpartition("/")
    shards: dict[str, set[str]] = {}
    for tensor, shard in shard_of.items():
        shards.setdefault(folder + slash + shard, set()).add(tensor)
    for shard in shards:
        try:
            place.fetch(shard)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{index} names the shard {shard}, which is missing: {error}") from error
    return shards


def shortened(names: Sequence[object]) -> str:
    """A list of names for a message: the first ones, and the number of the others."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "nothing"


def _locate(path: str, filename: str | None) -> tuple[Place, str]:
    """The folder or repository, and the file or folder in it; the latter may be empty."""
    local = Path(path).expanduser()
    if local.is_dir():
        return _folder(local), filename or ""
    if local.exists():
        if filename is not None:
            raise ValueError(f"{path} is a file, and holds no {filename}; give the folder with a file name, or the file alone")
        if not local.name.endswith((INDEX, *ENDINGS)):
            raise ValueError(f"{path} has no ending of a weights file; expected {', '.join(ENDINGS)}, or an index *{INDEX}")
        return _folder(local.parent), local.name
    repo, inside = hub_id(path)
    return Place(repo, partial(list_files, repo), partial(download, repo)), filename or inside


def _only_file(place: Place, inside: str) -> str:
    """The one file that a folder is to be read from, or a folder inside it."""
    prefix = f"{inside.rstrip('/')}/" if inside else ""
    names = place.names()
    inner = [n for n in names if n.startswith(prefix) and "/" not in n[len(prefix) :] and n.endswith((INDEX, *ENDINGS))]
    candidates = [n for n in inner if not any(fnmatchcase(n[len(prefix) :], other) for other in NO_WEIGHTS)]
    for default in DEFAULTS:
        if prefix + default in candidates:
            return prefix + default
    choices = [n for n in candidates if n.endswith(INDEX)] or candidates
    if len(choices) == 1:
        return choices[0]
    where = f"{place.label}/{inside}" if inside else place.label
    if choices:
        raise ValueError(f"{where} has {len(choices)} weights files, {shortened(choices)}; give the file name")
    raise FileNotFoundError(f"{where} has no weights file (*{', *'.join(ENDINGS)}); it has {shortened(names)}")


def _folder(folder: Path) -> Place:
    def names() -> list[str]:
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def fetch(name: str) -> Path:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the folder {folder} has no file {name}; it has {shortened(names())}")
        return folder / name

    return Place(str(folder), names, fetch)
