"""Runs in which some rollouts have nothing to learn from, which every worker does at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from tests.distributed.jobs import full_weights, module, named, quiet
from tests.tiny import LeftBright, tiny_loader, tiny_trainer
from varrl_lightning.types import Prompt


class Scripted(LeftBright):
    """Scores, scores all images alike, gives no score, and scores again: one call a rollout."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            return torch.full((len(images),), 91.31956)
        values = super().__call__(images, prompts)
        return values * torch.nan if self.calls == 3 else values


def skipping(strategy: str | None, processes: int) -> dict[str, Any]:
    """Weights, counters, and which of the rollouts after the first have changed the weights."""
    quiet()
    trained = module(reward=Scripted(), kl_coef=0.0, alternation=["prefix"])
    found: list[dict[str, Tensor]] = []

    class Record(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            found.append(full_weights(trained))

    trainer = tiny_trainer(
        devices=processes, strategy=named(strategy), max_steps=4, use_distributed_sampler=False, callbacks=[Record()]
    )
    trainer.fit(trained, tiny_loader())
    changed = [any(not torch.equal(a[name], x) for name, x in b.items()) for a, b in itertools.pairwise(found)]
    return {"weights": found[-1], "changed": changed, "counters": vars(trained.counters), "steps": trainer.global_step}
