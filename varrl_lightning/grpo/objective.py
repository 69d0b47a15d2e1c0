"""The loss of a set of branches, from their log-probabilities and their credit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.losses import (
    Ratio,
    clipped_surrogate,
    kl_penalty,
    kl_to_old,
    log_ratio_of,
    policy_loss,
    truncated_importance,
    weighted_sum,
)
from varrl_lightning.configuration.specs import OptionGroup
from varrl_lightning.grpo.credit import Rows
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import LogProbs, Score, check_choices


@dataclass(frozen=True)
class KLOptions(OptionGroup):
    """How the KL is taken; its coefficient to the reference is `kl_coef`.

    Args:
        estimator: `exact`, or the sampled `k1`, `k2`, `k3`.
        old_coef: coefficient of the KL to the rollout's policy (Eq. 5: eta), >= 0; acts only with several updates a rollout.
        masked: whether the propagated mask applies to the KL.

    Raises:
        ValueError: on a value out of its range.
    """

    estimator: Literal["exact", "k1", "k2", "k3"] = "exact"
    old_coef: float = 0.0
    masked: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.old_coef < math.inf:
            raise ValueError(f"kl.old_coef must be >= 0 and finite, got {self.old_coef}")


@dataclass(frozen=True)
class Objective:
    """The loss that one update minimises.

        loss = -sum(W * surrogate) + kl_coef * sum(W_kl * KL(pi || ref)) + kl.old_coef * sum(W_kl * KL(pi || pi_old))

    W and W_kl are normalised over the whole batch, so the losses of micro-batches add up to the loss of the batch.

    Args:
        score: which distribution is trained.
        clip_low: the ratio is clipped below at 1 - clip_low; in [0, 1].
        clip_high: the ratio is clipped above at 1 + clip_high; >= 0.
        ratio: the probability that the ratio is of: `token`, `scale_mean`, `scale_sum`, `sequence_mean`, or `bit` for
            bitwise families; see `clipped_surrogate`.
        kl_coef: coefficient of the KL to the reference, >= 0; 0 needs no reference.
        kl: how the KL is taken.

    Raises:
        ValueError: on a value out of its range.
    """

    score: Score = field(default_factory=Score)
    clip_low: float = 0.2
    clip_high: float = 0.28
    ratio: Ratio = "token"
    kl_coef: float = 0.0
    kl: KLOptions = field(default_factory=KLOptions)

    def __post_init__(self) -> None:
        check_choices(self)
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise ValueError(f"clip_low must be in [0, 1] and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if not 0 <= self.kl_coef < math.inf:
            raise ValueError(f"kl_coef must be >= 0 and finite, got {self.kl_coef}")

    def check_policy(self, policy: VARPolicy) -> None:
        """Check that the loss can be computed for a policy's tokens.

        Raises:
            ValueError: for `ratio: bit` with a family whose tokens have no bits.
        """
        if self.ratio == "bit" and policy.bits is None:
            raise ValueError("ratio 'bit' is for bitwise families; this policy's tokens have no bits")

    def __call__(
        self, new: LogProbs, old: LogProbs, sampled: Float[Tensor, "R L"], credit: Rows, lengths: Sequence[int]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, "R L"]]]:
        """The loss of a set of branches, and per-token quantities for the log.

        Args:
            new: log-probabilities under the current policy.
            old: log-probabilities before the first update on this rollout, computed the same way; detached.
            sampled: log-probabilities that the sampler recorded.
            credit: weights and advantages of these branches.
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
        tokens |= {"entropy": flat(new.entropy), "sampler_gap": log_ratio_of(sampled, log_prob)}
        W, W_kl = credit.policy_weights, credit.kl_weights
        if self.score.kind == "corrected":
            tokens["importance"] = truncated_importance(old_log_prob, sampled, self.score.max_weight)
            W = W * tokens["importance"]
        loss = policy_loss(surrogate, W)
        # A token without weight may hold anything: it must not reach the gradient as 0 times infinity.
        log_prob, old_log_prob = (torch.where(W_kl != 0, x, 0.0) for x in (log_prob, old_log_prob))
        if new.kl is not None and new.reference_log_prob is not None:
            tokens["kl"] = flat(new.kl)
            reference = torch.where(W_kl != 0, flat(new.reference_log_prob), 0.0)
            penalty = kl_penalty(self.kl.estimator, tokens["kl"], log_prob, reference)
            loss = loss + self.kl_coef * weighted_sum(W_kl, penalty)
        if self.kl.old_coef:
            loss = loss + self.kl.old_coef * weighted_sum(W_kl, kl_to_old(log_prob, old_log_prob))
        return loss, tokens


def flat(scales: Sequence[Tensor]) -> Tensor:
    """A list over scales of (R, n_t, ...) as one (R, L, ...)."""
    return torch.cat(list(scales), dim=1)


def detached(x: LogProbs) -> LogProbs:
    """Log-probabilities without their graph, and their support, for later updates on the same rollout to compare with."""
    bits = None if x.bit_log_prob is None else [b.detach() for b in x.bit_log_prob]
    return LogProbs([p.detach() for p in x.log_prob], entropy=[], bit_log_prob=bits, support=x.support)
