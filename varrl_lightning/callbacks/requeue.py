"""Resumes jobs that a cluster ends and starts again: SLURM's requeue, torchrun's restart."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from varrl_lightning.callbacks.run_folder import checkpoint_in, say, shown
from varrl_lightning.configuration.earlier_runs import kept_checkpoints

RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
"""Variables that tell a process that its job has run before: the same command then resumes that run."""


def restarted() -> bool:
    """Whether the cluster has started this job again."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in RESTART_COUNTS)


def checkpoint_to_load(given: str | None, folder: str | Path, fitting: bool) -> str | None:
    """The checkpoint that a command begins with: the one given, where `last` and `best` are those of the run in `folder`.

    A fit that the cluster has started again resumes from `last`, whatever its command says.

    Raises:
        FileNotFoundError: when the run has no such checkpoint; names those that exist.
    """
    last = checkpoint_in(folder, "last")
    if fitting and restarted():
        if last.exists():
            given = str(last)
            say(f"Started again by the cluster: resuming from {shown(last)}")
        else:
            beginning = given or "the beginning"
            say(f"Started again by the cluster: running from {beginning}, since nothing is saved in {shown(last.parent)} yet")
    if given not in ("last", "best"):
        return given
    path = checkpoint_in(folder, given)
    if not path.exists():
        names = sorted(p.name for p in path.parent.glob("*.ckpt*")) if path.parent.is_dir() else []
        instead = f"found there: {', '.join(names)}" if names else "nothing is saved there"
        if earlier := [shown(p) for p in kept_checkpoints(Path(folder))]:
            instead += f"; of earlier runs: {', '.join(earlier)}"
        raise FileNotFoundError(
            f"--ckpt_path {given}: there is no {shown(path)}; {instead}. "
            "Leave --ckpt_path out to begin a new run, give a checkpoint's path, or set trainer.default_root_dir to a run's folder"
        )
    return str(path)


def requeue_signal(trainer: L.Trainer) -> signal.Signals | None:
    """The signal by which SLURM announces that the job's time is nearly over; None where the job is not to be requeued."""
    environment = trainer._accelerator_connector.cluster_environment  # with one device, no public attribute has it
    return environment.requeue_signal if isinstance(environment, SLURMEnvironment) and environment.auto_requeue else None


def requeue() -> str:
    """Ask SLURM to queue this job again; returns a sentence for the user about the outcome."""
    job = _job()
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        problem = f"status {done.returncode}, {(done.stderr or done.stdout).strip()}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if not problem:
        return f"SLURM job {job} is queued again and will resume from there."
    return (
        f"`{' '.join(command)}` failed ({problem}): the job is not queued again. Submit it once more, with --ckpt_path last "
        "so that it resumes from there; a job is refused when it was submitted with --no-requeue."
    )


def _job() -> str:
    """The job's number, with that of the task in an array of jobs."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID", "unknown")
