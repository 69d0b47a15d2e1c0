"""Reads from the Hugging Face hub: its ids, its files, and what its errors mean."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<rest>[\w.-]+(/[\w.-]+)*))?")
_FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".json")


def hub_id(path: str) -> tuple[str, str]:
    """Split a hub id into `owner/name` and the file or folder in the repository, which may be empty.

    Raises:
        FileNotFoundError: when the path has not the form of a hub id, or begins with a local folder.
    """
    nothing = f"no such file or folder: {path} (seen from {Path.cwd()})"
    match = _HUB_ID.fullmatch(path)
    if match is None or (match["rest"] is None and path.endswith(_FILE_ENDINGS)):
        raise FileNotFoundError(f"{nothing}; a repository of the hub would be owner/name or owner/name/file")
    repo, owner = match["repo"], match["repo"].split("/")[0]
    if Path(owner).is_dir():
        raise FileNotFoundError(
            f"{nothing}. It was read as a path because there is a folder {owner}; if the repository {repo} of the hub is meant, "
            f"run `hf download {repo} --local-dir FOLDER` and give that folder"
        )
    return repo, match["rest"] or ""


def list_files(repo: str) -> list[str]:
    """The files of a repository; of its downloaded part when the hub is out of reach.

    Raises:
        FileNotFoundError: when the hub refuses, or is out of reach and nothing was downloaded before.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    def ask() -> list[str]:
        try:
            return HfApi().list_repo_files(repo)
        except RepositoryNotFoundError:
            raise
        except Exception:  # the hub is out of reach: the http client has many errors for it
            folder = Path(snapshot_download(repo, local_files_only=True, allow_patterns=[]))
            return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())

    files: list[str] = ask_hub(repo, "", ask)
    return files


def download(repo: str, name: str) -> Path:
    """The local path of one file of a repository, downloaded once.

    Raises:
        FileNotFoundError: as in `list_files`.
    """
    from huggingface_hub import hf_hub_download

    return Path(ask_hub(repo, name, lambda: hf_hub_download(repo, name)))


def download_matching(repo: str, patterns: Sequence[str]) -> Path:
    """The local folder of a repository's files of some patterns, downloaded once.

    Raises:
        FileNotFoundError: as in `list_files`.
    """
    from huggingface_hub import snapshot_download

    return Path(ask_hub(repo, "", lambda: snapshot_download(repo, allow_patterns=list(patterns))))


def ask_hub(repo: str, name: str, ask: Callable[[], Any]) -> Any:
    """Return the hub's answer about a repository, or about a file of that name in it.

    Raises:
        FileNotFoundError: when there is no answer; the message names the reason and a remedy.
    """
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError

    try:
        with _without_retries_in_the_log():
            return ask()
    except Exception as error:  # OSError, ValueError and the http client's errors
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


@contextmanager
def _without_retries_in_the_log() -> Iterator[None]:
    """The hub's client logs every attempt to reach it, a dozen lines; what came of them is said once, by the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
