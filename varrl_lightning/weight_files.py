"""Finds weights files: in local folders, and in repositories of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TORCH_ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
INDEX = ".index.json"
DEFAULTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""What a folder written by transformers is read from, the first of these that is there."""
SHOWN = 20
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<rest>[\w.-]+(/[\w.-]+)*))?")


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


def find_weights(path: str, filename: str | None = None) -> tuple[Place, str]:
    """Where the weights are, and the name of the file or of the index of shards in there.

    Raises:
        FileNotFoundError: when nothing can be found.
        ValueError: where it is open which file is meant.
    """
    place, name = _locate(path, filename)
    return place, name if name.endswith((INDEX, *ENDINGS)) else _only_file(place, name)


def read_index(place: Place, index: str) -> dict[str, set[str]]:
    """The shards that an index names, each with the names of its tensors.

    Raises:
        FileNotFoundError: when a shard is missing.
        ValueError: when the file is no index.
    """
    try:
        weight_map = json.loads(place.fetch(index).read_text(encoding="utf-8"))["weight_map"]
        homes = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place.label}/{index} is no index of shards: expected JSON with a 'weight_map' ({error!r})") from error
    folder, slash, _ = index.rpartition("/")
    shards: dict[str, set[str]] = {}
    for tensor, shard in homes.items():
        shards.setdefault(folder + slash + shard, set()).add(tensor)
    for shard in shards:
        try:
            place.fetch(shard)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{index} names the shard {shard}, which is missing: {error}") from error
    return shards


def some(names: Sequence[object]) -> str:
    """The first names of a list that may be long."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "nothing"


def first_line(error: Exception) -> str:
    """The type of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
    nothing = f"no such file or folder: {path} (seen from {Path.cwd()})"
    match = _HUB_ID.fullmatch(path)
    if match is None or (match["rest"] is None and path.endswith((INDEX, *ENDINGS))):
        raise FileNotFoundError(f"{nothing}; a repository of the hub would be owner/name or owner/name/file")
    repo, owner = match["repo"], match["repo"].split("/")[0]
    if Path(owner).is_dir():
        raise FileNotFoundError(
            f"{nothing}. It was read as a path because there is a folder {owner}; if the repository {repo} of the hub is meant, "
            f"run `hf download {repo} --local-dir FOLDER` and give that folder"
        )
    return _repository(repo), filename or match["rest"] or ""


def _only_file(place: Place, inside: str) -> str:
    """The one file that a folder is to be read from, or a folder inside it."""
    prefix = f"{inside.rstrip('/')}/" if inside else ""
    names = place.names()
    here = [n for n in names if n.startswith(prefix) and "/" not in n[len(prefix) :] and n.endswith((INDEX, *ENDINGS))]
    for default in DEFAULTS:
        if prefix + default in here:
            return prefix + default
    choices = [n for n in here if n.endswith(INDEX)] or here
    if len(choices) == 1:
        return choices[0]
    where = f"{place.label}/{inside}" if inside else place.label
    if choices:
        raise ValueError(f"{where} has {len(choices)} weights files, {some(choices)}; say which by its file name")
    raise FileNotFoundError(f"{where} has no weights file (*{', *'.join(ENDINGS)}); it has {some(names)}")


def _folder(folder: Path) -> Place:
    def names() -> list[str]:
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    def fetch(name: str) -> Path:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the folder {folder} has no file {name}; it has {some(names())}")
        return folder / name

    return Place(str(folder), names, fetch)


def _repository(repo: str) -> Place:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    def listed() -> list[str]:
        try:
            return HfApi().list_repo_files(repo)
        except RepositoryNotFoundError:
            raise
        except Exception:  # out of reach, which the http client has its own errors for: what was downloaded before will do
            return _folder(Path(snapshot_download(repo, local_files_only=True, allow_patterns=[]))).names()

    def names() -> list[str]:
        found: list[str] = _asked(repo, "", listed)
        return found

    def fetch(name: str) -> Path:
        return Path(_asked(repo, name, lambda: hf_hub_download(repo, name)))

    return Place(repo, names, fetch)


def _asked(repo: str, name: str, ask: Callable[[], Any]) -> Any:
    """The hub's answer; its refusals are explained in terms of what can be done."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        return ask()
    except Exception as error:  # OSError, ValueError and the http client's own errors
        if isinstance(error, GatedRepoError):
            why = f"is gated: agree to its terms at https://huggingface.co/{repo} and log in (`hf auth login`)"
        elif isinstance(error, RepositoryNotFoundError):
            why = "does not exist, or is private (`hf auth login`)"
        elif isinstance(error, RemoteEntryNotFoundError):
            why = f"has no file {name}"
        else:
            why = f"could not be reached, and {name or 'it'} was not downloaded before ({first_line(error)})"
        download = " ".join(["hf download", *filter(None, (repo, name)), "--local-dir FOLDER"])
        raise FileNotFoundError(
            f"{repo} is no path here, and as a repository of the Hugging Face hub it {why}. To do without the hub: run "
            f"`{download}` where there is a connection, and give that path here"
        ) from error
