"""Runs of the tiny model with what a run leaves, for the tests of callbacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.tiny import WORDS, LeftBright, tiny_module, tiny_trainer
from varrl_lightning.data import PromptDataModule
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Scores

EVALUATION_WORDS = ("LIGHT", "WATER", "EARTH", "SMALL")


class Watched(LeftBright):
    """`LeftBright` that reads the prompt's word in bright pictures and XYZ in the others; `during` is called each time first."""

    def __init__(self, during: Callable[[], None] = lambda: None) -> None:
        self.during = during

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.during()
        values = super().__call__(images, prompts)
        return Scores(values, texts=[p.words if bright else ["XYZ"] for p, bright in zip(prompts, values > -0.06, strict=True)])


def prompts_file(path: Path, words: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": f'"{word}"'}) + "\n" for word in words))
    return str(path)


def datamodule(folder: Path) -> PromptDataModule:
    """Three training batches a pass, so that a cycle of four stages and an epoch never end together before step 12."""
    folder.mkdir(parents=True, exist_ok=True)
    return PromptDataModule(
        train=prompts_file(folder / "train.jsonl", WORDS),
        validation=prompts_file(folder / "validation.jsonl", EVALUATION_WORDS[:2]),
        test=prompts_file(folder / "test.jsonl", EVALUATION_WORDS),
        batch_size=2,
    )


def small_module(**options: Any) -> VARGRPO:
    return tiny_module(**({"group_size": 2, "num_continuations": 2, "reward": Watched()} | options))


def trainer(folder: Path, callbacks: Sequence[Callback], max_steps: int = 8, **options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "max_steps": max_steps,
        "max_epochs": -1,
        "default_root_dir": str(folder),
        "callbacks": list(callbacks),
        "enable_checkpointing": True,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return tiny_trainer(**(defaults | options))
