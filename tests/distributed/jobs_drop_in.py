"""`VARGRPO` under DDP with loaders that know nothing of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tests.distributed.jobs import full_weights, module, quiet
from tests.tiny import WORDS, M, tiny_trainer, weights
from varrl_lightning.data import TrainingBatches
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.types import Prompt

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


class Repeated(IterableDataset[Any]):
    """Rows of each process's own, which are the same in every other batch."""

    def __iter__(self) -> Iterator[Any]:
        rank = torch.distributed.get_rank()
        while True:
            yield ROWS[rank]
            yield ROWS[2]


def equal(kind: str, steps: int = 2, equal_batches: str = "auto") -> dict[str, Any]:
    """Prompts of each update, weights, and what was warned of, of a run whose processes are given equal prompts."""
    quiet()
    trained = module(guards={"equal_batches": equal_batches})
    updates: list[list[str]] = []
    sample = trained._sample

    def record(prompts: Any, *rest: Any) -> Any:
        updates.append([prompt.text for prompt in prompts])
        return sample(prompts, *rest)

    trained._sample = record  # type: ignore[method-assign]
    loaders: dict[str, Any] = {
        "sampler": lambda: columns([ROWS[0]] * 4, batch_size=1),
        "stream": lambda: DataLoader(Endless(), batch_size=1),
        "own streams": lambda: DataLoader(Repeated(), batch_size=1),
        "package": lambda: TrainingBatches([Prompt(row["caption"]) for row in ROWS[:2]], 1, seed=None),
    }
    trainer = tiny_trainer(devices=2, strategy="ddp", max_steps=steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(trained, loaders[kind]())
    said = [str(w.message) for w in caught if "equal_batches" in str(w.message)]
    return {"updates": updates, "weights": weights(trained), "said": said[:1], "counters": vars(trained.counters)}


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
