"""Optimizer steps on one rollout, by manual optimization."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from varrl_lightning.errors import RunStoppedError
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.diagnostics import TokenMeter
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.strategies import Parallel
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.training.guards import Guards
from varrl_lightning.types import LogProbs, Rollout

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
LRSchedulerFactory = Callable[[Optimizer], LRScheduler]


def paper_optimizer(params: Iterable[Any]) -> Optimizer:
    """AdamW as in the paper: betas (.9, .95), weight decay .05, and the learning rate 1e-6 of a full fine-tuning."""
    return AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)


def check_update(updates_per_rollout: int, max_grad_norm: float | None) -> None:
    """Check how a rollout is trained on; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: names the argument, its range and what was given.
    """
    if updates_per_rollout < 1:
        raise ValueError(f"updates_per_rollout must be at least 1, got {updates_per_rollout}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ValueError(f"max_grad_norm must be > 0, got {max_grad_norm}")


class Updater:
    """Makes optimizer steps on a rollout and its credit; a step that is not finite is dropped, one without a gradient skipped.

    Both are counted, and count as steps of the Trainer: a run has as many whether or not some are empty.

    Args:
        policy: the policy that is trained.
        reference: what the KL is taken to, if there is a KL.
        grpo: its losses are minimised.
        counters: counters of the run; the updater counts optimizer steps and bad steps in them.
        average: the average of the weights, if one is kept.
        updates_per_rollout: optimizer steps on one rollout, >= 1.
        max_grad_norm: gradients are clipped to this norm, > 0; None for no clipping.
        guards: when bad steps stop the run.
    """

    def __init__(
        self,
        policy: VARPolicy,
        reference: Anchor | None,
        grpo: GRPO,
        counters: RunCounters,
        average: WeightAverage | None,
        updates_per_rollout: int,
        max_grad_norm: float | None,
        guards: Guards,
    ) -> None:
        check_update(updates_per_rollout, max_grad_norm)
        self.policy, self.reference, self.grpo, self.counters = policy, reference, grpo, counters
        self.average = average
        self.updates_per_rollout, self.max_grad_norm, self.guards = updates_per_rollout, max_grad_norm, guards
        self._loss_is_finite = True
        self._grad_norm = float("nan")
        self.skipped = False
        """Whether the last rollout had nothing to learn from."""
        self._said: set[bool] = set()

    def update(
        self,
        module: L.LightningModule,
        parallel: Parallel,
        rollout: Rollout,
        credit: Credit,
        real_branches: int,
        stopwatch: Stopwatch,
        *,
        micro_batch_size: int | None,
    ) -> dict[str, float]:
        """Make all optimizer steps on one rollout, or none; the metrics of its tokens are those of the last step.

        Without anything to learn from, neither a forward nor a backward pass is made, and the optimizer is not asked for a step:
        its momentum and weight decay would move the weights, and its moments would fade. Schedules go on, as with every rollout.

        Args:
            module: the module whose Trainer has the optimizer and the schedules.
            real_branches: number of the rollout's first branches that count; the others only fill up.
            stopwatch: is told how many micro-batches of all these steps are done.
            micro_batch_size: branches of a micro-batch; None for all.
        """
        optimizer = module.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        lr = optimizer.param_groups[0]["lr"]
        judged = bool(credit.valid.any())
        self.counters.unjudged_rollouts += not judged
        self.counters.unjudged_in_a_row = 0 if judged else self.counters.unjudged_in_a_row + 1
        # One answer for all processes: an update is made by all of them or by none.
        self.skipped = not parallel.highest(self.grpo.learns_from(credit))
        if self.skipped:
            metrics = self._skip(module.trainer, judged)
        else:
            size = micro_batch_size or len(rollout.branches)
            metrics = self._steps(module, optimizer, parallel, rollout, credit, real_branches, stopwatch, size)
        for scheduler in _as_list(module.lr_schedulers()):
            scheduler.step()
        return metrics | {"lr": lr}

    def _skip(self, trainer: L.Trainer, judged: bool) -> dict[str, float]:
        """Count the optimizer steps on a rollout without making them."""
        self.counters.updates_done += self.updates_per_rollout
        self.counters.skipped_steps += self.updates_per_rollout
        progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress  # of which `global_step` is read
        for _ in range(self.updates_per_rollout):
            progress.increment_ready()
            progress.increment_completed()
        if judged not in self._said:
            self._said.add(judged)
            self._say_skipped(judged)
        return {"loss": 0.0, "grad_norm": 0.0} if judged else {}

    def _say_skipped(self, judged: bool) -> None:
        number = self.counters.rollouts_done
        if judged:
            rank_zero_info(
                f"rollout {number} says nothing: in each group all returns are equal, or the mask leaves no token; and there is no "
                "KL. Such updates are skipped and counted as skipped_steps; this is said once"
            )
            return
        rank_zero_warn(
            f"no reward ({', '.join(self.grpo.rewards.terms)}) gave a score to any image of rollout {number}. Such updates are "
            f"skipped and counted as unjudged_rollouts; this is said once, and {self.guards.max_bad_steps} in a row "
            "(guards.max_bad_steps) stop the run"
        )

    def _steps(
        self,
        module: L.LightningModule,
        optimizer: LightningOptimizer,
        parallel: Parallel,
        rollout: Rollout,
        credit: Credit,
        real_branches: int,
        stopwatch: Stopwatch,
        size: int,
    ) -> dict[str, float]:
        old: dict[int, LogProbs] = {}
        each = -(-len(rollout.branches) // size)
        stopwatch.tell("update", 0, self.updates_per_rollout * each)
        for number in range(self.updates_per_rollout):
            last = number == self.updates_per_rollout - 1
            stage = rollout.stage
            meter = TokenMeter(stage.start, rollout.schedule.lengths[stage.start : stage.stop])
            optimizer.zero_grad()
            total = torch.zeros((), device=self.policy.device)
            rows = credit.rows(rollout.branches, real_branches)
            for first, loss, tokens in self.grpo.losses(self.policy, self.reference, rollout, rows, size, old, last):
                for name, values in tokens.items():
                    meter.add(name, values[: max(real_branches - first, 0)])
                parallel.backward(module, loss, last=first + size >= len(rollout.branches))
                total = total + loss.detach()
                stopwatch.tell("update", number * each + first // size + 1, self.updates_per_rollout * each)
            total = parallel.sum(total)
            self._loss_is_finite = bool(torch.isfinite(total))
            optimizer.step()  # Lightning calls VARGRPO.on_before_optimizer_step, which clips or drops the gradient
            if self.average is not None:
                self.average.update(self.policy, self.counters.updates_made)
            self.counters.updates_done += 1
            optimizer.zero_grad()  # now, since the next rollout needs the memory
        meter = TokenMeter.join(parallel.gather(meter))
        return meter.compute() | {"loss": float(total), "grad_norm": self._grad_norm}

    def before_optimizer_step(self, trainer: L.Trainer, parallel: Parallel, optimizer: Optimizer) -> None:
        """Clip the gradient, or drop it when it or the loss is not finite. Mixed precision has already unscaled it."""
        norm = parallel.gradient_norm(optimizer)
        self._grad_norm = float(norm)
        if math.isfinite(self._grad_norm) and self._loss_is_finite:
            self.counters.bad_steps_in_a_row = 0
            if self.max_grad_norm is not None:
                parallel.clip(optimizer, self.max_grad_norm, norm)
            return
        self.counters.bad_steps += 1
        if not self._scaler_is_searching(trainer):
            self.counters.bad_steps_in_a_row += 1
        parallel.drop(optimizer)  # without gradients the step changes nothing, and still counts as one

    def _scaler_is_searching(self, trainer: L.Trainer) -> bool:
        """Whether fp16 loss scaling explains a non-finite gradient: the scaler halves its scale after each one until they stop."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        return scaler is not None and self._loss_is_finite and scaler.get_scale() > 1

    def stop_if_steps_keep_failing(self) -> None:
        """End a run that no longer learns.

        Raises:
            RunStoppedError: after `guards.max_bad_steps` bad steps, or unjudged rollouts, in a row.
        """
        unjudged = self.counters.unjudged_in_a_row
        if unjudged >= self.guards.max_bad_steps:
            raise RunStoppedError(
                f"no reward ({', '.join(self.grpo.rewards.terms)}) gave a score to any image of {unjudged} rollouts in a row, up "
                f"to rollout {self.counters.rollouts_done}; none of them changed the policy, and the state before the last is saved"
                ". Check the reward (doctor runs it) and the prompts, then resume with --ckpt_path; guards.max_bad_steps says how "
                "many to bear."
            )
        if self.counters.bad_steps_in_a_row >= self.guards.max_bad_steps:
            raise RunStoppedError(
                f"the loss or its gradient was not finite in {self.counters.bad_steps_in_a_row} steps in a row, up to rollout "
                f"{self.counters.rollouts_done}; none of them was applied, and the state is saved. Lower the learning rate, or use "
                "precision bf16-mixed or 32 instead of 16-mixed, then resume with --ckpt_path."
            )


def _as_list(x: Any) -> list[Any]:
    if x is None:
        return []
    return list(x) if isinstance(x, (list, tuple)) else [x]
