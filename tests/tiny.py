"""A lettering model small enough for unit tests, and rewards that need no OCR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.types import Prompt, Sampling

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE")
PROMPTS = [Prompt(f'"{word}"') for word in WORDS]


class LeftBright:
    """Brightness of the left third minus that of the right: something that a random policy varies in."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        third = images.shape[-1] // 3
        return images[..., :third].mean((1, 2, 3)) - images[..., -third:].mean((1, 2, 3))


def tiny_policy(seed: int = 0) -> LetteringPolicy:
    torch.manual_seed(seed)
    policy = LetteringPolicy(LetteringTransformer(width=16, depth=2, heads=2))
    # The untrained tokenizer decodes everything to one grey.
    for parameter in policy.tokenizer.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    # All scales count alike: at half strength the images of a suffix's group differ half as much, and rounding counts twice.
    policy.tokenizer.strength = 1.0
    return policy


def tiny_module(policy: LetteringPolicy | None = None, **options: Any) -> VARGRPO:
    defaults: dict[str, Any] = {
        "reward": LeftBright(),
        "mask_source": "full",
        "m": 4,
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


def weights(module: VARGRPO) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])
