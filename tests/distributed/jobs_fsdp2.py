"""Runs under FSDP2 that are saved and go on, on every worker at the same time."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.callbacks.running import prompts_file
from tests.distributed import jobs
from tests.tiny import WORDS, TinyPolicy, TinyTransformer, tiny_module, tiny_trainer
from varrl_lightning.data import PromptDataModule
from varrl_lightning.policies.base import VARPolicy


def whole(policy: VARPolicy) -> dict[str, Tensor]:
    """All weights and buffers, whole."""
    tensors = policy.state_dict()
    return {name: x.full_tensor().clone() if isinstance(x, DTensor) else x.clone() for name, x in tensors.items()}


def fit(
    strategy: str, world_size: int, steps: int, folder: str = "", load: str = "", save: str = "", width: int = 0, **options: Any
) -> dict[str, Any]:
    """Train VARGRPO up to `steps`, from and to a checkpoint; its weights, optimizer and schedule."""
    jobs.quiet()
    module = tiny_module(TinyPolicy(TinyTransformer(width=width))) if width else jobs.module(lr_scheduler=halved, **options)
    trainer = tiny_trainer(
        devices=world_size, strategy=strategy, max_steps=steps, max_epochs=-1, use_distributed_sampler=False, limit_val_batches=0
    )
    prompts = Path(folder) / f"{uuid.uuid4()}.jsonl"
    prompts_file(prompts, WORDS)
    trainer.fit(module, PromptDataModule(train=str(prompts), batch_size=2), ckpt_path=str(Path(folder) / load) if load else None)
    if save:
        trainer.save_checkpoint(Path(folder) / save)
    state = trainer.optimizers[0].state_dict()
    return {
        "weights": whole(module.policy),
        "counters": (module.rollouts_done, module.updates_done),
        "lr": state["param_groups"][0]["lr"],
        "moments": [
            {key: (x.full_tensor() if isinstance(x, DTensor) else x).clone() for key, x in values.items()}
            for values in state["state"].values()
        ],
    }


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
