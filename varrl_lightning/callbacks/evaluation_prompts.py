"""Finds the prompts that a run is evaluated on, and evaluates them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.prompts.files import PromptFileError
from varrl_lightning.types import Prompt, Sampling


def evaluation_prompts(trainer: L.Trainer) -> list[Prompt]:
    """The datamodule's test prompts, else the validation prompts; empty when there are neither."""
    datamodule = _datamodule_with("test_dataloader", trainer)
    if datamodule is None:
        return validation_prompts(trainer)
    datamodule.setup("test")
    try:
        return _prompts_in(datamodule.test_dataloader()) or validation_prompts(trainer)
    except PromptFileError:  # PromptDataModule was given none
        return validation_prompts(trainer)


def validation_prompts(trainer: L.Trainer) -> list[Prompt]:
    """The prompts of a fit's validation, on each process all of them where there is a datamodule; empty without a validation."""
    datamodule = _datamodule_with("val_dataloader", trainer)
    return _prompts_in((trainer.val_dataloaders or []) if datamodule is None else datamodule.val_dataloader())


def _datamodule_with(loader: str, trainer: L.Trainer) -> L.LightningDataModule | None:
    datamodule: L.LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
    return datamodule if datamodule is not None and is_overridden(loader, datamodule) else None


def _prompts_in(batches: Iterable[Any]) -> list[Prompt]:
    return [prompt for batch in batches for prompt in as_prompts(batch)]


def evaluate_by_size(module: VARGRPO, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Evaluation]:
    """Evaluate the prompts of each image size in turn, since images of different sizes cannot be stacked."""
    sizes = dict.fromkeys(p.size for p in prompts)
    return [module.evaluator.scores([p for p in prompts if p.size == size], module.parallel, sampling) for size in sizes]
