"""Updates of a tiny policy of each family, on one process or under a strategy that shards its weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from tests import families
from tests.distributed import jobs
from tests.tiny import tiny_trainer
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff
from varrl_lightning.policies.state import Cond
from varrl_lightning.strategies import parallel_of
from varrl_lightning.types import LogProbs, Sampling, Score

SAMPLING = Sampling(cfg=2.0)
UPDATES = ((0, 3), (2, None), (0, 2))
"""Spans of scales: prefixes, and a suffix."""
MAX_NORM = 0.2
"""Below the largest gradient norm of every family."""


def made(family: str, lora: bool = False, **options: Any) -> tuple[VARPolicy, Cond]:
    """A tiny policy, and two rows for it."""
    with tempfile.TemporaryDirectory() as own:  # a policy may read its file later, and another process write it again
        if family == "llm_prefix":
            policy: VARPolicy = families.load_llm_prefix(**options)
            cond = policy.encode_prompts(families.LLM_PROMPTS)
        else:
            policy, cond = getattr(families, family)(Path(own), **options)
        policy = copy.deepcopy(policy)
    if lora:
        families.disturbed(policy)
    return policy, cond.rows(slice(0, 2))


class Updates(L.LightningModule):
    """Draws, scores and steps as VARGRPO does, with one loss for all families."""

    def __init__(self, family: str, lora: bool, micro_batches: int, **options: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.cond = made(family, lora, **options)
        self.micro_batches = micro_batches
        self._reference = (AdapterOff(self.policy) if lora else self.policy.frozen_copy(),)
        self.found: dict[str, Any] = {"norms": [], "whole_after_backward": []}

    def configure_model(self) -> None:
        self.parallel = parallel_of(self.trainer)
        self.parallel.configure(self.policy)
        self.parallel.configure(self.policy)

    def setup(self, stage: str) -> None:
        parallel_of(self.trainer).check_optimization(MAX_NORM)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.policy.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)

    def on_fit_start(self) -> None:
        if isinstance(self._reference[0], VARPolicy):
            self.parallel.place_reference(self._reference[0], self.policy)

    def training_step(self, batch: Any, index: int) -> None:
        start, stop = UPDATES[index]
        stop = stop or len(self.cond.schedule)
        policy, cond = self.policy, self.cond.repeat(4)
        with self.parallel.sampling([policy]):
            state = policy.begin(cond, SAMPLING, torch.arange(len(cond)) + 100 * index)
            state = policy.sample(state, len(cond.schedule))
        # Each process takes its half of the rows, in the same number of calls.
        mine = range(len(cond))[self.parallel.rank :: self.parallel.world_size]
        size = len(mine) // self.micro_batches
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        for first in range(0, len(mine), size):
            rows = torch.tensor(mine[first : first + size])
            tokens = [t[rows] for t in state.tokens]
            scored: LogProbs = policy(
                tokens, cond.at(rows), start, stop, score=Score("sampler", SAMPLING), reference=self._reference[0]
            )
            weight = torch.linspace(-1, 1, len(cond))[rows, None] / len(cond)
            terms = zip(scored.log_prob, scored.kl, strict=True)
            loss = sum(((x * weight + 0.1 * kl / len(cond)).mean(-1).sum() for x, kl in terms), torch.zeros(()))
            self.parallel.backward(self, loss, last=first + size >= len(mine))
        self.found["whole_after_backward"].append(gathered(policy))
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.parallel.kind in ("single", "fsdp2"):  # an engine has the gradients elsewhere
            without = [n for n, p in self.policy.named_parameters() if p.requires_grad and p.grad is None]
            assert not without, without
        norm = self.parallel.gradient_norm(optimizer)
        self.found["norms"].append(float(norm))
        self.parallel.clip(optimizer, MAX_NORM, norm)


def gathered(policy: VARPolicy) -> list[str]:
    """Names of parameters that FSDP2 has made whole."""
    return [n for n, p in policy.named_parameters() if isinstance(policy, FSDPModule) and not isinstance(p, DTensor)]


def update(strategy: str | None, world_size: int, family: str, until: int | None = None, **options: Any) -> dict[str, Any]:
    """Weights after some updates, and what was met on the way."""
    jobs.quiet()
    module = Updates(family, **({"lora": False, "micro_batches": 1} | options))
    trainer = tiny_trainer(devices=world_size, strategy=jobs.named(strategy), max_epochs=1, use_distributed_sampler=False)
    updates: Any = range(len(UPDATES) if until is None else until)
    with counted(module.policy) as counts:
        trainer.fit(module, DataLoader(updates, batch_size=1))
    layers = {"most_layers": max(counts, default=0), "layers": len(module.policy.blocks())}
    return module.found | layers | {"weights": jobs.full_weights(module, frozen=True)}


@contextmanager
def counted(policy: VARPolicy) -> Iterator[list[int]]:
    """For each all-gather of FSDP2, how many layers of the policy are whole just before it."""
    counts: list[int] = []
    unshard = FSDPParamGroup.unshard
    layers = policy.blocks()

    def counting(group: FSDPParamGroup, async_op: bool = False) -> None:
        if not group.is_unsharded and group._all_gather_result is None:
            counts.append(sum(not isinstance(next(layer.parameters()), DTensor) for layer in layers))
        unshard(group, async_op)

    FSDPParamGroup.unshard = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        FSDPParamGroup.unshard = unshard  # type: ignore[method-assign]


def rollout_gathers(strategy: str) -> int:
    """All-gathers while one rollout is drawn, whose weights are those of a policy that is not sharded."""
    jobs.quiet()
    trainer = tiny_trainer(devices=2, strategy=jobs.named(strategy), use_distributed_sampler=False)
    module = Updates("lettering", lora=False, micro_batches=1)
    wanted = module.policy.frozen_copy()
    found: list[int] = []

    def drawn(policy: VARPolicy) -> list[Tensor]:
        return policy.sample(policy.begin(module.cond, SAMPLING, torch.arange(2)), len(module.cond.schedule)).tokens

    def step(*_: Any) -> None:
        with counted(module.policy) as counts, module.parallel.sampling([module.policy]):
            tokens = drawn(module.policy)
        assert all(map(torch.equal, tokens, drawn(wanted)))
        assert not gathered(module.policy)
        found.append(len(counts))

    module.predict_step = step  # type: ignore[assignment]
    trainer.predict(module, DataLoader([0]), return_predictions=False)  # type: ignore[arg-type]
    return found[0]
