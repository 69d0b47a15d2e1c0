from __future__ import annotations

import contextlib
import csv
import os
import signal
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.callbacks.running import Watched, datamodule, small_module, trainer
from tests.tiny import weights
from varrl_lightning.callbacks import Checkpoints, SafeStop, Summary
from varrl_lightning.errors import RewardError
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.loggers import MetricsCSV
from varrl_lightning.module import VARGRPO

STEPS = 8
Hook = Callable[[VARGRPO], None]


class Run:
    """A run of the real module with the real data, that something may happen to while a reward is asked."""

    def __init__(self, folder: Path, happening: Hook = lambda _: None, **options: Any) -> None:
        self.module = small_module(
            reward=Watched(lambda: self.note(happening)),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=6),
            **options,
        )
        self.folder = folder
        self.validated: list[int] = []

    def note(self, happening: Hook) -> None:
        if self.module.trainer.validating:
            self.validated.append(self.module.rollouts_done)
        happening(self.module)

    def fit(self, steps: int = STEPS, ckpt_path: str | None = None, **options: Any) -> Run:
        options |= {"logger": MetricsCSV(self.folder, resume=ckpt_path is not None)}
        done = trainer(
            self.folder, [SafeStop(), Checkpoints(every_n_steps=2)], steps * self.module.updater.updates_per_rollout, **options
        )
        done.fit(self.module, datamodule=datamodule(self.folder / "data"), ckpt_path=ckpt_path)
        return self

    @property
    def last(self) -> str:
        return str(self.folder / "checkpoints" / "last.ckpt")


@lru_cache
def straight(folder: Path, updates: int) -> torch.Tensor:
    return weights(Run(folder, updates_per_rollout=updates).fit().module)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], torch.Tensor]:
    folder = tmp_path_factory.mktemp("straight")
    return lambda updates: straight(folder, updates)


def in_step(k: int, action: Callable[[], None]) -> Hook:
    """While step k (from 0) is under way."""

    def hook(module: VARGRPO) -> None:
        if module.trainer.training and module.rollouts_done == k:
            action()

    return hook


def fail() -> None:
    raise OSError("the service is down")


def press(number: int = signal.SIGINT) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def resumed(run: Run, **options: Any) -> torch.Tensor:
    """The rest of the run in a fresh module and Trainer, as in a fresh process."""
    torch.manual_seed(99)  # noise has keys: no generator's state matters
    return weights(Run(run.folder, **options).fit(ckpt_path=run.last, val_check_interval=2).module)


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
def test_after_a_failing_reward_the_run_goes_on_as_if_nothing_had_happened(tmp_path, undisturbed, k, updates) -> None:
    """Steps 0 to 2 are the first epoch; the failure hits its first, middle and last step, the next one's first, and a suffix."""
    run = Run(tmp_path, in_step(k, fail), updates_per_rollout=updates)
    with pytest.raises(RewardError, match="service is down"):
        run.fit(val_check_interval=2)
    assert torch.load(run.last, weights_only=True)["varrl"]["rollouts_done"] == k
    assert torch.equal(resumed(run, updates_per_rollout=updates), undisturbed(updates))


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_ctrl_c_finishes_the_step_and_the_run_goes_on_exactly(tmp_path, undisturbed, capsys, k) -> None:
    run = Run(tmp_path, in_step(k, press()))
    with pytest.raises(SystemExit) as stopped:
        run.fit(val_check_interval=2)
    assert stopped.value.code == 130
    assert run.module.rollouts_done == k + 1
    said = capsys.readouterr().out
    assert "Ctrl-C: finishing this training step" in said
    assert f"Saved after training step {k + 1}" in said
    assert f"--ckpt_path {run.last}" in said
    assert torch.equal(resumed(run), undisturbed(1))


class Pressed(Callback):
    """Ctrl-C while the prompts are evaluated before the first step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        press()()


def test_ctrl_c_in_the_first_evaluation_says_what_it_does(tmp_path, capsys) -> None:
    fit = trainer(tmp_path, [SafeStop(), Pressed(), Checkpoints()], STEPS)
    with pytest.raises(SystemExit) as stopped:
        fit.fit(Run(tmp_path).module, datamodule=datamodule(tmp_path / "data"))
    assert stopped.value.code == 130
    said = "Ctrl-C: stopped before the first training step. No training step has been made, so there is nothing to save."
    assert said in capsys.readouterr().out
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_the_same_trainer_goes_on_after_a_stop(tmp_path, undisturbed) -> None:
    run = Run(tmp_path, in_step(3, press()))
    fit = trainer(tmp_path, [SafeStop(), Checkpoints()], STEPS)
    data = datamodule(tmp_path / "data")
    with pytest.raises(SystemExit):
        fit.fit(run.module, datamodule=data)
    fit.fit(run.module, datamodule=data, ckpt_path=run.last)
    assert torch.equal(weights(run.module), undisturbed(1))


def test_a_failure_outside_of_a_fit_saves_nothing(tmp_path) -> None:
    run = Run(tmp_path)
    fit = trainer(tmp_path, [SafeStop(), Checkpoints()], 1)
    data = datamodule(tmp_path / "data")
    fit.fit(run.module, datamodule=data)
    former = Path(run.last).stat().st_mtime_ns
    run.note = lambda _: fail()  # type: ignore[method-assign]
    with pytest.raises(RewardError):
        fit.validate(run.module, datamodule=data)
    assert Path(run.last).stat().st_mtime_ns == former


def test_a_failure_before_the_first_step_leaves_nothing(tmp_path) -> None:
    module = small_module(reward=Watched(fail))
    fit = trainer(tmp_path / "run", [SafeStop(), Summary(), Checkpoints()])
    with pytest.raises(RewardError):
        fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    assert not (tmp_path / "run").exists()


def test_ctrl_c_in_the_last_step_skips_what_comes_after(tmp_path, capsys) -> None:
    run = Run(tmp_path, in_step(STEPS - 1, press()))
    with pytest.raises(SystemExit) as stopped:
        run.fit()
    assert stopped.value.code == 130
    assert f"Saved after training step {STEPS}" in capsys.readouterr().out


def test_sigterm_does_the_same(tmp_path, undisturbed) -> None:
    run = Run(tmp_path, in_step(3, press(signal.SIGTERM)))
    with pytest.raises(SystemExit) as stopped:
        run.fit()
    assert stopped.value.code == 143
    assert torch.equal(resumed(run), undisturbed(1))


def test_interrupted_again_and_again(tmp_path, undisturbed) -> None:
    """Each resume starts from what the one before has left: counters must not drift."""
    run = Run(tmp_path, in_step(1, press()))
    with pytest.raises(SystemExit):
        run.fit()
    for k, action, error in ((2, press(), SystemExit), (3, fail, RewardError), (5, press(), SystemExit), (6, fail, RewardError)):
        run = Run(tmp_path, in_step(k, action))
        with pytest.raises(error):
            run.fit(ckpt_path=run.last, val_check_interval=3)
        position = torch.load(run.last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        assert position == run.module.rollouts_done
    assert torch.equal(resumed(run), undisturbed(1))


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_save_alone(tmp_path, capsys) -> None:
    def twice() -> None:
        press()()
        press()()

    run = Run(tmp_path, in_step(4, twice))
    with pytest.raises(SystemExit) as stopped:
        run.fit(val_check_interval=2)
    assert stopped.value.code == 130
    assert run.module.rollouts_done == 4
    assert torch.load(run.last, weights_only=True)["varrl"]["rollouts_done"] == 4
    assert "the last saved state is" in capsys.readouterr().out


def test_ctrl_c_in_validation_stops_at_once(tmp_path, undisturbed, capsys) -> None:
    def hook(module: VARGRPO) -> None:
        if module.trainer.validating and module.rollouts_done == 5:
            press()()

    run = Run(tmp_path, hook)
    with pytest.raises(SystemExit):
        run.fit(val_check_interval=2)
    assert run.module.rollouts_done == 5
    assert "finishing" not in capsys.readouterr().out
    assert torch.equal(resumed(run), undisturbed(1))


def test_a_failure_after_the_update_takes_it_back(tmp_path, undisturbed) -> None:
    run = Run(tmp_path)
    log = run.module.log_dict

    def failing(*args: Any, **options: Any) -> None:
        if run.module.rollouts_done == 2:
            fail()
        log(*args, **options)

    run.module.log_dict = failing  # type: ignore[method-assign]
    with pytest.raises(OSError, match="service is down"):
        run.fit()
    assert (run.module.rollouts_done, run.module.updates_done) == (2, 2)
    assert torch.equal(resumed(run), undisturbed(1))


def test_a_failure_between_two_updates_of_a_rollout_takes_the_first_back(tmp_path, undisturbed) -> None:
    run = Run(tmp_path, updates_per_rollout=2)
    calls = [0]

    class Failing(GRPO):
        def losses(self, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == 6:  # the second update of step 2
                raise RuntimeError("out of memory")
            return super().losses(*args)

    run.module.updater.grpo = Failing(**vars(run.module.grpo))
    with pytest.raises(RuntimeError, match="out of memory"):
        run.fit()
    assert (run.module.rollouts_done, run.module.updates_done) == (2, 4)
    steps = torch.load(run.last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.manual_optimization.optim_step_progress"]
    assert steps["total"] == {"ready": 4, "completed": 4}  # what max_steps counts
    assert torch.equal(resumed(run, updates_per_rollout=2), undisturbed(2))


def test_without_a_copy_such_a_failure_leaves_the_file_alone(tmp_path) -> None:
    run = Run(tmp_path, updates_per_rollout=2)
    optimizer_steps = [0]
    former: list[bytes] = []

    def grow(*_: Any) -> None:
        optimizer_steps[0] += 1
        if optimizer_steps[0] == 6:
            former.append(Path(run.last).read_bytes())
            raise RuntimeError("out of memory")

    run.module.on_before_optimizer_step = grow  # type: ignore[method-assign]
    fit = trainer(tmp_path, [SafeStop(keep_copy=False), Checkpoints(every_n_steps=1)], 16)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit.fit(run.module, datamodule=datamodule(tmp_path / "data"))
    assert former == [Path(run.last).read_bytes()]


def test_every_checkpoint_of_a_run_resumes_exactly(tmp_path, undisturbed, monkeypatch) -> None:
    """Those saved at validation, at a step and at the end, too."""
    kept: list[Path] = []

    def save_and_keep(self: Checkpoints, trainer: Any, name: str) -> None:
        original(self, trainer, name)
        kept.append(tmp_path / f"kept{len(kept)}.ckpt")
        (tmp_path / "checkpoints" / f"{name}.ckpt").rename(kept[-1])

    original = Checkpoints._write
    monkeypatch.setattr(Checkpoints, "_write", save_and_keep)
    first = Run(tmp_path)
    first.fit(5, val_check_interval=3)
    monkeypatch.undo()
    steps = [torch.load(path, weights_only=True)["varrl"]["rollouts_done"] for path in kept]
    assert steps == [2, 3, 3, 4, 5]
    for path in kept:
        assert torch.equal(weights(Run(tmp_path).fit(ckpt_path=str(path)).module), undisturbed(1)), path


def metrics(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [tuple(row[k] for k in ("step", "reward", "grad_norm", "lr", "val/reward")) for row in csv.DictReader(file)]


@pytest.fixture(scope="session")
def undisturbed_metrics(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[tuple[str, ...]]]:
    @lru_cache
    def of(interval: int) -> list[tuple[str, ...]]:
        folder = tmp_path_factory.mktemp("metrics")
        Run(folder).fit(val_check_interval=interval)
        return metrics(folder)

    return of


@pytest.mark.parametrize("action", [fail, press()], ids=["failure", "ctrl_c"])
@pytest.mark.parametrize(("interval", "k"), [(2, 1), (2, 2), (3, 2), (3, 3)])
def test_the_metrics_go_on_as_well(tmp_path, undisturbed_metrics, interval, k, action) -> None:
    """No row twice or missing, at the right steps, validation included: it may be due just where the run was stopped."""
    run = Run(tmp_path, in_step(k, action))
    with pytest.raises((SystemExit, RewardError)):
        run.fit(val_check_interval=interval)
    rest = Run(tmp_path).fit(ckpt_path=run.last, val_check_interval=interval)
    assert metrics(tmp_path) == undisturbed_metrics(interval)
    assert run.validated + rest.validated == [step for step in range(1, STEPS + 1) if ((step - 1) % 3 + 1) % interval == 0]


@pytest.mark.parametrize("happening", [lambda _: None, in_step(0, fail), in_step(0, press())], ids=["end", "failure", "ctrl_c"])
def test_the_handlers_of_the_program_come_back(tmp_path, happening) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(RewardError, SystemExit):
        Run(tmp_path, happening).fit(1)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
