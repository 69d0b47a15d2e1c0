"""`VARGRPO` under DDP with loaders that know nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.distributed.jobs import full_weights, module, quiet
from tests.tiny import WORDS, M, tiny_trainer, weights
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.batches import as_prompts

ROWS = [{"caption": f'"{word}"', "row": number} for number, word in enumerate(WORDS)]


SPEC: Any = {"class_path": "tests.tiny.tiny_policy"}


class Endless(IterableDataset[Any]):
    """The same rows on every process: Lightning gives streams no sampler."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from ROWS


class Given(L.Callback):
    """The captions that this process was given."""

    def __init__(self) -> None:
        self.captions: list[list[str]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.captions.append([prompt.text for prompt in as_prompts(batch)])


def columns(rows: Sequence[Any] = ROWS, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(list(rows), batch_size=batch_size)  # type: ignore[arg-type]


def fit(stream: bool = False, steps: int = 4) -> tuple[Tensor, list[list[str]], float]:
    """Weights, the captions of each batch, and the last `val/reward`."""
    quiet()
    trained, given = module(), Given()
    trainer = tiny_trainer(devices=2, strategy="ddp", max_steps=steps, callbacks=[given], val_check_interval=1)
    loader = DataLoader(Endless(), batch_size=2) if stream else columns()
    trainer.fit(trained, loader, columns(ROWS[:4]))
    return weights(trained), given.captions, float(trainer.callback_metrics["val/reward"])


def alone(batches: Sequence[Sequence[str]]) -> Tensor:
    """Weights of one process that is given these batches."""
    quiet()
    trained = module()
    loader: DataLoader[Any] = DataLoader([list(batch) for batch in batches], batch_size=None)  # type: ignore[arg-type]
    tiny_trainer(max_steps=len(batches)).fit(trained, loader)
    return weights(trained)


def sharded(folder: Path) -> Tensor:
    """The whole trained weights of a run under FSDP2 that saves a folder."""
    quiet()
    trained = VARGRPO(SPEC, reward="tests.tiny.LeftBright", mask_source="full", m=M, group_size=2)
    trainer = tiny_trainer(devices=2, strategy="fsdp2", max_steps=2)
    trainer.fit(trained, columns())
    trainer.save_checkpoint(folder, weights_only=False)
    return torch.cat([x.flatten() for x in full_weights(trained).values()])


def predict(rows: int, batch_size: int, strategy: str = "ddp") -> list[Tensor]:
    """The pictures of each batch of this process."""
    quiet()
    found = tiny_trainer(devices=2, strategy=strategy).predict(module(), columns(ROWS[:rows], batch_size))
    assert found is not None
    return list(found)  # type: ignore[arg-type]


def drawn_alone(captions: Sequence[str]) -> Tensor:
    """What one process draws of captions."""
    with torch.no_grad():
        pictures: Tensor = module()(list(captions))
    return pictures
