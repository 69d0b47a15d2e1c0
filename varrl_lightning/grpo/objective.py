"""The loss of some branches, from their log-probabilities and the credit they were assigned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.losses import clipped_surrogate, kl_penalty, kl_to_old, policy_loss, truncated_importance
from varrl_lightning.grpo.credit import Rows
from varrl_lightning.types import LogProbs, Score, check_choices


@dataclass(frozen=True)
class Objective:
    """What one update minimises; each option is documented at `VARGRPO`.

        loss = -sum(W * surrogate) + kl_coef * sum(W_kl * KL(pi || ref)) + kl_old_coef * sum(W_kl * KL(pi || pi_old))

    W and W_kl are normalised over the whole batch, so the losses of micro-batches add up to the loss of the batch.
    """

    score: Score
    clip_low: float
    clip_high: float
    ratio: Literal["token", "scale_mean", "scale_sum", "bit"]
    kl_coef: float
    kl_estimator: Literal["exact", "k1", "k2", "k3"]
    kl_old_coef: float

    def __post_init__(self) -> None:
        check_choices(self)
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(f"clip_low must be in [0, 1] and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if not (0 <= self.kl_coef < math.inf and 0 <= self.kl_old_coef < math.inf):
            raise ValueError(f"kl_coef and kl_old_coef must be >= 0 and finite, got {self.kl_coef} and {self.kl_old_coef}")

    def __call__(
        self, new: LogProbs, old: LogProbs, drawn: Float[Tensor, "R L"], credit: Rows, lengths: Sequence[int]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "R L"]]]:
        """The loss of some branches, and per-token quantities for the log.

        Args:
            new: of the policy as it is.
            old: of the policy before the first update on this rollout, by the same path; detached.
            drawn: the sampler's own log-probabilities.
            credit: of these branches.
            lengths: tokens of each trained scale.
        """
        log_prob, old_log_prob = flat(new.log_prob), flat(old.log_prob)
        surrogate, clipped = clipped_surrogate(
            log_prob,
            old_log_prob,
            credit.advantages,
            self.clip_low,
            self.clip_high,
            ratio=self.ratio,
            lengths=lengths,
            mask=credit.mask,
            bit_log_prob=None if new.bit_log_prob is None else flat(new.bit_log_prob),
            old_bit_log_prob=None if old.bit_log_prob is None else flat(old.bit_log_prob),
        )
        tokens = {f"clip_ratio/{name}_mean": values for name, values in clipped.items()}
        tokens |= {"entropy": flat(new.entropy), "sampler_gap": drawn - log_prob}
        W, W_kl = credit.policy_weights, credit.kl_weights
        if self.score.kind == "corrected":
            tokens["importance"] = truncated_importance(old_log_prob, drawn, self.score.max_weight)
            W = W * tokens["importance"]
        loss = policy_loss(surrogate, W)
        if new.kl is not None and new.reference_log_prob is not None:
            tokens["kl"] = flat(new.kl)
            penalty = kl_penalty(self.kl_estimator, tokens["kl"], log_prob, flat(new.reference_log_prob))
            loss = loss + self.kl_coef * (W_kl * penalty).sum()
        if self.kl_old_coef:
            loss = loss + self.kl_old_coef * (W_kl * kl_to_old(log_prob, old_log_prob)).sum()
        return loss, tokens


def flat(scales: Sequence[Tensor]) -> Tensor:
    """A list over scales of (R, n_t, ...) as one (R, L, ...)."""
    return torch.cat(list(scales), dim=1)


def detached(x: LogProbs) -> LogProbs:
    """What later updates on a rollout compare with: the log-probabilities alone, without their graph."""
    bits = None if x.bit_log_prob is None else [b.detach() for b in x.bit_log_prob]
    return LogProbs([p.detach() for p in x.log_prob], entropy=[], bit_log_prob=bits)
