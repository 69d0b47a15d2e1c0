from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import lightning as L
import pytest
import torch

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.callbacks import Checkpoints, SafeStop


def validated(callback: Checkpoints, folder: Path, **metrics: float) -> list[str]:
    """The checkpoints that one validation with these metrics writes."""
    saved: list[str] = []
    fake: Any = MagicMock(spec=L.Trainer)
    fake.sanity_checking = fake.fast_dev_run = False
    fake.state = SimpleNamespace(fn="fit")
    fake.callback_metrics = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    fake.save_checkpoint = lambda path, weights_only: saved.append(Path(path).name)
    callback.dirpath = str(folder)
    callback.on_validation_end(fake, small_module())
    return saved


def test_best_is_the_highest_word_accuracy_whatever_the_reward(tmp_path: Path) -> None:
    callback = Checkpoints()
    assert validated(callback, tmp_path, val_word_accuracy=0.5, val_reward=0.9) == ["best.ckpt", "last.ckpt"]
    assert validated(callback, tmp_path, val_word_accuracy=0.4, val_reward=1.0) == ["last.ckpt"]
    assert validated(callback, tmp_path, val_word_accuracy=0.6, val_reward=0.1) == ["best.ckpt", "last.ckpt"]


def test_best_is_the_highest_reward_where_nothing_reads(tmp_path: Path) -> None:
    callback = Checkpoints()
    assert validated(callback, tmp_path, val_reward=float("nan")) == ["last.ckpt"]
    assert validated(callback, tmp_path, val_reward=-0.2) == ["best.ckpt", "last.ckpt"]
    assert validated(callback, tmp_path, val_reward=-0.3) == ["last.ckpt"]
    assert validated(callback, tmp_path, val_reward=float("nan")) == ["last.ckpt"]


def test_a_resumed_run_does_not_take_a_worse_value_for_the_best(tmp_path: Path) -> None:
    first, second = Checkpoints(), Checkpoints(every_n_steps=7)
    validated(first, tmp_path, val_reward=0.5)
    second.load_state_dict(first.state_dict())
    assert first.state_key == second.state_key
    assert validated(second, tmp_path, val_reward=0.4) == ["last.ckpt"]


def test_last_and_best_are_two_files_that_lightning_finds(tmp_path: Path) -> None:
    module = small_module()
    fit = trainer(tmp_path, [SafeStop(), Checkpoints(every_n_steps=1)], max_steps=7, val_check_interval=3)
    fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert fit.checkpoint_callback.last_model_path == str(tmp_path / "checkpoints" / "last.ckpt")
    assert fit.checkpoint_callback.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    fit = trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=8)
    resumed = small_module()
    fit.fit(resumed, datamodule=datamodule(tmp_path / "data"), ckpt_path="last")
    assert resumed.rollouts_done == 8


def test_a_save_that_is_cut_off_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = small_module()
    fit = trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=1)
    fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    path = tmp_path / "checkpoints" / "last.ckpt"
    former = path.read_bytes()
    fit = trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=2)
    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.write", cut_off)
    with pytest.raises(OSError, match="no space left"):
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"), ckpt_path=str(path))
    assert path.read_bytes() == former


def cut_off(self: Any, data: bytes) -> int:
    self.f.write(data[: len(data) // 2])
    raise OSError("no space left on device")


def test_it_refuses_a_negative_interval() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be 0"):
        Checkpoints(every_n_steps=-1)
