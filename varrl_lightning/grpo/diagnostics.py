"""Metrics of a training step under TRL's names, over all scales and per scale; scales count from 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.advantages import differ
from varrl_lightning.algorithms.panw import scale_shares
from varrl_lightning.algorithms.precision import widened
from varrl_lightning.algorithms.variance_components import VarianceComponents
from varrl_lightning.algorithms.vmr import vmr_bonus
from varrl_lightning.grpo.credit import BranchScores, Credit
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Stage


def reward_metrics(scores: BranchScores, credit: Credit, eta: float) -> dict[str, float]:
    """Rewards of a batch: mean, spread within groups and over the batch, components, groups without variance, VMR bonus.

    What cannot be said of a batch, since nothing in it has a score, is absent.
    """
    usable = credit.rewards[credit.valid]
    per_group = credit.rewards.masked_fill(~credit.valid, torch.nan).flatten(1)
    metrics = {
        "reward": _mean(usable),
        "reward_std": _mean(torch.stack([_std(group[torch.isfinite(group)]) for group in per_group])),
        "reward_std_batch": float(_std(usable)),
        "return_std_group": _mean(torch.stack([_std(r[torch.isfinite(r)]) for r in credit.returns])),
        "frac_reward_zero_std": 1.0 - _mean(credit.active.view(len(credit.returns), -1).any(dim=1).float()),
        "frac_invalid": 1.0 - _mean(credit.valid.float()),
    }
    if credit.rewards.shape[-1] > 1:
        bonus = vmr_bonus(credit.rewards, eta, credit.valid)
        metrics["vmr_bonus"] = _mean(bonus[torch.isfinite(bonus)])
    for name, values in scores.values.items():
        known = scores.usable[name]
        metrics[f"rewards/{name}/mean"] = _mean(values[known])
        metrics[f"rewards/{name}/std"] = float(_std(values[known]))
        for part, component in scores.components[name].items():
            metrics[f"rewards/{name}/{part}"] = _mean(component[known & torch.isfinite(component)])
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def variance_metrics(components: VarianceComponents, K: int) -> dict[str, float]:
    """Variance between continuations of a branch and between branches of a group, and the share of signal of the mean of K."""
    metrics = {"within": components.within, "between": components.between, "signal": components.signal(K)}
    return {f"variance/{name}": value for name, value in metrics.items() if not math.isnan(value)}


def credit_metrics(stage: Stage, schedule: Schedule, credit: Credit, alpha: float) -> dict[str, float]:
    """Mask coverage, over all scales and per scale, and each scale's share of the weight k_t."""
    lengths = schedule.lengths[stage.start : stage.stop]
    metrics = {"mask_coverage": _mean(credit.mask)}
    shares = scale_shares(schedule, stage.start, stage.stop, alpha)
    for scale, part, share in zip(range(stage.start + 1, stage.stop + 1), credit.mask.split(lengths, dim=1), shares, strict=True):
        metrics[f"mask_coverage/scale_{scale}"] = _mean(part)
        metrics[f"k_share/scale_{scale}"] = share
    return metrics


EXTREMES: dict[str, tuple[str, Callable[[Sequence[float]], float]]] = {
    "clip_ratio/low_mean": ("clip_ratio/low_min", min),
    "clip_ratio/high_mean": ("clip_ratio/high_max", max),
}
"""Metrics of which TRL also logs the least or the greatest of several means, here over micro-batches."""


@dataclass
class TokenMeter:
    """Means of per-token quantities over a rollout's micro-batches, over all scales and per scale.

    Args:
        start: the first scale, counted from 0.
        lengths: tokens of each scale.
        sums: sum of each quantity over the rows so far.
        rows: number of rows so far.
        parts: means of the micro-batches, for quantities whose extremes are logged.
    """

    start: int
    lengths: Sequence[int]
    sums: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    parts: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, values: Float[Tensor, "R L"]) -> None:
        """Add the values of one quantity in a micro-batch."""
        if not len(values):
            return
        total = values.detach().float().sum(dim=0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.rows[name] = self.rows.get(name, 0) + values.shape[0]
        if name in EXTREMES:
            self.parts.setdefault(name, []).append(_mean(values.detach()))

    @staticmethod
    def join(meters: Sequence[TokenMeter]) -> TokenMeter:
        """The meters of several processes for the same scales, as one."""
        joined = TokenMeter(meters[0].start, meters[0].lengths)
        for meter in meters:
            for name, total in meter.sums.items():
                joined.sums[name] = joined.sums[name] + total if name in joined.sums else total
                joined.rows[name] = joined.rows.get(name, 0) + meter.rows[name]
            for name, means in meter.parts.items():
                joined.parts.setdefault(name, []).extend(means)
        return joined

    def compute(self) -> dict[str, float]:
        """Means over tokens: `name`, and `name/scale_t` with t counted from 1."""
        means: dict[str, float] = {}
        for name, total in self.sums.items():
            mean = total / self.rows[name]
            means[name] = _mean(mean)
            for scale, part in enumerate(mean.split(self.lengths), start=self.start + 1):
                means[f"{name}/scale_{scale}"] = _mean(part)
        for name, part_means in self.parts.items():
            extreme, choose = EXTREMES[name]
            means[extreme] = choose(part_means)
        return means


def _mean(x: Tensor) -> float:
    return float(x.float().mean()) if x.numel() else float("nan")


def _std(x: Tensor) -> Tensor:
    """Unbiased std; exactly 0 of equal numbers, which their rounded mean would hide."""
    if x.numel() < 2 or not differ(x, torch.ones_like(x, dtype=torch.bool)):
        return x.new_zeros(())
    return widened(x).std().to(x.dtype)
