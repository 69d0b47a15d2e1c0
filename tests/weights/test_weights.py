"""Weights are read from real files and a real hub protocol, and load whole or not at all."""

from __future__ import annotations

import argparse
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from varrl_lightning.weights.loading import differences, load_strictly, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([3, 1]), "c": torch.ones(2, dtype=torch.bfloat16)}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor] = TENSORS) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(x, wanted[k]) and x.dtype == wanted[k].dtype for k, x in found.items())


def write_shards(folder: Path, ending: str, index: str) -> None:
    """The three tensors in two files, as transformers writes them."""
    save: Callable[[Any, Path], None] = save_file if ending == "safetensors" else torch.save
    homes = {"a.weight": f"part-1.{ending}", "b": f"part-2.{ending}", "c": f"part-2.{ending}"}
    for shard in set(homes.values()):
        save({name: x for name, x in TENSORS.items() if homes[name] == shard}, folder / shard)
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 44}, "weight_map": homes}))


# --- files ----------------------------------------------------------------------------------------------------------------


def test_a_safetensors_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert same(read_tensors(tmp_path / "x.safetensors"))
    assert same(read_tensors(str(tmp_path / "x.safetensors")))


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_new_or_old(tmp_path: Path, ending: str, zipped: bool) -> None:
    torch.save(TENSORS, tmp_path / f"x.{ending}", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / f"x.{ending}"))


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(TENSORS, tmp_path / "x.safetensors")
    assert same(read_tensors("~/x.safetensors"))


def test_the_first_nested_name_that_is_there_is_taken(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {"b": torch.zeros(1)}, "ema": TENSORS}, tmp_path / "x.pt")
    assert same(read_tensors(tmp_path / "x.pt", nested=("vae", "ema", "model")))


def test_a_plain_state_dict_needs_no_nested_name(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pt")
    assert same(read_tensors(tmp_path / "x.pt", nested=("vae",)))


def test_a_tensor_of_a_nested_name_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"model": torch.zeros(2)}, tmp_path / "x.pt")
    assert read_tensors(tmp_path / "x.pt", nested=("model",)).keys() == {"model"}


def test_other_names_are_listed_when_the_tensors_are_nested(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "trainer": TENSORS}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"\(looked for vae, ema\).* epoch \(int\), trainer \(dict\); all its names: epoch, trainer"
    ):
        read_tensors(tmp_path / "x.pt", nested=("vae", "ema"))


def test_values_beside_the_nested_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"vae": {"w": torch.zeros(1), "config": {}}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"under 'vae', holds more than named tensors: config \(dict\); all its names: w, config$"):
        read_tensors(tmp_path / "x.pt", nested=("vae",))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a list; expected a dict of tensors"):
        read_tensors(tmp_path / "x.pt")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "args": argparse.Namespace(lr=1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"would call argparse\.Namespace when read.*any code.*refused.*save_file"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_note_of_git_lfs_is_recognised(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 7\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("keep", [0, 1, 20, 100, -1])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_a_file_that_is_cut_short(tmp_path: Path, kind: str, keep: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(TENSORS, whole)
    else:
        torch.save(TENSORS, whole, _use_new_zipfile_serialization=kind == "zip")
    cut.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"\(\d+ bytes\) is damaged, cut short or no weights file .*download it again"):
        read_tensors(cut)


def test_a_plain_pickle_is_no_weights_file(tmp_path: Path) -> None:
    """Not read at all, since it may hold code: never the advice to load it without a check."""
    for content in ({"w": 1}, {"w": Path("x")}):
        (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"was not written by torch.save. A pickle can run any code, so this one is refused"):
            read_tensors(tmp_path / "x.pth")


def test_another_ending(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    with pytest.raises(ValueError, match=r"no ending of a weights file; expected \.safetensors, \.pth"):
        read_tensors(tmp_path / "x.onnx")


def test_a_file_has_no_files_in_it(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"is a file, and holds no y\.pth"):
        read_tensors(tmp_path / "x.safetensors", "y.pth")


# --- folders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "index"),
    [("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")],
)
def test_shards_by_their_index(tmp_path: Path, ending: str, index: str) -> None:
    write_shards(tmp_path, ending, index)
    assert same(read_tensors(tmp_path))
    assert same(read_tensors(tmp_path, index))
    assert same(read_tensors(tmp_path / index))


def test_a_folder_of_one_file_or_a_named_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    torch.save(TENSORS, tmp_path / "x.pth")
    assert same(read_tensors(tmp_path))
    save_file({"other": torch.zeros(1)}, tmp_path / "y.safetensors")
    assert same(read_tensors(tmp_path, "x.pth"))
    with pytest.raises(ValueError, match=r"has 2 weights files, x\.pth, y\.safetensors; give the file name"):
        read_tensors(tmp_path)


def test_the_names_that_transformers_writes_come_first(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"other": torch.zeros(1)}, tmp_path / "vae.pth")
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert same(read_tensors(tmp_path))


def test_an_inner_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write_shards(tmp_path / "inner", "safetensors", "some.safetensors.index.json")
    assert same(read_tensors(tmp_path, "inner"))
    assert same(read_tensors(tmp_path, "inner/"))
    assert same(read_tensors(tmp_path, "inner/some.safetensors.index.json"))
    with pytest.raises(FileNotFoundError, match=r"has no weights file \(\*\.safetensors.*it has inner/part-1.safetensors"):
        read_tensors(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it has nothing"):
        read_tensors(tmp_path)


def test_a_folder_without_the_named_file(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    with pytest.raises(FileNotFoundError, match=r"has no file y\.pth; it has x\.pth"):
        read_tensors(tmp_path, "y.pth")


def test_a_missing_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, "bin", "pytorch_model.bin.index.json")
    (tmp_path / "part-2.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"names the shard part-2\.bin, which is missing"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, "bin", "pytorch_model.bin.index.json")
    torch.save(TENSORS, tmp_path / "part-2.bin")
    with pytest.raises(ValueError, match=r"a\.weight is in two shards, part-1\.bin and part-2\.bin"):
        read_tensors(tmp_path)


def test_a_shard_without_a_promised_tensor(tmp_path: Path) -> None:
    write_shards(tmp_path, "bin", "pytorch_model.bin.index.json")
    torch.save({"b": TENSORS["b"]}, tmp_path / "part-2.bin")
    with pytest.raises(ValueError, match=r"part-2\.bin holds c, but it does not"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="is no index of shards: expected JSON with a 'weight_map'"):
        read_tensors(tmp_path)


# --- the hub --------------------------------------------------------------------------------------------------------------


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


# --- loading --------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.linear.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def small_tensors() -> dict[str, Tensor]:
    return {"linear.weight": torch.arange(6.0).view(3, 2), "linear.bias": torch.ones(3), "count": torch.tensor([4, 5])}


def on_meta() -> Small:
    with torch.device("meta"):
        return Small()


@pytest.mark.parametrize("make", [Small, on_meta])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_fits_is_loaded(make: Callable[[], Small], dtype: torch.dtype | None) -> None:
    module, tensors = make(), small_tensors()
    load_strictly(module, tensors, "x.pth", dtype=dtype)
    assert all(torch.equal(x, tensors[name].to(x.dtype)) for name, x in module.state_dict().items())
    assert module.linear.weight.dtype == (dtype or torch.float32)
    assert module.count.dtype == torch.int64
    assert module.linear.weight.requires_grad
    assert not module.linear.bias.requires_grad


@pytest.mark.parametrize("make", [Small, on_meta])
def test_a_bf16_file_is_loaded_as_float32(make: Callable[[], Small]) -> None:
    module = make()
    load_strictly(module, {name: x.bfloat16() if x.is_floating_point() else x for name, x in small_tensors().items()}, "x.pth")
    assert module.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("make", [Small, on_meta])
def test_the_module_shares_no_memory_with_the_file(make: Callable[[], Small], tmp_path: Path) -> None:
    torch.save(small_tensors(), tmp_path / "x.pth")
    module, tensors = make(), read_tensors(tmp_path / "x.pth")
    load_strictly(module, tensors, "x.pth")
    for name, x in module.state_dict().items():
        x.zero_()
        assert torch.equal(tensors[name], small_tensors()[name])


def test_loading_keeps_the_parameters_that_an_optimizer_knows() -> None:
    module = Small()
    weight = module.linear.weight
    load_strictly(module, small_tensors(), "x.pth")
    assert module.linear.weight is weight


def test_transposed_tensors_are_loaded_contiguously() -> None:
    module = on_meta()
    load_strictly(module, small_tensors() | {"linear.weight": torch.arange(6.0).view(2, 3).T}, "x.pth")
    assert module.linear.weight.is_contiguous()
    assert module.linear.weight.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("make", [Small, on_meta])
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(make: Callable[[], Small]) -> None:
    module = make()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    tensors = small_tensors() | {"linear.weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    del tensors["count"]
    with pytest.raises(ValueError, match="does not fit") as error:
        load_strictly(module, tensors, "some/file.pth")
    assert str(error.value).splitlines() == [
        "some/file.pth does not fit Small:",
        "  misshaped linear.weight: [2, 3] in the file, [3, 2] in the model",
        "  missing count [2]",
        "  unexpected extra [1]",
    ]
    assert all(x.is_meta or torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_a_long_list_of_differences_is_cut() -> None:
    with pytest.raises(ValueError, match=r"\.\.\. and 13 more$"):
        load_strictly(Small(), {str(i): torch.zeros(1) for i in range(30)}, "x.pth")


def test_an_integer_is_no_float() -> None:
    with pytest.raises(ValueError, match=r"count is torch\.float32 in the file, torch\.int64 in the model"):
        load_strictly(Small(), small_tensors() | {"count": torch.zeros(2)}, "x.pth")


def test_names_may_be_left_out_of_the_file() -> None:
    module = Small()
    extra = {"blocks.0.zero_k_bias": torch.zeros(1), "mask": torch.zeros(1)}
    load_strictly(module, small_tensors() | extra, "x.pth", ignore=("*.zero_k_bias", "mask"))
    assert torch.equal(module.linear.weight, small_tensors()["linear.weight"])
    with pytest.raises(ValueError, match="unexpected mask"):
        load_strictly(module, small_tensors() | extra, "x.pth", ignore=("*.zero_k_bias", "mas"))


def test_what_no_file_holds_must_not_stay_on_meta() -> None:
    module = on_meta()
    module.register_buffer("table", torch.zeros(1, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="on the meta device that no file holds: table"):
        load_strictly(module, small_tensors(), "x.pth")


def test_no_differences() -> None:
    assert differences(TENSORS, TENSORS) == []
