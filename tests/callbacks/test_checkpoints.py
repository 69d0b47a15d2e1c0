from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from tests.callbacks.running import datamodule, small_module, trainer
from tests.tiny import weights
from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.errors import SaveError
from varrl_lightning.figures.tables import Metrics
from varrl_lightning.loggers import MetricsCSV


class Recorded(Checkpoints):
    """Writes nothing, and notes what it would have written."""

    def __init__(self, every_n_steps: int = 0) -> None:
        super().__init__(every_n_steps)
        self.saved: list[str] = []

    def _write(self, trainer: L.Trainer, name: str) -> None:
        self.saved.append(name)


def validated(callback: Recorded, folder: Path, **metrics: float) -> list[str]:
    """The checkpoints that one validation with these metrics writes."""
    fit = trainer(folder, [])
    fit.state.fn = TrainerFn.FITTING
    fit.callback_metrics.update({name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()})
    callback.saved = []
    callback.on_validation_end(fit, small_module())
    return callback.saved


def test_best_is_the_highest_word_accuracy_whatever_the_reward(tmp_path: Path) -> None:
    callback = Recorded()
    assert validated(callback, tmp_path, val_word_accuracy=0.5, val_reward=0.9) == ["best", "last"]
    assert validated(callback, tmp_path, val_word_accuracy=0.4, val_reward=1.0) == ["last"]
    assert validated(callback, tmp_path, val_word_accuracy=0.6, val_reward=0.1) == ["best", "last"]


def test_best_is_the_highest_reward_where_nothing_reads(tmp_path: Path) -> None:
    callback = Recorded()
    assert validated(callback, tmp_path, val_reward=float("nan")) == ["last"]
    assert validated(callback, tmp_path, val_reward=-0.2) == ["best", "last"]
    assert validated(callback, tmp_path, val_reward=-0.3) == ["last"]
    assert validated(callback, tmp_path, val_reward=float("nan")) == ["last"]


def test_a_resumed_run_does_not_take_a_worse_value_for_the_best(tmp_path: Path) -> None:
    first, second = Recorded(), Recorded(every_n_steps=7)
    validated(first, tmp_path, val_reward=0.5)
    second.load_state_dict(first.state_dict())
    assert first.state_key == second.state_key
    assert validated(second, tmp_path, val_reward=0.4) == ["last"]


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


def test_a_run_goes_on_without_room_for_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    """The first save succeeds, later ones do not: the run ends with an error, and the first is still there."""
    module = small_module()
    fit = trainer(tmp_path, [SafeStop(), Room(after=3), Checkpoints(every_n_steps=2)], max_steps=7, limit_val_batches=0)
    with (
        limit_lifted(),
        pytest.warns(UserWarning, match=r"(?s)last\.ckpt could not be saved: File too large.*Training continues") as warned,
        pytest.raises(SaveError, match="The checkpoint before it is untouched"),
    ):
        fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    assert len([w for w in warned if "could not be saved" in str(w.message)]) == 2  # after steps 4 and 6
    assert module.rollouts_done == 7
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    resumed = small_module()
    trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=7).fit(
        resumed, datamodule=datamodule(tmp_path / "data"), ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt")
    )
    assert torch.equal(weights(resumed), weights(module))


class Room(Callback):
    """No file may be larger than a few kilobytes from some step on: the kernel's own error, as on a full disk."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.rollouts_done == self.after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def limit_lifted() -> Iterator[None]:
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_every_run_in_a_folder_keeps_its_files(tmp_path: Path) -> None:
    """Also the third, which once deleted the first one's checkpoints; any of them can be gone on from."""
    earlier = tmp_path / "earlier"

    def run(steps: int, ckpt_path: Path | None = None) -> None:
        fit = trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=steps, val_check_interval=2, logger=False)
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"), ckpt_path=ckpt_path)

    def left(folder: Path) -> tuple[int, list[int]]:
        """Steps of the last checkpoint and of the metrics."""
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["varrl"]["rollouts_done"]
        return last, Metrics(folder / "metrics.csv")["reward"].steps

    run(3)
    first = (3, [0, 1, 2])
    assert left(tmp_path) == first
    run(1)
    run(1)
    assert (left(earlier / "1"), left(earlier / "2"), left(tmp_path)) == (first, (1, [0]), (1, [0]))
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    assert (earlier / "1" / "checkpoints" / "best.ckpt").exists()
    run(2, tmp_path / "checkpoints" / "last.ckpt")  # in place
    assert left(tmp_path) == (2, [0, 1])
    assert sorted(p.name for p in earlier.iterdir()) == ["1", "2"]
    run(4, earlier / "1" / "checkpoints" / "last.ckpt")
    assert left(tmp_path) == (4, [0, 1, 2, 3])
    assert (left(earlier / "1"), left(earlier / "3")) == (first, (2, [0, 1]))
    run(3, earlier / "1" / "checkpoints" / "best.ckpt")
    assert left(tmp_path) == (3, [0, 1, 2])
    assert left(earlier / "4") == (4, [0, 1, 2, 3])


def test_the_metrics_of_a_step_are_on_disk_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed right after a save goes on behind it, so nobody would log these steps again."""
    logged: list[int] = []

    def seen(self: Checkpoints, trainer: L.Trainer, name: str) -> None:
        original(self, trainer, name)
        logged.append(len((tmp_path / "metrics.csv").read_text().splitlines()) - 1 - trainer.lightning_module.rollouts_done)

    original = Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", seen)
    callbacks = [SafeStop(), Checkpoints(every_n_steps=1)]
    fit = trainer(tmp_path, callbacks, max_steps=4, limit_val_batches=0, logger=MetricsCSV(tmp_path))
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    assert logged == [0, 0, 0, 0]


def test_it_refuses_a_negative_interval() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be 0"):
        Checkpoints(every_n_steps=-1)


def test_the_last_state_is_saved_when_all_that_follows_the_last_step_is_done(tmp_path: Path) -> None:
    """A run that is killed in its last evaluation must come back to it, though validation has just seen the last step."""
    seen: list[int] = []

    class Looks(Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
            seen.append(int(torch.load(last, weights_only=True)["varrl"]["rollouts_done"]))

    last = tmp_path / "checkpoints" / "last.ckpt"
    for options in ({"max_steps": 3}, {"max_steps": -1, "max_epochs": 1}):
        fit = trainer(tmp_path, [SafeStop(), Looks(), Checkpoints(every_n_steps=1)], val_check_interval=3, **options)
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
        assert torch.load(last, weights_only=True)["varrl"]["rollouts_done"] == 3
    assert seen == [2, 2]


def test_a_run_that_has_nothing_left_to_do_still_cleans_up(tmp_path: Path) -> None:
    for path in (None, str(tmp_path / "checkpoints" / "last.ckpt")):
        fit = trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=1)
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"), ckpt_path=path)
        (tmp_path / "checkpoints" / ".last.1").touch()
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"), ckpt_path=path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
