"""What every process of a test of FSDP2 does."""

from __future__ import annotations

import copy
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from tiny import PROMPTS, WORDS, tiny_module, tiny_policy, tiny_trainer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from tests.callbacks.running import prompts_file
from tests.distributed import jobs
from varrl_lightning.data import PromptDataModule
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.policies.lora import AdapterOff, add_lora
from varrl_lightning.policies.state import Cond
from varrl_lightning.strategies import parallel_of
from varrl_lightning.types import LogProbs, Sampling, Score

sys.path.append(str(Path(__file__).parents[1] / "policies"))  # where pytest finds what these import of each other

import test_llm_prefix
import test_lora_on_families as families

SAMPLING = Sampling(cfg=2.0)
UPDATES = ((0, 3), (2, None), (0, 2))
"""Spans of scales: prefixes, and a suffix."""


def made(family: str, lora: bool = False, **options: Any) -> tuple[VARPolicy, Cond]:
    """A tiny policy, and two rows for it."""
    if family == "lettering":
        policy: VARPolicy = tiny_policy()
        cond = policy.encode_prompts(PROMPTS[:2])
    elif family == "llm_prefix":
        policy = test_llm_prefix.tiny_policy("qwen2", **options)
        cond = policy.encode_prompts(test_llm_prefix.PROMPTS[:2])
    else:
        with tempfile.TemporaryDirectory() as own:  # a policy may read its file later, and another process write it again
            policy, cond = getattr(families, family)(Path(own), **options)
            policy = copy.deepcopy(policy)
    if lora:
        torch.manual_seed(0)
        for name, parameter in add_lora(policy, rank=2, alpha=4.0).transformer.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.02 * torch.randn_like(parameter)
    return policy, cond.rows(slice(0, 2))


class Updates(L.LightningModule):
    """Draws, scores and steps as VARGRPO does, with one loss for all families."""

    def __init__(self, family: str, lora: bool, anchored: bool, micro_batches: int, **options: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.policy, self.cond = made(family, lora, **options)
        self.micro_batches, self.anchored = micro_batches, anchored
        self._reference = (AdapterOff(self.policy) if lora else self.policy.frozen_copy(),)
        self.found: dict[str, Any] = {"norms": [], "whole_after_backward": []}

    def configure_model(self) -> None:
        self.parallel = parallel_of(self.trainer)
        self.parallel.configure(self.policy)
        self.parallel.configure(self.policy)

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
            scored = self._scored([t[rows] for t in state.tokens], cond.at(rows), start, stop)
            weight = torch.linspace(-1, 1, len(cond))[rows, None] / len(cond)
            loss = sum(((x * weight + 0.1 * kl / len(cond)).mean(-1).sum() for x, kl in scored), torch.zeros(()))
            last = first + size >= len(mine)
            self.parallel.backward(self, loss, last)
        self.found["whole_after_backward"].append(_whole(policy))
        optimizer.step()

    def _scored(self, tokens: list[Tensor], cond: Cond, start: int, stop: int) -> list[tuple[Tensor, Tensor]]:
        reference = self._reference[0] if self.anchored else None
        scored: LogProbs = self.policy(tokens, cond, start, stop, score=Score("sampler", SAMPLING), reference=reference)
        kl = scored.kl or [torch.zeros_like(x) for x in scored.log_prob]
        return list(zip(scored.log_prob, kl, strict=True))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        without = [n for n, p in self.policy.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, without
        norm = self.parallel.gradient_norm(optimizer)
        self.found["norms"].append(float(norm))
        self.parallel.clip(optimizer, 0.5, norm)


def _whole(policy: VARPolicy) -> list[str]:
    """Names of parameters that are gathered."""
    return [n for n, p in policy.named_parameters() if isinstance(policy, FSDPModule) and not isinstance(p, DTensor)]


def update(strategy: str, world_size: int, family: str, until: int | None = None, **options: Any) -> dict[str, Any]:
    """Weights after some updates, and what was met on the way."""
    jobs.quiet()
    defaults: dict[str, Any] = {"lora": False, "anchored": True, "micro_batches": 1}
    module = Updates(family, **(defaults | options))
    trainer = tiny_trainer(devices=world_size, strategy=named(strategy), max_epochs=1, use_distributed_sampler=False)
    updates: Any = range(len(UPDATES) if until is None else until)
    with counted(module.policy) as counts:
        trainer.fit(module, DataLoader(updates, batch_size=1))
    layers = {"most_layers": max(counts, default=0), "layers": len(module.policy.blocks())}
    return module.found | layers | {"weights": whole(module.policy)}


@contextmanager
def counted(policy: VARPolicy) -> Iterator[list[int]]:
    """For each all-gather, how many layers of the policy are whole just before it."""
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
    trainer = tiny_trainer(devices=2, strategy=named(strategy), use_distributed_sampler=False)
    module = Updates("lettering", lora=False, anchored=False, micro_batches=1)
    wanted = module.policy.frozen_copy()
    found: list[int] = []

    def drawn(policy: VARPolicy) -> list[Tensor]:
        return policy.sample(policy.begin(module.cond, SAMPLING, torch.arange(2)), 7).tokens

    def step(*_: Any) -> None:
        with counted(module.policy) as counts, module.parallel.sampling([module.policy]):
            tokens = drawn(module.policy)
        assert all(map(torch.equal, tokens, drawn(wanted)))
        assert not _whole(module.policy)
        found.append(len(counts))

    module.predict_step = step  # type: ignore[assignment]
    trainer.predict(module, DataLoader([0]), return_predictions=False)  # type: ignore[arg-type]
    return found[0]


def named(strategy: str) -> Any:
    """A strategy by its name, and its variants that hold less."""
    if strategy != "fsdp2_lean":
        return strategy
    from varrl_lightning.strategies.fsdp2 import FSDP2Strategy

    return FSDP2Strategy(sampling="sharded", accumulate="shard")


def whole(policy: VARPolicy) -> dict[str, Tensor]:
    """All weights, whole."""
    tensors = policy.state_dict()
    return {name: x.full_tensor().clone() if isinstance(x, DTensor) else x.clone() for name, x in tensors.items()}


def fit(
    strategy: str, world_size: int, steps: int, folder: str = "", load: str = "", save: str = "", width: int = 0, **options: Any
) -> dict[str, Any]:
    """Train VARGRPO up to `steps`, from and to a checkpoint; its weights, optimizer and schedule."""
    jobs.quiet()
    if width:
        module = tiny_module(LetteringPolicy(LetteringTransformer(width=width, depth=2, heads=2)))
    else:
        module = jobs.module(lr_scheduler=halved, **options)
    trainer = tiny_trainer(
        devices=world_size, strategy=strategy, max_steps=steps, max_epochs=-1, use_distributed_sampler=False, limit_val_batches=0
    )
    prompts = Path(folder) / f"{uuid.uuid4()}.jsonl"
    prompts_file(prompts, WORDS)
    trainer.fit(module, PromptDataModule(train=str(prompts), batch_size=2), ckpt_path=str(Path(folder) / load) if load else None)
    if save:
        trainer.save_checkpoint(Path(folder) / save)
    state = trainer.optimizers[0].state_dict()
    return {
        "weights": whole(module.policy),
        "counters": (module.rollouts_done, module.updates_done),
        "lr": state["param_groups"][0]["lr"],
        "moments": [
            {key: (x.full_tensor() if isinstance(x, DTensor) else x).clone() for key, x in values.items()}
            for values in state["state"].values()
        ],
    }


def halved(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
