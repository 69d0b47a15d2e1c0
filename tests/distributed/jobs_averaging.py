"""Runs with an average of the weights that every worker does at the same time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.distributed import jobs
from tests.tiny import PROMPTS, tiny_loader, tiny_trainer
from varrl_lightning.data import EvaluationBatches
from varrl_lightning.module import VARGRPO

STOP, STEPS = 3, 5


def average_of(module: VARGRPO) -> dict[str, Tensor]:
    """The averaged weights by name, whole."""
    assert module.average is not None
    return {
        name: (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()
        for name, x in module.average.named_parameters()
    }


def train(strategy: str | None, world_size: int, folder: str | None = None, lora: bool = False) -> dict[str, Any]:
    """The average and the weights after some steps, and what both draw.

    Args:
        folder: stop half-way, save there, and go on from there as a new run.
    """
    jobs.quiet()
    path = None if folder is None else f"{folder}/{strategy}.ckpt"
    if path is not None:
        _fit(strategy, world_size, lora, STOP)[1].save_checkpoint(path)
    module, trainer = _fit(strategy, world_size, lora, STEPS, path)
    weights, average = jobs.full_weights(module), average_of(module)
    drawn = trainer.predict(module, EvaluationBatches(PROMPTS, 2))
    assert drawn is not None
    return {
        "average": average,
        "weights": weights,
        "drawn": torch.cat(drawn),
        "by_call": module(PROMPTS),  # outside the Trainer's loops, as a callback does
        "after": jobs.full_weights(module),
        "too late": _used_when_gathered(module),
    }


def _used_when_gathered(module: VARGRPO) -> str:
    try:
        with module.parallel.sampling([module.policy]), module.evaluator.averaged():
            return "used"
    except RuntimeError as error:
        return str(error)


def _fit(strategy: str | None, world_size: int, lora: bool, steps: int, path: str | None = None) -> tuple[VARGRPO, Any]:
    module = jobs.module(lora=lora, ema_decay=0.6, guards={"check_ranks_every_n_steps": 2})
    trainer = tiny_trainer(
        devices=world_size, strategy=jobs.named(strategy), max_steps=steps, use_distributed_sampler=False, num_sanity_val_steps=0
    )
    trainer.fit(module, tiny_loader(PROMPTS[:2]), ckpt_path=path)  # the same in each step: where a loader goes on is another matter
    return module, trainer


def refused(strategy: str, lora: bool) -> str:
    """What a strategy that cannot keep an average says before training."""
    jobs.quiet()
    module = jobs.module(lora=lora, ema_decay=0.6)
    try:
        tiny_trainer(devices=2, strategy=jobs.named(strategy), max_steps=1).fit(module, tiny_loader())
    except ValueError as error:
        return str(error)
    return f"trained {module.updates_done} updates"
