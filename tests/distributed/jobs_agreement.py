"""Runs on several processes, of which the second was given something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from tiny import WORDS, LeftBright, tiny_module, tiny_policy, tiny_trainer
from torch import Tensor

from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import RanksDisagreeError
from varrl_lightning.module import VARGRPO
from varrl_lightning.strategies import consistency

Change = Callable[[VARGRPO], None]


class After(Callback):
    """Does something to the module after a training step."""

    def __init__(self, step: int, change: Change) -> None:
        self.step, self.change = step, change

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.rollouts_done == self.step:
            self.change(pl_module)


def last_bit(x: Tensor) -> None:
    """Change the last bit of the last entry."""
    with torch.no_grad():
        x.view(torch.int32).view(-1)[-1:].bitwise_xor_(1)


def _weight(module: VARGRPO) -> Tensor:
    return module.policy.transformer.blocks[1].qkv.weight


def _tokenizer(module: VARGRPO) -> Tensor:
    return next(module.policy.tokenizer.parameters())


def _reference(module: VARGRPO) -> Tensor:
    return next(module.reference.transformer.parameters())  # type: ignore[union-attr]


def _count(module: VARGRPO) -> None:
    module.bad_steps += 1


OPTIONS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 7},
    "alpha": {"alpha": 0.7},
    "eta": {"eta": 2.0},
    "clip_high": {"clip_high": 0.5},
    "m": {"m": 3},
    "group_size": {"group_size": 8},
    "reward": {"reward": {"left": {"reward": LeftBright(), "weight": 0.5}}},
    "micro_batch_size": {"micro_batch_size": 2},
    "every": {"agree_every_n_steps": 3},
    "learning rate": {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)},
}
CHANGES: dict[str, Change] = {
    "tokenizer": lambda module: last_bit(_tokenizer(module)),
    "reference": lambda module: last_bit(_reference(module)),
    "counter": _count,
}
LATER: dict[str, Change] = {
    "weight": lambda module: last_bit(_weight(module)),
    "later counter": _count,
}


def fit(faults: list[str], folder: Path, steps: int = 5) -> tuple[str | None, int, int]:
    """The message of the error that a run stops with, the training steps it did, and how often it compared the processes.

    Args:
        faults: what the second process has different.
    """
    rank = int(os.environ["RANK"])
    faults = faults if rank == 1 else []
    file = folder / f"prompts_{rank}.jsonl"
    words = [*reversed(WORDS)] if "prompts" in faults else WORDS
    file.write_text("".join(json.dumps({"text": f'"{word}"'}) + "\n" for word in words), encoding="utf-8")
    options: dict[str, Any] = {
        "reward": {"left": {"reward": LeftBright(), "weight": 1.0}},
        "kl_coef": 0.01,
        "agree_every_n_steps": 2,
    }
    for fault in faults:
        options |= OPTIONS.get(fault, {})
    module = tiny_module(tiny_policy(int("given weights" in faults)), **options)
    for fault in faults:
        CHANGES.get(fault, lambda _: None)(module)
    callbacks: list[Callback] = [After(3, LATER[fault]) for fault in faults if fault in LATER]
    data = PromptDataModule(file, batch_size=2, seed=int("order" in faults))
    trainer = tiny_trainer(max_steps=steps + ("max_steps" in faults), strategy="ddp", devices=2, callbacks=callbacks)
    compared: list[str] = []
    compare, version = consistency._compare, consistency.version

    def counted(facts: Any, parallel: Any, when: str) -> None:
        compared.append(when)
        compare(facts, parallel, when)

    consistency._compare = counted
    if "version" in faults:
        consistency.version = lambda name: "9.9" if name == "torch" else version(name)  # type: ignore[assignment]
    message = None
    try:
        trainer.fit(module, datamodule=data)
    except RanksDisagreeError as error:
        message = str(error)
    finally:
        consistency._compare, consistency.version = compare, version
    return message, module.rollouts_done, len(compared)
