"""VARGRPO in a pipeline that was there before: its own DataModule, batches, reward, callback and Trainer.

    python examples/existing_pipeline.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from varrl_lightning import VARGRPO, LetteringPolicy, Prompt

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE", "CHAIR", "TABLE")


class Captions(L.LightningDataModule):
    """A pipeline's own data: batches are columns of captions and of things that VARGRPO knows nothing about."""

    def train_dataloader(self) -> DataLoader[Any]:
        return self._captions(WORDS[:6])

    def val_dataloader(self) -> DataLoader[Any]:
        return self._captions(WORDS[6:])

    def _captions(self, words: Sequence[str]) -> DataLoader[Any]:
        rows = [{"prompt": f'a card that says "{word}"', "row": number} for number, word in enumerate(words)]
        return DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


class Dark:
    """A reward of one's own: ink, as the share of dark pixels."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:  # noqa: ARG002
        return (images.mean(dim=1) < 0.5).float().mean(dim=(1, 2))


class RewardLog(L.Callback):
    """A callback of one's own: whatever VARGRPO logs is in the Trainer's metrics."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rewards.append(float(trainer.callback_metrics["reward"]))


def train(steps: int) -> tuple[VARGRPO, list[float]]:
    module = VARGRPO(
        LetteringPolicy.from_pretrained(),
        reward=Dark(),
        mask_source="full",
        m=5,
        group_size=8,
        score="sampler",
        kl_coef=0.01,
    )
    log = RewardLog()
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", callbacks=[log], logger=False, enable_checkpointing=False)
    trainer.fit(module, Captions())
    return module, log.rewards


if __name__ == "__main__":
    trained, rewards = train(steps=8)
    print("reward by step:", " ".join(f"{reward:.3f}" for reward in rewards))
    print("drawn:", tuple(trained(['"HELLO"', '"WORLD"']).shape))
