"""Runs that are stopped, fail or find the disk full on one rank or all; every worker does them at the same time."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from tests.distributed import jobs
from tests.tiny import tiny_trainer
from varrl_lightning.callbacks import Checkpoints, SafeStop, SampleTables
from varrl_lightning.data import PromptDataModule
from varrl_lightning.loggers import MetricsCSV

STEPS = 4
SMALL = 16_000
"""Bytes that a file may have when the disk is full: less than any part of a checkpoint has."""


class Event(Callback):
    """Something happens on some ranks in the training step that begins with `step` finished ones."""

    def __init__(self, step: int, happening: Callable[[int], None]) -> None:
        self.step, self.happening = step, happening

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        if pl_module.rollouts_done == self.step:
            self.happening(trainer.global_rank)


def fit(
    strategy: str, folder: str, event: Callback | None = None, ckpt_path: str | None = None, logger: Any = False, **options: Any
) -> dict[str, Any]:
    """What came of a run: steps done, the exception and its status."""
    jobs.quiet()
    module = jobs.module(group_size=2, **options)
    callbacks = [SafeStop(), *([event] if event else []), Checkpoints(every_n_steps=1)]
    fit = tiny_trainer(
        devices=int(os.environ.get("WORLD_SIZE", "1")),
        strategy=jobs.named(strategy),
        max_steps=STEPS,
        max_epochs=-1,
        default_root_dir=folder,
        callbacks=callbacks,
        enable_checkpointing=True,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=logger,
        log_every_n_steps=1,
    )
    error: BaseException | None = None
    try:
        fit.fit(module, PromptDataModule(train=f"{folder}/train.jsonl", batch_size=2), ckpt_path=ckpt_path)
    except BaseException as raised:
        error = raised
    return {
        "steps": module.rollouts_done,
        "error": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "code", None),
    }


def signalled(strategy: str, folder: str, on: int, number: int = signal.SIGTERM) -> dict[str, Any]:
    """A signal reaches one rank in the second step."""

    def press(rank: int) -> None:
        if rank == on:
            os.kill(os.getpid(), number)

    return fit(strategy, folder, Event(1, press))


def without_room(strategy: str, folder: str, on: int) -> dict[str, Any]:
    """One rank cannot write from the third step on."""

    def fill(rank: int) -> None:
        if rank == on:
            resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, former[1]))

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return fit(strategy, folder, Event(2, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def failed(strategy: str, folder: str) -> dict[str, Any]:
    """Each rank raises something of its own in the third step, of which the others cannot know."""

    def fail(rank: int) -> None:
        raise KeyError(f"of rank {rank}")

    return fit(strategy, folder, Event(2, fail))


def reward_failed(strategy: str, folder: str) -> dict[str, Any]:
    """The reward raises on rank 1 in the third step."""
    found: list[Any] = []

    class Finds(Callback):
        def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
            found.append(pl_module)

    event = Finds()
    return fit(strategy, folder, event, reward=jobs.FailsOnRank1(found, 2))  # type: ignore[arg-type]


class Unpicklable(Callback):
    """Has a state on rank 0 that no file can hold."""

    def state_dict(self) -> dict[str, Any]:
        return {"f": lambda: 0} if os.environ.get("RANK") == "0" else {}


def unsavable(strategy: str, folder: str) -> dict[str, Any]:
    """No checkpoint can be written, for a reason that is no disk's, and of one rank alone."""
    return fit(strategy, folder, Unpicklable())  # type: ignore[arg-type]


class FullDisk(MetricsCSV):
    """A log on a disk that is full."""

    def _rewrite(self, *args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def without_log(strategy: str, folder: str) -> dict[str, Any]:
    """The log cannot be written."""
    return fit(strategy, folder, logger=FullDisk(folder))


def with_tables(strategy: str, folder: str) -> dict[str, Any]:
    """A run that writes tables of the samples of both prompts of an update."""
    return fit(strategy, folder, SampleTables(prompts=2, every_n_steps=2))


def steps_of(path: Path) -> int:
    """The training steps that a checkpoint of any strategy holds."""
    if path.is_dir():
        path = next(iter((*path.glob("meta.pt"), *path.glob("checkpoint/*model_states.pt"))))
    checkpoint: dict[str, Any] = torch.load(path, weights_only=False)
    return int(checkpoint["varrl"]["rollouts_done"])
