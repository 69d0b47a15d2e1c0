"""What a run shows on a terminal and in a file; runs of the tiny model of a few steps, about a second each."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from tests.callbacks.running import Watched, datamodule, small_module, trainer
from varrl_lightning.callbacks import Monitors, RewardHacking, RunProgress
from varrl_lightning.callbacks.alarms import Alarms
from varrl_lightning.callbacks.bars import Bars
from varrl_lightning.callbacks.pace import Pace, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> Terminal:
    """No fixture: pytest sets stdout again before a test begins."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setattr("sys.stdout", terminal := Terminal())
    return terminal


class Alarming(Callback):
    """Raises an alarm after a step."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.alarms: list[str] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *step: Any) -> None:
        if pl_module.rollouts_done == self.after:
            self.alarms.append("it burns")


def printed_steps(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("step ")]


def rendered(output: str) -> list[str]:
    """The lines that a terminal was sent, without colours and movements."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output))]


def test_a_terminal_gets_bars_with_stage_step_numbers_and_the_last_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch, "xterm")

    class Refreshed(Callback):
        """Redraws within a step, which is over before the next regular time."""

        def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            pl_module.observer.__self__.refresh()

    fit = trainer(tmp_path, [RunProgress(), Alarming(2), Refreshed()], 4, enable_progress_bar=True, enable_checkpointing=False)

    def redraw() -> None:
        module.observer.__self__.refresh()  # type: ignore[union-attr]

    module = small_module(micro_batch_size=2, reward=Watched(redraw))
    fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    shown = rendered(terminal.getvalue())
    for wanted in (
        "prefix .* 0/4",
        "suffix .* 3/4 .* s left",
        "done .* 4/4",
        r"reward .* 0/\d .* images",
        "update .* 2/2 .* micro-batches",
    ):
        assert any(re.search(f"^ *{wanted}", line) for line in shown), wanted
    assert any(re.search(r"^ +reward -0\.", line) for line in shown)
    assert [line for line in shown if line][-1] == "     alarm after step 2: it burns", "it stays to the end"
    assert not printed_steps(terminal.getvalue())
    assert module.observer is None


def test_each_part_of_a_step_has_a_bar_that_begins_anew() -> None:
    file = Terminal()
    bars = Bars(Console(file=file, force_terminal=True, width=80, color_system=None), 5, 9, lambda: 100.0)
    for part, done, of in (("rollout", 3, 10), ("rollout", 10, 10), ("reward", 0, 32), ("reward", 24, 32), ("update", 1, 4)):
        bars.part(part, done, of)
        bars.refresh()
    bars.between_steps("validating")
    bars.stop()
    shown = [line for line in rendered(file.getvalue()) if line]
    parts = [(line.split()[0], re.findall(r"\d+/\d+", line)[0], line.split()[-1]) for line in shown if "/9" not in line]
    units = ["scales", "scales", "images", "images", "micro-batches"]
    expected = ["rollout 3/10", "rollout 10/10", "reward 0/32", "reward 24/32", "update 1/4"]
    found = list(dict.fromkeys((f"{name} {count}", unit) for name, count, unit in parts))
    assert found == list(zip(expected, units, strict=True))
    assert re.match(r" *validating .* 5/9 .* 2 min left$", shown[-1]), "and no part is left"


def test_a_dumb_terminal_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_a_terminal(monkeypatch, "dumb")
    fit = trainer(tmp_path, [RunProgress()], 1, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    assert len(printed_steps(terminal.getvalue())) == 1


def test_a_file_gets_a_line_a_step_and_an_alarm_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [RunProgress(), Alarming(1), Alarming(3)]
    fit = trainer(tmp_path, callbacks, 3, enable_progress_bar=True, enable_checkpointing=False, val_check_interval=2)
    fit.fit(small_module(evaluate_with=None), datamodule=datamodule(tmp_path / "data"))
    output = capsys.readouterr().out
    lines = printed_steps(output)
    number, seconds = r"-?\d+\.\d{3}", r"\d+\.\d\d"
    form = (
        rf"step (\d)/3  (\w+)   reward {number}(  word accuracy {number})?(  validation {number})?"
        rf"  {seconds} s \(rollout {seconds}, reward {seconds}, update {seconds}\)(  \d+ s left)?(  alarm after step 1: it burns)?"
    )
    found = [re.fullmatch(form, line) for line in lines]
    assert all(found), lines
    steps = [match.groups() for match in found if match]
    assert [(step, stage) for step, stage, *_ in steps] == [("1", "prefix"), ("2", "prefix"), ("3", "prefix")], lines
    assert [alarm is not None for *_, alarm in steps] == [False, True, False], "on the first line after it, and on no other"
    assert [step[3] is not None for step in steps] == [False, False, True], "a validation has followed step 2"
    assert output.splitlines().count("alarm after step 3: it burns") == 1, "no line has followed it"


def test_few_lines_where_few_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = trainer(tmp_path, [RunProgress(lines=2)], 7, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(updates_per_rollout=1), datamodule=datamodule(tmp_path / "data"))
    assert [line.split()[1] for line in printed_steps(capsys.readouterr().out)] == ["3/7", "6/7", "7/7"]


def test_another_process_than_the_first_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Other(RunProgress):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            self.disable()

    fit = trainer(tmp_path, [Other(), Alarming(1)], 1, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    output = capsys.readouterr().out
    assert not printed_steps(output)
    assert "burns" not in output


def test_the_time_left_is_that_of_the_steps_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluating before the first step takes as long as many steps."""
    clock = Clock()
    monkeypatch.setattr("varrl_lightning.callbacks.pace.time", clock)
    fit = trainer(tmp_path, [RunProgress(), clock], 3, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    lines = printed_steps(capsys.readouterr().out)
    assert [re.findall(r"  (\d+ s) left$", line) for line in lines] == [["4 s"], ["2 s"], []]


class Clock(Callback):
    """Says that an evaluation takes 100 seconds and a step 2."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now += 100

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.now += 2


def test_the_time_left_runs_down_within_a_step_and_counts_a_resumed_run_from_its_own_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varrl_lightning.callbacks.pace.time", clock := Clock())
    pace = Pace()
    assert pace.left(100) is None
    pace.begin(90)
    clock.now += 10
    pace.begin(91)
    pace.end(92)
    assert pace.left(100) == 8 * 5
    clock.now += 3
    assert pace.left(100) == 8 * 5 - 3
    clock.now += 1000
    assert pace.left(100) == 0, "no time below zero"
    assert pace.left(None) is None, "a run without an end"
    assert [duration(seconds) for seconds in (3.2, 89, 90, 5000, 5400, 36_000)] == [
        "3 s",
        "89 s",
        "2 min",
        "83 min",
        "1.5 h",
        "10.0 h",
    ]


def test_alarms_are_those_of_any_callback_and_each_is_new_once() -> None:
    hacking, monitors, alarms = RewardHacking(), Monitors(patience=1), Alarms()
    hacking.load_state_dict({"watch": hacking.watch.state_dict(), "alarms": [{"text": "of the run before"}]})
    callbacks = [RunProgress(), hacking, monitors]
    assert alarms.new(callbacks) == ["of the run before"]
    hacking.records.append({"text": "it cheats"})
    assert alarms.new(callbacks) == ["it cheats"]
    assert alarms.new(callbacks) == []


def test_the_length_of_a_run_is_counted_in_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lightning's max_steps counts optimizer steps: two a rollout here."""
    fit = trainer(tmp_path, [RunProgress()], 4, enable_progress_bar=True, enable_checkpointing=False)
    fit.fit(small_module(updates_per_rollout=2), datamodule=datamodule(tmp_path / "data"))
    assert "step 2/2 " in capsys.readouterr().out


def test_it_refuses_no_lines() -> None:
    with pytest.raises(ValueError, match="lines must be at least 1, or None"):
        RunProgress(lines=0)
