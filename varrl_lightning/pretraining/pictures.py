"""Batches of rendered signs for pre-training the embedded model; held-out words never occur in them."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varrl_lightning.policies.lettering import ASSETS, letters_of, sign_of, styles_of
from varrl_lightning.policies.lettering_sign import COLOURS, LINES, MATERIALS, Sign
from varrl_lightning.pretraining.rendering import render_signs
from varrl_lightning.prompts.files import load_prompts


class Batch(NamedTuple):
    """Pictures of signs, and the ids that their prompts would have.

    Args:
        plain: letters on one colour, which the scales of content code.
        images: the complete pictures.
        letters: ids, cell by cell.
        styles: ids of colour and material.
    """

    plain: Float[Tensor, "R 3 H W"]
    images: Float[Tensor, "R 3 H W"]
    letters: Int[Tensor, "R S"]
    styles: Int[Tensor, "R 2"]


def batch_of(signs: Sequence[Sign], seed: int) -> Batch:
    """Draw signs; the same seed gives the same pictures."""
    plain, images = render_signs(signs, seed)
    return Batch(plain, images, torch.tensor([letters_of(s) for s in signs]), torch.tensor([styles_of(s) for s in signs]))


def read_words(path: str | Path) -> list[str]:
    """The words that the prompts of a file ask for, each once, in their order."""
    return list(dict.fromkeys(word for prompt in load_prompts(path) for word in sign_of(prompt).words))


class SignBatches(Dataset[Batch]):
    """Batch number b of rendered signs, a function of `(seed, b)` alone.

    Args:
        words: the words to choose from.
        batches: length of an epoch.
        batch_size: pictures of a batch.
        seed: of all choices.
        invented: share of words of random letters, which teach spelling rather than the list.
        forbidden: words that are never invented.
    """

    def __init__(
        self,
        words: Sequence[str],
        batches: int,
        batch_size: int,
        seed: int,
        invented: float = 0.0,
        forbidden: frozenset[str] = frozenset(),
    ) -> None:
        self.words, self.batches, self.batch_size, self.seed = words, batches, batch_size, seed
        self.invented, self.forbidden = invented, forbidden

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        rng = random.Random(f"{self.seed} {index}")
        return batch_of([self._sign(rng) for _ in range(self.batch_size)], rng.getrandbits(32))

    def _sign(self, rng: random.Random) -> Sign:
        words = tuple(self._word(rng) for _ in range(rng.randint(1, LINES)))
        colour, material = rng.choice((*COLOURS, *(None,) * len(COLOURS))), rng.choice((*MATERIALS, *(None,) * len(MATERIALS)))
        return Sign(words, colour, material)

    def _word(self, rng: random.Random) -> str:
        if rng.random() >= self.invented:
            return rng.choice(self.words)
        while True:
            word = "".join(rng.choices(string.ascii_uppercase, k=rng.choice((3, 4, 4, 5, 5, 5))))
            if word not in self.forbidden:
                return word


HELD_OUT = tuple(ASSETS / f"{split}.jsonl" for split in ("train", "validation", "test"))


class WordPictures(LightningDataModule):
    """Pictures of pre-training words and of invented ones; words of the other splits never occur in training.

    Args:
        batches: batches of an epoch.
        batch_size: pictures of a batch.
        invented: share of invented words.
        seed: of the choice of words and of the pictures.
        train: prompt file of the words that are rendered.
        validation: prompt file of the validation words.
        held_out: prompt files whose words are never rendered: those that reinforcement learning trains and tests on.
    """

    def __init__(
        self,
        batches: int,
        batch_size: int = 64,
        invented: float = 0.4,
        seed: int = 0,
        train: Path = ASSETS / "pretraining.jsonl",
        validation: Path = ASSETS / "validation.jsonl",
        held_out: Sequence[Path] = HELD_OUT,
    ) -> None:
        super().__init__()
        forbidden = frozenset(word for path in held_out for word in read_words(path))
        words = read_words(train)
        if leaked := sorted(forbidden.intersection(words)):
            raise ValueError(f"{train} holds {len(leaked)} words of the held-out files, such as {leaked[:5]}")
        self.training = SignBatches(words, batches, batch_size, seed, invented, forbidden)
        self.validation = SignBatches(read_words(validation), 4, batch_size, seed + 1)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches in their order."""
        return DataLoader(self.training, batch_size=None, collate_fn=_unchanged)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Four batches of validation words."""
        return DataLoader(self.validation, batch_size=None, collate_fn=_unchanged)


def _unchanged(batch: Any) -> Any:
    # The default collate function would make a list of the batch.
    return batch
