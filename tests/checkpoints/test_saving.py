"""A checkpoint is there whole or as it was, whatever happens to the process or the disk."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import AsyncCheckpointIO, TorchCheckpointIO

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.checkpoints.saving import _flush_all, _free_name, _publish, remove_leftovers, save_whole
from varrl_lightning.errors import SaveError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> L.Trainer:
    folder = tmp_path_factory.mktemp("trained")
    fit = trainer(folder, [], max_steps=1, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(folder / "data"))
    return fit


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file may have more than 20 kB: the kernel refuses to write on, as on a full disk."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


def steps(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["varrl"]["rollouts_done"])


# --- one file -----------------------------------------------------------------------------------------------------------------


def test_a_file_takes_its_name_when_it_is_whole(trained: L.Trainer, tmp_path: Path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    for _ in range(2):
        save_whole(trained, path)
        assert steps(path) == 1
        assert os.listdir(path.parent) == ["last.ckpt"]


def test_the_former_file_is_there_until_the_new_one_is_on_the_disk(
    trained: L.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what the system is told: all of the file is flushed, then it takes the name, then the folder is flushed."""
    path, told = tmp_path / "last.ckpt", []
    save_whole(trained, path)
    former = path.read_bytes()
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        told.append(f"flush {name.name}" if name.is_file() else "flush the folder")
        assert name.is_dir() or (steps(name) == 1 and path.read_bytes() == former)
        sync(descriptor)

    def rename(a: Any, b: Any) -> None:
        told.append(f"{Path(a).name} -> {Path(b).name}")
        assert Path(a).parent == Path(b).parent, "not on one file system, for all we know"
        replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    save_whole(trained, path)
    assert told == ["flush .last.1", ".last.1 -> last.ckpt", "flush the folder"]


def test_nothing_goes_through_the_folder_for_temporary_files(
    trained: L.Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be small, or in memory; Lightning's own saving would use it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    with pytest.raises(FileNotFoundError):
        trained.save_checkpoint(tmp_path / "own.ckpt")
    save_whole(trained, tmp_path / "last.ckpt")
    assert isinstance(trained.strategy.checkpoint_io, TorchCheckpointIO)
    assert type(trained.strategy.checkpoint_io) is TorchCheckpointIO


@pytest.mark.usefixtures("little_room")
def test_without_room_the_former_file_stays_and_the_message_says_what_to_do(trained: L.Trainer, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"former")
    with pytest.raises(SaveError) as error:
        save_whole(trained, path)
    said = str(error.value)
    for part in (str(path), "File too large", "It needs 20.0 kB or more", "are free", "untouched", "trainer.default_root_dir"):
        assert part in said
    assert path.read_bytes() == b"former"
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_of_the_kernels_own(trained: L.Trainer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    try:
        (disk / "last.ckpt").write_bytes(b"former")
        (disk / "full").write_bytes(bytes(100_000))
        with pytest.raises(SaveError, match=r"(?s)No space left on device.*It needs .* kB or more .*; 2[0-9]\.\d kB are free"):
            save_whole(trained, disk / "last.ckpt")
        assert sorted(os.listdir(disk)) == ["full", "last.ckpt"]
        assert (disk / "last.ckpt").read_bytes() == b"former"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_made_is_said_alike(trained: L.Trainer, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with pytest.raises(SaveError, match=r"(?s)checkpoints/last.ckpt could not be saved: Not a directory.*There is none before it"):
        save_whole(trained, tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_another_error_stays_what_it_is(tmp_path: Path) -> None:
    class Broken(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"what": lambda: None}

    fit = trainer(tmp_path, [Broken()], max_steps=1, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    with pytest.raises(AttributeError, match="pickle"):
        save_whole(fit, tmp_path / "checkpoints" / "last.ckpt")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_saving_in_the_background_is_waited_for(tmp_path: Path) -> None:
    """A file that is written later would be renamed before it is there."""
    fit = trainer(tmp_path, [], max_steps=1, enable_checkpointing=False, plugins=[AsyncCheckpointIO()])
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    save_whole(fit, tmp_path / "last.ckpt")
    assert steps(tmp_path / "last.ckpt") == 1


# --- folders ------------------------------------------------------------------------------------------------------------------


def part(path: Path, text: str) -> Path:
    """A new folder, as a sharding strategy leaves it, that has not taken the name yet."""
    new = _free_name(path)
    new.mkdir(parents=True)
    (new / "shard").write_text(text)
    return new


def test_a_folder_takes_its_name_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    _publish(part(path, "1"), path)
    seen = []

    def replace(a: Path, b: Path) -> None:
        seen.append((path / "shard").read_text())
        original(a, b)
        seen.append((path / "shard").read_text())

    original = os.replace
    monkeypatch.setattr(os, "replace", replace)
    _publish(part(path, "2"), path)
    assert seen == ["1", "2"]
    assert sorted(os.listdir(tmp_path)) == [".last.2", "last.ckpt"]
    assert os.readlink(path) == ".last.2"  # relative: a run's folder may be moved


def test_a_file_follows_a_folder_and_a_folder_a_file(trained: L.Trainer, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _publish(part(path, "1"), path)
    save_whole(trained, path)
    assert os.listdir(tmp_path) == ["last.ckpt"]
    assert steps(path) == 1
    _publish(part(path, "2"), path)
    assert (path / "shard").read_text() == "2"


def test_a_folder_of_a_copied_run_is_kept_until_the_new_one_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / "shard").write_text("copied")
    _publish(part(path, "new"), path)
    assert (path / "shard").read_text() == "new"
    assert (tmp_path / "last.ckpt.earlier" / "shard").read_text() == "copied"


def test_every_file_of_a_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = []
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "shard").touch()
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
    _flush_all(tmp_path / "a")
    assert set(flushed) == {"a", "b", "shard"}


def test_what_killed_saves_have_left_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _publish(part(path, "good"), path)
    part(path, "cut off")
    (tmp_path / ".last.3.part").mkdir()
    (tmp_path / ".last.7").write_text("cut off")
    (tmp_path / ".last.7.link").symlink_to(".last.7")
    # Among them what somebody has copied, to keep it.
    kept = {".best.3", "last.ckpt", ".last.1", "last.txt", ".lastly.4", "last.500.ckpt", "last.3.safetensors", "last.2"}
    for name in kept - {"last.ckpt", ".last.1"}:
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert set(os.listdir(tmp_path)) == kept
    assert (path / "shard").read_text() == "good"


def test_what_older_versions_have_set_aside_is_not_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    _publish(part(path, "1"), path)
    path.rename(tmp_path / "last.ckpt.earlier")
    _publish(part(path, "2"), path)
    assert len(os.listdir(tmp_path)) == 4  # two links, and what they lead to
    assert [(tmp_path / name / "shard").read_text() for name in ("last.ckpt", "last.ckpt.earlier")] == ["2", "1"]
    path.unlink()
    (tmp_path / ".last.2").rename(path)  # as in a copied run
    _publish(part(path, "3"), path)
    names = ("last.ckpt", "last.ckpt.earlier", "last.ckpt.earlier.2")
    assert [(tmp_path / name / "shard").read_text() for name in names] == ["3", "1", "2"]
