"""Weights by hub id, over a real hub protocol."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from tests.weights.stored import TENSORS, same, write_shards
from varrl_lightning.weights.hub import ask_hub
from varrl_lightning.weights.loading import read_tensors


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline, with a cache of `some/model` that holds x.pth and a sharded `big` folder."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    files = repository / "snapshots" / commit
    (files / "big").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    torch.save(TENSORS, files / "x.pth")
    write_shards(files / "big", "safetensors", "model.safetensors.index.json")
    return files


@pytest.mark.parametrize(
    ("path", "filename"),
    [
        ("some/model", None),
        ("some/model", "x.pth"),
        ("some/model/x.pth", None),
        ("some/model/big", None),
        ("some/model", "big"),
        ("some/model/big/model.safetensors.index.json", None),
    ],
)
def test_what_was_downloaded_before_is_read_offline(hub_cache: Path, path: str, filename: str | None) -> None:
    assert same(read_tensors(path, filename))


@pytest.mark.parametrize(("path", "file"), [("some/other", ""), ("some/other/y.pth", "y.pth "), ("some/model/y.pth", "y.pth ")])
def test_offline_without_a_download(hub_cache: Path, path: str, file: str) -> None:
    repo = "/".join(path.split("/")[:2])
    with pytest.raises(FileNotFoundError, match=rf"could not be reached.*hf download {repo} {file}--local-dir FOLDER"):
        read_tensors(path)


@pytest.mark.parametrize(
    "path",
    ["./some/model", "/no/such", "../model", "model", "some/model.pth", "~/none/x.pth", "a/../b/x.pth", "https://x.org/a.pth"],
)
def test_what_can_be_no_hub_id_is_never_asked_for(hub_cache: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .* hub would be owner/name"):
        read_tensors(path)


def test_a_path_whose_folder_exists_is_no_hub_id(hub_cache: Path) -> None:
    Path("some").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is a folder some; if the repository some/model of the hub is meant"):
        read_tensors("some/model/x.pth")


def test_a_local_path_of_the_form_of_a_hub_id_wins(hub_cache: Path) -> None:
    Path("some/model").mkdir(parents=True)
    save_file({"local": torch.zeros(1)}, "some/model/x.safetensors")
    assert read_tensors("some/model").keys() == {"local"}


class _Hub(BaseHTTPRequestHandler):
    """Serves the cached files as the hub does, and refuses two repositories as it does."""

    files: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.asked.append(path)
        if "some/gated" in path or "some/absent" in path:
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            return self._answer(403 if "gated" in path else 404, b"", {"X-Error-Code": code})
        if "/api/models/some/model" in path:
            found = [file for file in sorted(self.files.rglob("*")) if file.is_file()]
            tree = [
                {"type": "file", "path": f.relative_to(self.files).as_posix(), "size": f.stat().st_size, "oid": "0"} for f in found
            ]
            return self._answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        file = self.files / path.partition("/resolve/main/")[2]
        headers = {"X-Repo-Commit": "f" * 40}
        if not file.is_file():
            return self._answer(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        return self._answer(200, file.read_bytes(), headers | {"ETag": f'"{file.name}"'})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that speaks the hub's protocol, and an empty cache; yields the paths that it was asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"files": hub_cache, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}")
    yield asked
    server.shutdown()
    server.server_close()


def test_a_file_is_downloaded_and_its_repository_not_listed(hub: list[str]) -> None:
    assert same(read_tensors("some/model/x.pth"))
    assert set(hub) == {"/some/model/resolve/main/x.pth"}


def test_shards_are_downloaded_and_nothing_else(hub: list[str]) -> None:
    assert same(read_tensors("some/model", "big"))
    files = {path.rpartition("/main/")[2] for path in hub if "/resolve/" in path}
    assert files == {"big/model.safetensors.index.json", "big/part-1.safetensors", "big/part-2.safetensors"}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("some/gated/x.pth", "is gated: agree to its terms at https://huggingface.co/some/gated and log in"),
        ("some/gated", "is gated"),
        ("some/absent", "does not exist, or is private"),
        ("some/absent/x.pth", "does not exist, or is private"),
        ("some/model/y.pth", r"has no file y\.pth"),
    ],
)
def test_the_refusals_of_the_hub_are_explained(hub: list[str], path: str, why: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"as a repository of the Hugging Face hub it {why}.*hf download"):
        read_tensors(path)


def test_nothing_is_asked_for_a_local_path(hub: list[str], tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        read_tensors("./x.pth")
    assert hub == []


def test_attempts_to_reach_the_hub_are_not_logged_one_by_one() -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")
    level = logging.getLogger("huggingface_hub").level

    def ask() -> None:
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
        raise OSError("no route")

    with pytest.raises(FileNotFoundError, match=r"could not be reached, and it was not downloaded before \(OSError: no route\)"):
        ask_hub("some/where", "", ask)
    assert logging.getLogger("huggingface_hub").level == level
