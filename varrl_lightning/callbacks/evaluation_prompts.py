"""Which prompts a run is judged by, and judging them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.prompts.files import PromptFileError
from varrl_lightning.types import Prompt, Sampling


def evaluation_prompts(trainer: L.Trainer) -> list[Prompt]:
    """The datamodule's test prompts, else the validation prompts; empty when there are neither."""
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if datamodule is not None:
        for stage, loader in (("test", "test_dataloader"), ("validate", "val_dataloader")):
            prompts = _from_datamodule(datamodule, stage, loader)
            if prompts:
                return prompts
    return _read(trainer.val_dataloaders or [])


def _from_datamodule(datamodule: Any, stage: str, loader: str) -> list[Prompt]:
    if not is_overridden(loader, datamodule):
        return []
    datamodule.setup(stage)
    try:
        return _read(getattr(datamodule, loader)())
    except PromptFileError:  # PromptDataModule's way of saying that it was given none for this stage
        return []


def _read(batches: Iterable[Any]) -> list[Prompt]:
    return [prompt for batch in batches for prompt in as_prompts(batch)]


def evaluate_by_size(module: Any, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> list[Evaluation]:
    """`module.scored` once for each image size, since images of several sizes do not stack."""
    sizes = dict.fromkeys(p.size for p in prompts)
    return [module.scored([p for p in prompts if p.size == size], sampling) for size in sizes]
