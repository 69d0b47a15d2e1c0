"""Per-Action Normalization Weighting (section 3.4): how much each token counts in the loss."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.precision import widened
from varrl_lightning.schedule import Schedule

LEAST_LOG = math.log(torch.finfo(torch.float32).tiny)
"""The logarithm of the smallest weight that float32 holds in full precision."""


def panw_weights(schedule: Schedule, start: int, stop: int, alpha: float) -> Float[Tensor, " L"]:
    """Return k_t of each token of scales `[start, stop)` (Eq. 9).

        k_t = 1 / (h_t * w_t)^alpha

    Where float32 cannot hold the smallest of them, all are divided by the largest.

    Args:
        alpha: >= 0; 0 counts all tokens alike, 1 all scales alike.

    Raises:
        ValueError: when alpha is negative or the scales are not within the schedule.

    Examples:
        >>> panw_weights(Schedule(((1, 1), (2, 2))), 0, 2, alpha=1.0)  # 1 token of weight 1, 4 tokens of weight 1/4
        tensor([1.0000, 0.2500, 0.2500, 0.2500, 0.2500])
    """
    logs = log_panw_weights(schedule, start, stop, alpha)
    if logs.min() < LEAST_LOG:
        logs = logs - logs.max()
    return logs.exp().float()


def log_panw_weights(schedule: Schedule, start: int, stop: int, alpha: float) -> Float[Tensor, " L"]:
    """Return log k_t = -alpha log(h_t w_t) of each token of scales `[start, stop)`, which no alpha is too large for.

    Args:
        alpha: >= 0, as in `panw_weights`.

    Raises:
        ValueError: as `panw_weights`.

    Examples:
        >>> log_panw_weights(Schedule(((1, 1), (2, 2))), 1, 2, alpha=100.0)[:1]  # k_t itself is 6e-61
        tensor([-138.6294], dtype=torch.float64)
    """
    lengths = _span(schedule, start, stop, alpha)
    logs = torch.tensor([_log_power(n, -alpha) for n in lengths], dtype=torch.float64)
    return logs.repeat_interleave(torch.tensor(lengths))


def scale_shares(schedule: Schedule, start: int, stop: int, alpha: float) -> list[float]:
    """Return the share of the weight that each scale of `[start, stop)` holds, for the log: n_t k_t / sum_s n_s k_s.

    Examples:
        >>> schedule = Schedule(((1, 1), (2, 2)))  # 1 and 4 tokens
        >>> scale_shares(schedule, 0, 2, alpha=0.0), scale_shares(schedule, 0, 2, alpha=1.0)
        ([0.2, 0.8], [0.5, 0.5])
    """
    logs = [_log_power(n, 1 - alpha) for n in _span(schedule, start, stop, alpha)]
    held = [math.exp(x - max(logs)) for x in logs]
    return [share / sum(held) for share in held]


def row_weights(
    k: Float[Tensor, "*rows L"],
    mask: Float[Tensor, "R L"],
    active: Bool[Tensor, " R"],
    normaliser: Literal["branch", "batch", "constant", "none"] = "branch",
    constant: float | None = None,
) -> Float[Tensor, "R L"]:
    """Compute the weight W of each token, such that the policy loss is -sum(W * surrogate) over all rows of the global batch.

        branch:    k mask / sum_t k mask within a branch, then the mean over the active branches whose mask is not empty
        batch:     k mask / sum of k mask over all active rows
        constant:  k mask / (constant * active rows)
        none:      k mask / active rows   (NextFlow's Eq. 5)

    Rows that are not active get 0. All rows of the batch are passed at once, so that micro-batches and processes can slice W and
    sum their losses and gradients.

    Args:
        k: of `panw_weights`, for all rows or for each.
        mask: of mask propagation, in [0, 1].
        active: of `group_advantages`.
        constant: what `normaliser="constant"` divides by, > 0.

    Raises:
        ValueError: when constant is missing, not positive, or given for another normaliser.

    Examples:
        Two rows, the second with one token on. `branch` gives each row half of the weight, `batch` gives each token k / 3:

        >>> k, mask = torch.tensor([1.0, 0.5, 0.5]), torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
        >>> row_weights(k, mask, torch.tensor([True, True]))
        tensor([[0.2500, 0.1250, 0.1250],
                [0.5000, 0.0000, 0.0000]])
        >>> row_weights(k, mask, torch.tensor([True, True]), "batch")
        tensor([[0.3333, 0.1667, 0.1667],
                [0.3333, 0.0000, 0.0000]])
    """
    _check_constant(normaliser, constant)
    weight = torch.where(active[:, None], k * mask, 0.0)
    held = weight.sum(dim=1)
    counted = held > 0 if normaliser == "branch" else active
    rows, total = counted.sum().to(held.dtype), held.sum()
    if normaliser == "branch":
        weight = weight / held.where(counted, torch.ones_like(held))[:, None]
    divisor = total if normaliser == "batch" else rows * (constant or 1.0)
    return weight.div(divisor.where(divisor > 0, torch.ones_like(divisor)))


def row_weights_of_logs(
    log_k: Float[Tensor, " L"],
    mask: Float[Tensor, "R L"],
    active: Bool[Tensor, " R"],
    normaliser: Literal["branch", "batch", "constant", "none"] = "branch",
    constant: float | None = None,
) -> Float[Tensor, "R L"]:
    """Compute `row_weights` from log k: `branch` and `batch`, where a factor of k cancels, then have weights for every k.

    Where float32 cannot hold k itself, it is taken relative to the largest k that the mask leaves in the branch or in the batch.
    Arguments and errors are those of `row_weights`, log k of `log_panw_weights`.

    Examples:
        The two tokens that the mask leaves share the weight, although k = exp(-1000) is 0 in float32:

        >>> log_k, mask = torch.tensor([0.0, -1000.0, -1000.0]), torch.tensor([[0.0, 1.0, 1.0]])
        >>> row_weights_of_logs(log_k, mask, torch.tensor([True]))
        tensor([[0.0000, 0.5000, 0.5000]])
    """
    log_k = log_k.to(widened(mask))
    if normaliser in ("branch", "batch") and log_k.min() < LEAST_LOG:
        on = torch.where(active[:, None] & (mask > 0), log_k, -math.inf)
        largest = on.amax(dim=1, keepdim=True) if normaliser == "branch" else on.max()
        log_k = torch.where(on.isfinite(), log_k - largest, -math.inf)
    return row_weights(log_k.exp().to(mask.dtype), mask, active, normaliser, constant)


def _log_power(n: int, exponent: float) -> float:
    """log n^exponent; beyond 1e30 one scale alone counts, and larger exponents would only overflow."""
    return max(min(exponent, 1e30), -1e30) * math.log(n)


def _span(schedule: Schedule, start: int, stop: int, alpha: float) -> list[int]:
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be >= 0 and finite, got {alpha}")
    if not 0 <= start < stop <= len(schedule):
        raise ValueError(f"scales must satisfy 0 <= start < stop <= {len(schedule)}, got [{start}, {stop})")
    return list(schedule.lengths[start:stop])


def _check_constant(normaliser: str, constant: float | None) -> None:
    if (normaliser == "constant") != (constant is not None):
        raise ValueError(f"constant belongs to normaliser 'constant' alone, got {constant} for {normaliser!r}")
    if constant is not None and not constant > 0:
        raise ValueError(f"constant must be > 0, got {constant}")
