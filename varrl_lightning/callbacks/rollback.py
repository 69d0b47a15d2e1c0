"""Keeps the state before a training step, to return to when the step fails half-way."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from varrl_lightning.module import VARGRPO


class Rollback:
    """Copies of what one training step changes.

    Counters, schedules and the gradient scaler are copied when the step begins; weights and optimizer moments, which are large,
    only before the first optimizer step of the rollout.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        module = trainer.lightning_module
        self.counters = module.counters.state_dict() if isinstance(module, VARGRPO) else {}
        self.updates_made = module.counters.updates_made if isinstance(module, VARGRPO) else 0
        self.schedules = [copy.deepcopy(c.scheduler.state_dict()) for c in trainer.lr_scheduler_configs]
        self.precision = copy.deepcopy(trainer.precision_plugin.state_dict())
        average = module.average if isinstance(module, VARGRPO) else None
        self.averaged: list[Tensor] = [] if average is None else list(average.parameters())
        self.weights: list[Tensor] | None = None
        self.moments: dict[Tensor, dict[str, Any]] = {}
        self.groups: list[dict[str, Any]] = []

    def copy_weights(self, optimizer: Optimizer) -> None:
        """Copy weights and moments, unless this was done earlier in the step."""
        if self.weights is not None:
            return
        self.weights = [p.detach().clone() for p in (*_parameters(optimizer), *self.averaged)]
        self.moments = {p: {k: _clone(v) for k, v in state.items()} for p, state in optimizer.state.items()}
        self.groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    @torch.no_grad()
    def restore(self, trainer: L.Trainer) -> None:
        """Restore everything that was copied."""
        if self.weights is not None:
            optimizer = trainer.optimizers[0]
            for parameter, value in zip((*_parameters(optimizer), *self.averaged), self.weights, strict=True):
                parameter.copy_(value)
            optimizer.state.clear()
            optimizer.state.update(self.moments)
            for group, options in zip(optimizer.param_groups, self.groups, strict=True):
                group.update(options)
        for config, state in zip(trainer.lr_scheduler_configs, self.schedules, strict=True):
            config.scheduler.load_state_dict(state)
        trainer.precision_plugin.load_state_dict(self.precision)
        if isinstance(trainer.lightning_module, VARGRPO):
            trainer.lightning_module.counters.load_state_dict(self.counters)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _clone(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, Tensor) else copy.deepcopy(x)
