"""The part of a LightningModule that moves the policy: optimizer steps on one rollout, by manual optimization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from varrl_lightning.checkpoints.state import Resuming
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.evaluation.evaluator import Evaluating
from varrl_lightning.grpo.credit import Credit, Rows
from varrl_lightning.grpo.diagnostics import TokenMeter
from varrl_lightning.grpo.objective import Objective, detached, flat
from varrl_lightning.policies.state import Anchor
from varrl_lightning.types import LogProbs, Rollout, Score

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
LRSchedulerFactory = Callable[[Optimizer], LRScheduler]


def paper_optimizer(params: Iterable[Any]) -> Optimizer:
    """AdamW as in the paper: betas (.9, .95), weight decay .05, and the learning rate 1e-6 of a full fine-tuning."""
    return AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)


class Updating(Evaluating, Resuming):
    """Rollout and credit in, optimizer steps out; a step that is not finite is dropped and counted."""

    score: Score
    objective: Objective
    optimizer_factory: OptimizerFactory
    lr_scheduler_factory: LRSchedulerFactory | None
    updates_per_rollout: int
    max_grad_norm: float | None
    max_bad_steps: int

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.rollouts_done = self.updates_done = 0
        self.bad_steps = self.bad_steps_in_a_row = 0
        self._loss_is_finite = True
        self._grad_norm = float("nan")

    def configure_optimizers(self) -> Any:
        """One optimizer over what requires a gradient; the schedule is stepped once per rollout."""
        optimizer = self.optimizer_factory([p for p in self.policy.parameters() if p.requires_grad])
        if self.lr_scheduler_factory is None:
            return optimizer
        return [optimizer], [self.lr_scheduler_factory(optimizer)]

    def _update(self, rollout: Rollout, credit: Credit, real: int) -> dict[str, float]:
        """All optimizer steps on one rollout, whose first `real` branches count; returns what tokens were like in the last one."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        old: dict[int, LogProbs] = {}
        size = self._micro_batch_size or len(rollout.branches)
        for _ in range(self.updates_per_rollout):
            stage = rollout.stage
            meter = TokenMeter(stage.start, rollout.schedule.lengths[stage.start : stage.stop])
            optimizer.zero_grad()
            total = torch.zeros((), device=self.policy.device)
            for first, loss in self._micro_losses(rollout, credit.rows(rollout.branches, real), real, size, old, meter):
                self.parallel.backward(self, loss, last=first + size >= len(rollout.branches))
                total = total + loss.detach()
            total = self.parallel.sum(total)
            self._loss_is_finite = bool(torch.isfinite(total))
            optimizer.step()  # clips, or drops a non-finite gradient, in on_before_optimizer_step
            if self.average is not None:
                self.average.update(self.policy, self.updates_done)
            self.updates_done += 1
            optimizer.zero_grad()  # now: the next rollout needs the room
        lr = optimizer.param_groups[0]["lr"]
        for scheduler in _as_list(self.lr_schedulers()):
            scheduler.step()
        meter = TokenMeter.join(self.parallel.gather(meter))
        return meter.compute() | {"loss": float(total), "grad_norm": self._grad_norm, "lr": lr}

    def _micro_losses(
        self, rollout: Rollout, credit: Rows, real: int, size: int, old: dict[int, LogProbs], meter: TokenMeter
    ) -> Iterator[tuple[int, Float[Tensor, ""]]]:
        """The number of the first branch and the loss of each micro-batch; they sum to the loss of the rollout."""
        lengths = rollout.schedule.lengths[rollout.stage.start : rollout.stage.stop]
        drawn = flat(rollout.log_probs)
        for rows, new in self.teacher_forced(rollout, size, self.reference):
            first = rows.start
            loss, per_token = self.objective(new, old.setdefault(first, detached(new)), drawn[rows], credit[rows], lengths)
            for name, values in per_token.items():
                meter.add(name, values[: max(real - first, 0)])
            yield first, loss

    def teacher_forced(self, rollout: Rollout, size: int, reference: Anchor | None) -> Iterator[tuple[slice, LogProbs]]:
        """What the policy as it is says of the trained scales of a rollout, `size` branches at a time."""
        stage = rollout.stage
        owners = [branch // stage.branches for branch in rollout.branches]
        touched = sorted(set(owners))
        cond = self.policy.encode_prompts([rollout.prompts[i] for i in touched])
        for first in range(0, len(owners), size):
            rows = slice(first, first + size)
            tokens = [t[rows] for t in rollout.tokens]
            index = torch.tensor([touched.index(owner) for owner in owners[rows]], device=self.policy.device)
            yield rows, self.policy(tokens, cond.at(index), stage.start, stage.stop, score=self.score, reference=reference)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; drop it where it, or the loss, is not finite. Mixed precision has unscaled it by now."""
        norm = self.parallel.gradient_norm(optimizer)
        self._grad_norm = float(norm)
        if math.isfinite(self._grad_norm) and self._loss_is_finite:
            self.bad_steps_in_a_row = 0
            if self.max_grad_norm is not None:
                self.parallel.clip(optimizer, self.max_grad_norm, norm)
            return
        self.bad_steps += 1
        if not self._scaler_is_searching():
            self.bad_steps_in_a_row += 1
        self.parallel.drop(optimizer)  # without gradients the step changes nothing, and still counts as one

    def _scaler_is_searching(self) -> bool:
        """Whether fp16 loss scaling explains a non-finite gradient: it halves its scale by such steps until they stop."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and self._loss_is_finite and scaler.get_scale() > 1

    def _stop_if_steps_keep_failing(self) -> None:
        if self.bad_steps_in_a_row >= self.max_bad_steps:
            raise RunStoppedError(
                f"the loss or its gradient was not finite in {self.bad_steps_in_a_row} steps in a row, up to rollout "
                f"{self.rollouts_done}; none of them was applied, and the state is saved. Lower the learning rate, or use "
                "precision bf16-mixed or 32 instead of 16-mixed, then resume with --ckpt_path."
            )


def _as_list(x: Any) -> list[Any]:
    if x is None:
        return []
    return list(x) if isinstance(x, (list, tuple)) else [x]
