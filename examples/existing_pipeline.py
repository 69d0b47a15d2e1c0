"""VARGRPO in an existing pipeline, with its DataModule, batches, reward, callback, logger and Trainer.

python examples/existing_pipeline.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from varrl_lightning import VARGRPO, Prompt

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE", "CHAIR", "TABLE")


class Captions(L.LightningDataModule):
    """The pipeline's data: batches are columns of captions, and of other values that VARGRPO ignores."""

    def train_dataloader(self) -> DataLoader[Any]:
        return self._captions(WORDS[:6])

    def val_dataloader(self) -> DataLoader[Any]:
        return self._captions(WORDS[6:])

    def _captions(self, words: Sequence[str]) -> DataLoader[Any]:
        rows = [{"caption": f'a white sign that says "{word}"', "row": number} for number, word in enumerate(words)]
        return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


class Dark:
    """The pipeline's reward: ink, as the share of dark pixels."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return (images.mean(dim=1) < 0.5).float().mean(dim=(1, 2))


class RewardLog(L.Callback):
    """The pipeline's callback: everything that VARGRPO logs is in the Trainer's metrics."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rewards.append(float(trainer.callback_metrics["reward"]))


def train(steps: int, folder: str | Path) -> tuple[str, list[float]]:
    """The path of the best checkpoint by validation, and the reward of each step."""
    module = VARGRPO(
        # Plain specs, as in a configuration, are kept in the checkpoint: VARGRPO.load_from_checkpoint(path) needs nothing more.
        # Objects work too, but have to be given to load_from_checkpoint again.
        policy={"class_path": "varrl_lightning.LetteringPolicy.from_pretrained"},
        reward="existing_pipeline.Dark",
        mask_source="full",
        m=4,
        group_size=8,
        score="sampler",
        kl_coef=0.01,
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}},
        lr_scheduler={"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.1}},
    )
    log, best = RewardLog(), ModelCheckpoint(folder, "best", monitor="val/reward", mode="max", save_last=True)
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        val_check_interval=2,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        callbacks=[log, best, LearningRateMonitor()],
    )
    trainer.fit(module, Captions())
    return best.best_model_path, log.rewards


if __name__ == "__main__":
    path, rewards = train(steps=8, folder="runs/existing_pipeline")
    print("reward by step:", " ".join(f"{reward:.3f}" for reward in rewards))
    print("draw with it:", f"python examples/load_checkpoint.py {path}")
