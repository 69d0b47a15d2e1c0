from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.callbacks import RunProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_with_stage_step_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", Terminal())
    import sys

    fit = trainer(tmp_path, [RunProgress()], 4, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "4/4" in shown
    assert "suffix" in shown
    assert "reward -0." in shown
    assert "\nstep 1" not in shown


def test_a_file_gets_few_lines_however_long_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = trainer(tmp_path, [RunProgress(lines=2)], 7, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(updates_per_rollout=1), datamodule=datamodule(tmp_path / "data"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["3/7", "6/7", "7/7"]


def test_the_pace_is_that_of_the_steps_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating before the first step takes as long as many steps."""
    clock = Clock()
    monkeypatch.setattr("varrl_lightning.callbacks.progress.time", clock)
    fit = trainer(tmp_path, [RunProgress(), clock], 3, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines[1].endswith("  2.00 s/step, 2 s left")
    assert lines[2].endswith("  2.00 s/step")


class Clock(Callback):
    """Says that an evaluation takes 100 seconds and a step 2."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now += 100

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.now += 2


def test_the_length_of_a_run_is_counted_in_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's max_steps counts optimizer steps: two a rollout here."""
    fit = trainer(tmp_path, [RunProgress()], 4, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(updates_per_rollout=2), datamodule=datamodule(tmp_path / "data"))
    assert "step 2/2 " in capsys.readouterr().out


def test_it_refuses_no_lines() -> None:
    with pytest.raises(ValueError, match="lines must be at least 1"):
        RunProgress(lines=0)
