"""Of a folder the one weights file is read, or the shards that an index names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.stored import TENSORS, same, write_shards
from varrl_lightning.weights.loading import read_tensors


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
