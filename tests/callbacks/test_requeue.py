"""What a cluster does to a run: it signals the end of its time, and starts the same command again.

No SLURM runs here: its variables are set, and `scontrol` is a program that notes how it was called.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from tests.callbacks.running import Watched, datamodule, small_module, trainer
from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.callbacks.requeue import checkpoint_to_load, requeue
from varrl_lightning.module import VARGRPO

SLURM = {
    "SLURM_JOB_NAME": "varrl",
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "1",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NNODES": "1",
}


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """In a SLURM job; returns what makes a `scontrol` that ends with a status, and the file of its arguments."""
    for name in [*(n for n in os.environ if n.startswith("SLURM_")), "TORCHELASTIC_RESTART_COUNT"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def scontrol(status: int = 0, said: str = "") -> Path:
        program = tmp_path / "bin" / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "called"}\necho "{said}" >&2\nexit {status}\n')
        program.chmod(0o755)
        return tmp_path / "called"

    return scontrol


def stopped(folder: Path, number: int = signal.SIGUSR1, step: int = 2, **options: Any) -> tuple[VARGRPO, SystemExit]:
    """A run that gets a signal while its reward is asked in a step."""

    def press() -> None:
        if module.trainer.training and module.rollouts_done == step:
            os.kill(os.getpid(), number)

    module = small_module(reward=Watched(press))
    fit = trainer(folder, [SafeStop(), Checkpoints()], max_steps=5, **options)
    with pytest.raises(SystemExit) as error:
        fit.fit(module, datamodule=datamodule(folder / "data"))
    return module, error.value


def test_the_signal_finishes_the_step_saves_and_queues_the_job_again(
    tmp_path: Path, cluster: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    called = cluster()
    former = signal.getsignal(signal.SIGUSR1)
    module, error = stopped(tmp_path)
    assert (module.rollouts_done, error.code) == (3, 128 + signal.SIGUSR1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["varrl"]["rollouts_done"] == 3
    assert called.read_text() == "requeue 4711\n"
    assert "SLURM job 4711 is queued again" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == former
    assert not list(tmp_path.glob("hpc_ckpt*")), "Lightning saved as well"


def test_the_end_of_a_job_does_not_queue_it(tmp_path: Path, cluster: Callable[..., Path]) -> None:
    """scancel sends SIGTERM; so does SLURM when it will queue the job by itself."""
    called = cluster()
    module, error = stopped(tmp_path, signal.SIGTERM)
    assert (module.rollouts_done, error.code) == (3, 143)
    assert not called.exists()


def test_a_signal_of_the_users_choice(tmp_path: Path, cluster: Callable[..., Path]) -> None:
    called = cluster()
    _, error = stopped(tmp_path, signal.SIGUSR2, plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR2)])
    assert error.code == 128 + signal.SIGUSR2
    assert called.read_text() == "requeue 4711\n"


def test_without_automatic_requeue_the_signal_is_the_programs(tmp_path: Path, cluster: Callable[..., Path]) -> None:
    got: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        module = small_module(reward=Watched(lambda: os.kill(os.getpid(), signal.SIGUSR1)))
        fit = trainer(tmp_path, [SafeStop()], max_steps=1, enable_checkpointing=False, limit_val_batches=0)
        fit._accelerator_connector.cluster_environment.auto_requeue = False
        fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert got
    assert module.rollouts_done == 1


def test_before_the_first_step_nothing_is_saved_and_the_job_is_queued(tmp_path: Path, cluster: Callable[..., Path]) -> None:
    called = cluster()

    class Early(SafeStop):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

    fit = trainer(tmp_path, [Early(), Checkpoints()], max_steps=2)
    with pytest.raises(SystemExit):
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    assert not (tmp_path / "checkpoints").exists()
    assert called.read_text() == "requeue 4711\n"


def test_of_an_array_the_task_is_queued(cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    called = cluster()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "11")
    assert "4700_11 is queued" in requeue()
    assert called.read_text() == "requeue 4700_11\n"


def test_a_refusal_is_said_with_what_to_do(cluster: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cluster(1, "Requested operation is presently disabled")
    said = requeue()
    for part in ("`scontrol requeue 4711` failed", "status 1, Requested operation is presently disabled", "--ckpt_path last"):
        assert part in said
    monkeypatch.setenv("PATH", "/nowhere")
    assert "No such file or directory: 'scontrol'" in requeue()


# --- started again ------------------------------------------------------------------------------------------------------------


def saved(folder: Path, *names: str) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    for name in names:
        (folder / "checkpoints" / name).touch()


@pytest.mark.parametrize("variable", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_job_that_is_started_again_goes_on(
    tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    monkeypatch.setenv(variable, "1")
    assert checkpoint_to_load(None, tmp_path, fitting=True) is None
    assert f"running from the beginning, since nothing is saved in {tmp_path / 'checkpoints'} yet" in capsys.readouterr().out
    saved(tmp_path, "last.ckpt")
    for given in (None, "best", "another.ckpt"):
        assert checkpoint_to_load(given, tmp_path, fitting=True) == last
        assert capsys.readouterr().out == f"Started again by the cluster: resuming from {last}\n"
    assert checkpoint_to_load(None, tmp_path, fitting=False) is None
    monkeypatch.setenv(variable, "0")
    assert checkpoint_to_load(None, tmp_path, fitting=True) is None
    assert checkpoint_to_load("another.ckpt", tmp_path, fitting=True) == "another.ckpt"
    assert not capsys.readouterr().out


def test_last_and_best_are_those_of_the_run(tmp_path: Path) -> None:
    saved(tmp_path, "last.ckpt", "best.ckpt")
    for name in ("last", "best"):
        for fitting in (True, False):
            assert checkpoint_to_load(name, tmp_path, fitting) == str(tmp_path / "checkpoints" / f"{name}.ckpt")


def test_where_there_is_none_those_there_are_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--ckpt_path last: there is no .*last.ckpt; nothing is saved there. Leave"):
        checkpoint_to_load("last", tmp_path, fitting=True)
    saved(tmp_path, "best.ckpt", "last.ckpt.earlier")
    with pytest.raises(FileNotFoundError, match=r"found there: best.ckpt, last.ckpt.earlier. Leave"):
        checkpoint_to_load("last", tmp_path, fitting=True)
    saved(tmp_path / "earlier" / "1", "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"earlier; of earlier runs: .*earlier/1/checkpoints/last.ckpt. Leave"):
        checkpoint_to_load("last", tmp_path, fitting=True)


def test_another_seed_is_warned_of(tmp_path: Path) -> None:
    def run(steps: int, seed: int, path: str | None = None) -> None:
        trainer(tmp_path, [SafeStop(), Checkpoints()], max_steps=steps, limit_val_batches=0).fit(
            small_module(seed=seed), datamodule=datamodule(tmp_path / "data"), ckpt_path=path
        )

    last = str(tmp_path / "checkpoints" / "last.ckpt")
    run(1, 5)
    run(2, 5, last)
    with pytest.warns(UserWarning, match="resuming with seed 6 a run that began with seed 5.*Set seed_everything to 5"):
        run(3, 6, last)
