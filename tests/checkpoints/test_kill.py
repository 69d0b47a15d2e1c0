"""Processes that are killed at any moment lose the steps since the last save and nothing else.

Fifty of them, with the embedded model and the real reward: python -m tests.killing FOLDER --kills 50
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.killing import Run
from tests.tiny import M
from varrl_lightning.__main__ import main
from varrl_lightning.figures.tables import Metrics

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_kills_at_any_moment(kills: int, tmp_path: Path) -> None:
    """Fails when a checkpoint is corrupt, too much is lost, or the end is another than that of an undisturbed run."""
    # The embedded model: a tiny one is saved too fast to be killed meanwhile.
    options = [f"--kills={kills}", "--steps=6", "--reward=tests.tiny.LeftBright"]
    command = [sys.executable, "-m", "tests.killing", str(tmp_path / "runs"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    assert figures["kills"] == kills
    assert figures["within a save"] >= (kills == 5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of the command line, of two steps."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # seed_everything leaves them in the environment
        monkeypatch.setenv(name, "0")
    return Run(tmp_path / "runs", steps=2, policy="tests.tiny.tiny_policy", reward="tests.tiny.LeftBright", m=M)


def fit(run: Run, *options: str) -> int:
    return main(["fit", "--config", str(run.folder / "config.yaml"), *options])


def test_the_same_command_goes_on_when_a_cluster_starts_it_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(run) == 0
    capsys.readouterr()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(run, "--trainer.max_steps=4") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Started again")]
    assert said == [f"Started again by the cluster: resuming from {run.checkpoints / 'last.ckpt'}"]
    assert run.history() == [[0, 1, 2], [2, 3, 4]]
    assert Metrics(run.folder / "run" / "metrics.csv")["reward"].steps == [0, 1, 2, 3]


def test_last_is_that_of_the_run_folder_and_must_be_there(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(run, "--ckpt_path=last") == 2
    assert "--ckpt_path last: there is no" in capsys.readouterr().err
    assert not (run.folder / "run").exists()
    assert fit(run) == 0
    assert fit(run, "--ckpt_path=last", "--trainer.max_steps=3") == 0
    assert run.history() == [[0, 1, 2], [2, 3]]


def test_a_damaged_checkpoint_is_refused_with_the_others_there_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(run, "--trainer.val_check_interval=1") == 0
    last = run.checkpoints / "last.ckpt"
    whole = last.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2]):
        last.write_bytes(damaged)
        assert fit(run, "--ckpt_path=last") == 1
        said = capsys.readouterr().err
        assert f"{last} is no checkpoint of a fit run, or is damaged" in said
        assert f"Beside it: {run.checkpoints / 'best.ckpt'}" in said
