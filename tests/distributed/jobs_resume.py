"""Runs that are stopped and go on, on every worker at the same time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from tests.callbacks.running import Watched, datamodule, trainer
from tests.distributed import jobs
from varrl_lightning.callbacks import Checkpoints, SafeStop


class StopAfter(Callback):
    """One process is told to stop while the step with this number runs; all of them do, when it is done."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.rollouts_done + 1 == self.step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(
    strategy: str | None,
    world_size: int,
    folder: str,
    steps: int = 8,
    stop_after: int | None = None,
    ckpt_path: str | None = None,
    lora: bool = False,
) -> dict[str, Any]:
    """Train to a number of steps, or until told to stop; validation after every second step."""
    jobs.quiet()
    schedule = torch.optim.lr_scheduler.LinearLR
    small: dict[str, Any] = {"group_size": 2, "num_continuations": 2, "reward": Watched()}
    trained = jobs.module(lora, **small, lr_scheduler=lambda optimizer: schedule(optimizer, total_iters=6))
    # The one that stops comes after SafeStop, which has begun the step by then.
    callbacks = [SafeStop(), StopAfter(stop_after), Checkpoints()]
    options = {"devices": world_size, "strategy": jobs.named(strategy), "val_check_interval": 2, "check_val_every_n_epoch": None}
    runner = trainer(Path(folder), callbacks, steps, **options)
    stopped = False
    try:
        runner.fit(trained, datamodule=datamodule(Path(folder) / f"data{os.environ.get('RANK', '0')}"), ckpt_path=ckpt_path)
    except SystemExit as exit_:
        stopped = exit_.code == 128 + signal.SIGTERM
    return {
        "stopped": stopped,
        "rollouts": trained.rollouts_done,
        "weights": jobs.full_weights(trained),
        "lr": runner.optimizers[0].param_groups[0]["lr"],
    }
