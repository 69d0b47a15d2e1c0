"""Predicts how much of a device's memory a training run needs, phase by phase, without a GPU and without running it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from varrl_lightning.memory.simulation import Simulation
from varrl_lightning.memory.tracking import LiveBytes, frozen_parts, size_of, tensors_of
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.scoring import packed_bytes
from varrl_lightning.types import Stage

GIB = 2**30
"""Bytes of a gibibyte."""
SMALL_COPY = GIB // 4
MARGIN = 0.1
"""Share of a device's memory that is left free for kernels' workspaces, the allocator's fragments and the rewards."""


@dataclass(frozen=True)
class Sharing:
    """What a strategy divides by the number of processes.

    Args:
        weights: whether the weights are divided, and those of the reference; each process gathers a block at a time, and all
            blocks while it samples.
        gradients: whether the averaged gradients are divided.
        moments: whether the optimizer's state is divided.
        buckets: whether gradients are copied once more, to be averaged.
        master: whether weights in half precision have a copy in fp32, which is divided as the moments are.
    """

    weights: bool = False
    gradients: bool = False
    moments: bool = False
    buckets: bool = False
    master: bool = False


STRATEGIES = {
    "single": Sharing(),
    "ddp": Sharing(buckets=True),
    "fsdp2": Sharing(weights=True, gradients=True, moments=True),
    "zero1": Sharing(moments=True, buckets=True, master=True),
    "zero2": Sharing(moments=True, gradients=True, master=True),
    "zero3": Sharing(weights=True, gradients=True, moments=True, master=True),
}


@dataclass(frozen=True)
class Phase:
    """The memory at the worst moment of one phase of a training step, in bytes.

    Args:
        name: name of the phase.
        stage: name of the stage of the cycle; empty where the phase is the same in all stages.
        parts: bytes by what they hold.
        setting: the setting to lower when the phase does not fit.
    """

    name: str
    stage: str
    parts: dict[str, int]
    setting: str

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())


def copy_is_kept(keep_copy: bool | None, trained: Iterable[Tensor]) -> bool:
    """Whether a training step keeps a copy of the weights to return to; by default (None) it does for up to 256 MiB of weights."""
    return size_of(trained) <= SMALL_COPY if keep_copy is None else keep_copy


class Forecast:
    """The memory of one process of a training run.

    Args:
        policy: the policy that is trained.
        simulation: simulation of that policy, which has read a prompt.
        stages: the cycle.
        optimizer: makes the optimizer of a list of parameters.
        prompts: P, prompts of an update.
        micro_batch_size, images_at_once: as in `VARGRPO`.
        strategy: one of `STRATEGIES`.
        world_size: number of processes.
        averaged: whether there is a moving average of the trained weights.
        updates_per_rollout: as in `VARGRPO`.
        keeps_copy: whether a step keeps a copy of weights and moments to return to, as the callback `SafeStop` does; None where
            it does so for small models only.
        foreach: whether the optimizer works on all tensors at once, as torch's do on GPUs.
        gathers: whether a strategy that shards weights holds all of them while it samples.
        accumulates_whole: whether fsdp2 holds unsharded gradients between micro-batches.
    """

    def __init__(
        self,
        policy: VARPolicy,
        simulation: Simulation,
        stages: Iterable[Stage],
        optimizer: Callable[[Iterable[Any]], Optimizer],
        prompts: int,
        micro_batch_size: int | None = None,
        images_at_once: int | None = None,
        strategy: str = "single",
        world_size: int = 1,
        averaged: bool = False,
        updates_per_rollout: int = 1,
        keeps_copy: bool | None = False,
        foreach: bool = True,
        gathers: bool = True,
        accumulates_whole: bool = True,
    ) -> None:
        self.simulation = simulation
        self.stages = list(dict.fromkeys(stages))
        self.prompts, self.world_size = prompts, world_size
        self.micro_batch_size, self.images_at_once = micro_batch_size, images_at_once
        self.sharing, self.strategy = STRATEGIES[strategy], strategy
        self.updates_per_rollout = updates_per_rollout
        self._measure_static(policy, averaged)
        self._measure_optimizer(optimizer, keeps_copy, foreach)
        self._measure_gathering(gathers, accumulates_whole)

    @property
    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.simulation.policy.parameters() if p.requires_grad]

    @property
    def _unsharded(self) -> int:
        return size_of(tensors_of(self.simulation.policy.transformer))

    def _measure_static(self, policy: VARPolicy, averaged: bool) -> None:
        """Measure what is held from the start to the end of a run."""
        shared, shards = self.sharing, self.world_size
        anchor = self.simulation.reference
        half = sum(p.numel() for p in self._trained if p.itemsize < 4)
        numbers = sum(p.numel() for p in self._trained)
        self.static = {
            "weights": _share(self._unsharded, shards, shared.weights),
            "reference": _share(self._unsharded, shards, shared.weights) if isinstance(anchor, VARPolicy) else 0,
            **{name: size_of(tensors_of(part)) for name, part in frozen_parts(policy).items()},
            "fp32 copy": _share(4 * half, shards, True) if shared.master else 0,
            "average": _share(4 * numbers, shards, shared.weights) if averaged else 0,
            "buckets": size_of(self._trained) if shared.buckets and shards > 1 else 0,
        }

    def _measure_optimizer(self, optimizer: Callable[[Iterable[Any]], Optimizer], keeps_copy: bool | None, foreach: bool) -> None:
        """Measure the optimizer's state and temporary tensors, the gradients, and the copy that a failed step returns to."""
        state, temporary, self.optimizer_problem = optimizer_bytes(optimizer, self._trained, foreach, self.sharing.master)
        shards, divided = self.world_size, self.sharing.moments
        self.moments, self.temporary = _share(state, shards, divided), _share(temporary, shards, divided)
        trained = size_of(self._trained)
        self.gradients = _share(trained, shards, self.sharing.gradients)
        # DeepSpeed keeps weights in a form of its own, of which no copy is made.
        copied = copy_is_kept(keeps_copy, self._trained) and not self.strategy.startswith("zero")
        self.copy = _share(trained, shards, self.sharing.weights) + self.moments if copied else 0
        self.static["moments"] = self.moments

    def _measure_gathering(self, gathers: bool, accumulates_whole: bool) -> None:
        """Measure the weights and gradients that a sharding strategy gathers."""
        sharded, anchors = self.sharing.weights and self.world_size > 1, 1 + isinstance(self.simulation.reference, VARPolicy)
        blocks = [size_of(tensors_of(block)) for block in self.simulation.policy.blocks()] or [0]
        # A layer is gathered while the one before it runs; weights outside the layers stay gathered for all of the pass.
        self.block = anchors * (self._unsharded - sum(blocks) + 2 * max(blocks)) if sharded else 0
        self.gathered = (anchors * self._unsharded if gathers else self.block) if sharded else 0
        unsharded = sharded and accumulates_whole and self.strategy == "fsdp2"
        self.accumulated = size_of(self._trained) if unsharded else self.gradients

    def rows(self, stage: Stage) -> int:
        """Branches that a process samples and trains."""
        return math.ceil(self.prompts * stage.branches / self.world_size)

    def rollout(self, stage: Stage, images_at_once: int | None) -> list[Phase]:
        """The phases of sampling and decoding, `images_at_once` images at a time."""
        measured = self.simulation.rollout(stage, self.rows(stage), images_at_once)
        group = self.whole_group(stage)
        common = {**self.static, "gathered weights": self.gathered, "prompts": self._prompts(stage), "whole group": group}
        named = (("rollout", measured.sampling), ("decode", measured.decoding))
        return [Phase(name, stage.name, {**common, "working": size}, "images_at_once") for name, size in named]

    def whole_group(self, stage: Stage) -> int:
        """Bytes of the images of a group, which a reward that compares them is given beside those that were sampled.

        They are a copy where the group was sampled in parts, or by several processes, of which one is given all of them.
        """
        if not self.simulation.whole_groups:
            return 0
        height, width = self.simulation.cond.schedule.image_size
        return 4 * stage.images_per_prompt * 3 * height * width

    def update(self, stage: Stage, micro_batch_size: int | None) -> Phase:
        """The phase of the forward and backward pass of the largest micro-batch."""
        rows = self.rows(stage)
        parts = {
            **self.static,
            "gradients": self.accumulated if (micro_batch_size or rows) < rows else self.gradients,
            "gathered weights": self.block,
            "prompts": self._prompts(stage),
            "rollout": self._kept(stage) + self._old(stage),
            "copy to return to": self.copy if self.updates_per_rollout > 1 else 0,
            "working": self.simulation.update(stage, min(rows, micro_batch_size or rows)),
        }
        return Phase("update", stage.name, parts, "micro_batch_size")

    def phases(self) -> list[Phase]:
        """The phases of a training step of each stage, and that of saving a checkpoint."""
        phases = []
        for stage in self.stages:
            kept = {"gradients": self.gradients, "rollout": self._kept(stage)}
            phases += self.rollout(stage, self.images_at_once)
            phases.append(self.update(stage, self.micro_batch_size))
            parts = {**self.static, **kept, "copy to return to": self.copy, "working": self.temporary}
            phases.append(Phase("optimizer step", stage.name, parts, "strategy"))
        # Tensors are written one after the other: a sharded one is gathered first.
        largest = max(x.nbytes for x in tensors_of(self.simulation.policy.transformer)) if self.gathered else 0
        saved = {**self.static, "working": largest}
        return [*phases, Phase("checkpoint save", "", saved, "strategy")]

    def largest_micro_batch(self, limit: int, new: Sequence[str] | None = None) -> int:
        """The number of branches in one backward pass that fit `limit` bytes; 0 where not even one fits.

        Of the sizes that need the same number of micro-batches it is the smallest.

        Args:
            new: the parts of the phase that count; None for all.
        """
        rows = max(self.rows(stage) for stage in self.stages)

        def need(size: int) -> int:
            phases = [self.update(stage, size) for stage in self.stages]
            return max(p.total if new is None else sum(p.parts[name] for name in new) for p in phases)

        most = largest(need, limit, rows)
        return math.ceil(rows / math.ceil(rows / most)) if most else 0

    def largest_part(self, limit: int) -> int:
        """The most images sampled at once that fit `limit` bytes; 0 where not even those of one branch fit."""
        fitting = []
        for stage in self.stages:
            K = stage.images_per_branch
            need = [lambda n, s=stage, K=K: max(p.total for p in self.rollout(s, n * K))]
            fitting.append(K * largest(need[0], limit, self.rows(stage)))
        return min(fitting)

    def _kept(self, stage: Stage) -> int:
        return self.simulation.rollout(stage, self.rows(stage), self.images_at_once).kept

    def _old(self, stage: Stage) -> int:
        """Bytes of what later updates compare with: old log-probabilities of every token and its bits, and truncated supports."""
        tokens = self.rows(stage) * self.simulation.cond.schedule.span(stage.start, stage.stop)
        policy = self.simulation.policy
        kept = self.updates_per_rollout > 1 and self.simulation.objective.score.truncated
        support = packed_bytes(policy.vocab_size, policy.bits) if kept else 0
        return tokens * (4 * (1 + (policy.bits or 0)) + support)

    def _prompts(self, stage: Stage) -> int:
        return math.ceil(self.rows(stage) / stage.branches) * self.simulation.prompt_bytes


def optimizer_bytes(
    optimizer: Callable[[Iterable[Any]], Optimizer], parameters: Sequence[nn.Parameter], foreach: bool, single: bool
) -> tuple[int, int, str]:
    """Bytes of an optimizer's state, bytes that a step takes beside it, and the error if it cannot run on tensors without memory.

    With an error the state is taken to be AdamW's two moments.

    Args:
        foreach: whether the optimizer works on all tensors at once, where it can.
        single: whether the optimizer is given fp32 copies of the parameters.
    """
    shapes = [nn.Parameter(torch.empty_like(p, device="meta", dtype=torch.float32 if single else None)) for p in parameters]
    try:
        made = optimizer(shapes)
        for group in made.param_groups:
            if "foreach" in group and group["foreach"] is None and not group.get("fused"):
                group["foreach"] = foreach
        for p in shapes:
            p.grad = torch.empty_like(p)
        with LiveBytes([*shapes, *(p.grad for p in shapes if p.grad is not None)]) as tracked:
            made.step()
        kept = size_of(x for state in made.state.values() for x in state.values() if isinstance(x, torch.Tensor))
        return kept, tracked.peak - tracked.live, ""
    except Exception as error:  # whatever a user's optimizer does with tensors that have no values
        return 2 * size_of(shapes), 0, f"{type(error).__name__}: {error}"


def largest(need: Callable[[int], int], limit: int, most: int) -> int:
    """The greatest number in [1, most] whose need is within the limit, 0 if none is; `need` rises, almost linearly."""
    if need(1) > limit:
        return 0
    if need(most) <= limit:
        return most
    low, high = 1, most
    while high - low > 1:
        below, above = need(low), need(high)
        guess = low + int((limit - below) / max(above - below, 1) * (high - low))
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if need(guess) <= limit else (low, guess)
    return low


def _share(size: int, shards: int, divided: bool) -> int:
    return math.ceil(size / shards) if divided else size
