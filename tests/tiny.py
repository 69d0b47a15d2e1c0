"""A model of four scales for unit tests, the lettering family's code on 16x16 pixels, and a reward that needs no OCR."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader

from varrl_lightning.grpo.grpo import GRPO, MicroBatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.policies.state import Cond
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ
from varrl_lightning.types import Prompt, Sampling

SCHEDULE = Schedule(((1, 1), (2, 2), (2, 4), (4, 4)), stride=(4, 4))
"""29 tokens: the grids differ in both directions, and a picture has more than one letter's width."""
M = 2
"""The middle step of `tiny_module`: 5 tokens before it, 24 after it."""
VOCABULARY = 64

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE")
PROMPTS = [Prompt(f'"{word}"') for word in WORDS]


class LeftBright:
    """Brightness of the left third minus that of the right: something that a random policy varies in."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        third = images.shape[-1] // 3
        return images[..., :third].mean((1, 2, 3)) - images[..., -third:].mean((1, 2, 3))


class Reader(BaseReward):
    """Says that it reads everything, and writes a line into a file for each time that it is asked to."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean((1, 2, 3))

    def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None]:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write("asked\n")
        return [Reading(p.words[0], True) for p in prompts]


class TinyTransformer(LetteringTransformer):
    """The lettering family's transformer with the scales of `SCHEDULE`."""

    def __init__(self, width: int = 16, depth: int = 2, heads: int = 2) -> None:
        super().__init__(vocab_size=VOCABULARY, width=width, depth=depth, heads=heads)
        self.scale = nn.Embedding(len(SCHEDULE), width)
        self.exits = self.exits[: len(SCHEDULE)]

    def picture(self, latents: Tensor, scale: int) -> Tensor:
        places = self._cells(*SCHEDULE.grids[scale], latents.device)
        return self.latent(latents.to(places.dtype)) + places + self.scale.weight[scale]


class TinyPolicy(LetteringPolicy):
    """Prefix, cache, scale-wise attention, heads and tokenizer are the lettering family's; the schedule is `SCHEDULE`."""

    def __init__(self, transformer: TinyTransformer | None = None, tokenizer: MultiScaleVQ | None = None) -> None:
        ranks = (8,) * len(SCHEDULE)
        super().__init__(
            transformer or TinyTransformer(),
            # At half strength the images of a suffix's group differ half as much, and rounding counts twice.
            tokenizer or MultiScaleVQ(SCHEDULE, VOCABULARY, ranks=ranks, content=M, strength=1.0, width=8),
        )

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        if size not in (None, SCHEDULE.image_size):
            raise ValueError(f"the tiny model draws pictures of {SCHEDULE.image_size} pixels only, got {size}")
        return SCHEDULE

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        return replace(super().encode_prompts(prompts), schedule=SCHEDULE)


def tiny_policy(seed: int = 0, kind: type[TinyPolicy] = TinyPolicy) -> TinyPolicy:
    torch.manual_seed(seed)
    policy = kind()
    # The untrained tokenizer decodes everything to one grey.
    for parameter in policy.tokenizer.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    return policy


def untrained_lettering(width: int = 16, depth: int = 2) -> LetteringPolicy:
    """All scales of the shipped model, for what depends on how many there are or how large they are."""
    torch.manual_seed(0)
    return LetteringPolicy(LetteringTransformer(width=width, depth=depth, heads=2))


def tiny_module(policy: LetteringPolicy | None = None, **options: Any) -> VARGRPO:
    defaults: dict[str, Any] = {
        "reward": LeftBright(),
        "mask_source": "full",
        "m": M,
        "group_size": 4,
        "sampling": Sampling(top_k=8),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
    }
    return VARGRPO(policy or tiny_policy(), **(defaults | options))


def tiny_trainer(**options: Any) -> L.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(defaults | options))


def tiny_loader(prompts: Sequence[Prompt] = PROMPTS, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(list(prompts), batch_size=batch_size, collate_fn=list)  # type: ignore[arg-type]


def change_losses(module: VARGRPO, change: Callable[[Tensor], Tensor]) -> None:
    """Have the updates of a module minimise something else than its losses."""

    class Changed(GRPO):
        def losses(self, *arguments: Any) -> Iterator[MicroBatch]:
            for first, loss, tokens in super().losses(*arguments):
                yield MicroBatch(first, change(loss), tokens)

    module.updater.grpo = Changed(**vars(module.grpo))


def saved(module: VARGRPO, path: Path) -> Path:
    """A checkpoint of the module's Trainer."""
    assert module.trainer is not None
    module.trainer.save_checkpoint(path)
    return path


def mean_cosine(gradients: Sequence[Tensor]) -> float:
    """Over all pairs, one by one."""
    pairs = [float(cosine_similarity(a.double(), b.double(), dim=0)) for a, b in itertools.combinations(gradients, 2)]
    return sum(pairs) / len(pairs)


def weights(module: VARGRPO) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])
