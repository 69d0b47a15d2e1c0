"""A weights file is read whole, without running what it may hold, or refused with the reason."""

from __future__ import annotations

import fractions
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.weights.stored import TENSORS, same
from varrl_lightning.weights.loading import read_tensors


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


def test_values_beside_the_nested_tensors_are_named(tmp_path: Path) -> None:
    torch.save({"vae": {"w": torch.zeros(1), "config": {}}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"under 'vae', holds more than named tensors: config \(dict\); all its names: w, config$"):
        read_tensors(tmp_path / "x.pt", nested=("vae",))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds a list; expected a dict of tensors"):
        read_tensors(tmp_path / "x.pt")


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1), "args": fractions.Fraction(1, 3)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"would call fractions\.Fraction when read.*any code.*refused.*save_file"):
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
