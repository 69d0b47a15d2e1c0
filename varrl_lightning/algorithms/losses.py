"""Policy loss and penalties, per token: (R, L), scale after scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Ratio = Literal["token", "scale_mean", "scale_sum", "sequence_mean", "bit"]
"""Whose probability the ratio is of."""

_MAX_LOG_RATIO = 20.0
"""Its exp is finite in fp32; a ratio beyond it says nothing and gives no gradient."""
_MIN_LOG_RATIO = -200.0
"""Its exp is 0 in fp32, and 0 times it is 0."""


def clipped_surrogate(
    log_prob: Float[Tensor, "R L"],
    old_log_prob: Float[Tensor, "R L"],
    advantages: Float[Tensor, " R"],
    clip_low: float,
    clip_high: float,
    *,
    ratio: Ratio = "token",
    lengths: Sequence[int] | None = None,
    mask: Float[Tensor, "R L"] | None = None,
    bit_log_prob: Float[Tensor, "R L D"] | None = None,
    old_bit_log_prob: Float[Tensor, "R L D"] | None = None,
) -> tuple[Float[Tensor, "R L"], dict[str, Float[Tensor, "R L"]]]:
    """Compute PPO's clipped surrogate of each token, to be maximised, and where it was clipped.

        min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)

        token:       r = pi(token) / pi_old(token)
        scale_mean:  r_t = exp(mean of the log-ratios of the scale's active tokens), the same for all tokens of scale t
        scale_sum:   r_t = exp(their sum), the ratio of the whole action a_t; its surrogate is shared out among these tokens,
                     so that the sum over the scale counts it once
        sequence_mean:  r = exp(mean of the log-ratios of all active tokens of the row), the same for all of them (GSPO, arXiv
                     2507.18071, Eq. 7); its clips are far narrower, 3e-4 and 4e-4 there
        bit:         r of each bit, clipped bit by bit; the token's surrogate is the sum over its bits, so that its
                     gradient at r = 1 is the one of `token`

    At r = 1 the gradient is the same for all five, summed over a scale of equally weighted tokens; for `sequence_mean`, over a
    row of such.

    A token (bit) that is impossible under both policies, as one that a mask leaves out may be, has the ratio 1 and no gradient.

    The second result holds, per token (per bit, averaged), the fraction clipped: `low` (r < 1 - clip_low with A < 0),
    `high` (r > 1 + clip_high with A > 0) and `region` (either).

    Args:
        clip_low: in [0, 1].
        clip_high: >= 0; infinity never clips.
        lengths: tokens of each scale, for the ratios of a scale.
        mask: a token is active where it is > 0; None takes all. A scale without active tokens has the ratio 1.
        bit_log_prob: log-probability of each bit, for `bit`.

    Raises:
        ValueError: when a clip is out of range or an argument that the ratio needs is missing.

    Examples:
        Three tokens with the ratios 1.1, 1.5 and 0.5, in a row with A = 1 and in one with A = -1, clipped to [0.8, 1.2]:

        >>> log_prob, old = torch.tensor([[1.1, 1.5, 0.5]] * 2).log(), torch.zeros(2, 3)
        >>> surrogate, clipped = clipped_surrogate(log_prob, old, torch.tensor([1.0, -1.0]), 0.2, 0.2)
        >>> surrogate
        tensor([[ 1.1000,  1.2000,  0.5000],
                [-1.1000, -1.5000, -0.8000]])
        >>> clipped["region"]
        tensor([[0., 1., 0.],
                [0., 0., 1.]])

        The last two tokens as one action: the ratio 1.5 * 0.5 = 0.75, half of it for each token.

        >>> clipped_surrogate(log_prob[:1], old[:1], torch.ones(1), 0.5, 0.5, ratio="scale_sum", lengths=[1, 2])[0]
        tensor([[1.1000, 0.3750, 0.3750]])
    """
    if not 0 <= clip_low <= 1:
        raise ValueError(f"clip_low must be in [0, 1], got {clip_low}")
    if not clip_high >= 0:
        raise ValueError(f"clip_high must be >= 0, got {clip_high}")
    if ratio == "bit":
        if bit_log_prob is None or old_bit_log_prob is None:
            raise ValueError("ratio 'bit' needs bit_log_prob and old_bit_log_prob: this policy's tokens have no bits")
        log_ratio = log_ratio_of(bit_log_prob, old_bit_log_prob)  # (R, L, D)
    else:
        log_ratio = log_ratio_of(log_prob, old_log_prob)[..., None]  # (R, L, 1)
    share = torch.ones_like(log_prob)
    if ratio in ("scale_mean", "scale_sum", "sequence_mean"):
        if ratio == "sequence_mean":
            lengths = [log_prob.shape[1]]
        log_ratio, active = _scale_log_ratio(log_ratio.squeeze(-1), lengths, mask, ratio)
        log_ratio = log_ratio[..., None]
        share = 1 / active if ratio == "scale_sum" else share
    r = log_ratio.clamp(max=_MAX_LOG_RATIO).exp()
    A = advantages.detach()[:, None, None]
    surrogate = torch.minimum(r * A, r.clamp(1 - clip_low, 1 + clip_high) * A).sum(dim=-1) * share
    low = ((r < 1 - clip_low) & (A < 0)).to(surrogate.dtype).mean(dim=-1)
    high = ((r > 1 + clip_high) & (A > 0)).to(surrogate.dtype).mean(dim=-1)
    return surrogate, {"low": low, "high": high, "region": low + high}


def log_ratio_of(log_prob: Float[Tensor, "*dims"], other: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """Return log(p / q) of each token, with a gradient to p alone; 0, without one, where both are 0 and the ratio says nothing.

    Examples:
        >>> log_ratio_of(torch.tensor([0.5, 0.0]).log(), torch.tensor([0.25, 0.0]).log())
        tensor([0.6931, 0.0000])
    """
    impossible = (log_prob == -math.inf) & (other == -math.inf)
    return log_prob.masked_fill(impossible, 0.0) - other.detach().masked_fill(impossible, 0.0)


def policy_loss(surrogate: Float[Tensor, "R L"], W: Float[Tensor, "R L"]) -> Float[Tensor, ""]:
    """Return the loss of a (micro-)batch, to be summed over micro-batches: -sum(W * surrogate), W of `row_weights`.

    A token of weight 0 adds nothing, whatever its surrogate is.

    Examples:
        >>> policy_loss(surrogate=torch.tensor([[1.0, 3.0]]), W=torch.tensor([[0.75, 0.25]]))  # -(0.75 + 0.75)
        tensor(-1.5000)
    """
    return -weighted_sum(W, surrogate)


def weighted_sum(W: Float[Tensor, "R L"], x: Float[Tensor, "R L"]) -> Float[Tensor, ""]:
    """Return sum(W * x), to which a token of weight 0 adds nothing, also where x is infinite or NaN.

    Examples:
        >>> weighted_sum(torch.tensor([[0.5, 0.0]]), torch.tensor([[3.0, torch.inf]]))
        tensor(1.5000)
    """
    return torch.where(W != 0, W * x, 0.0).sum()


def kl_penalty(
    kind: Literal["exact", "k1", "k2", "k3"],
    exact: Float[Tensor, "R L"] | None,
    log_prob: Float[Tensor, "R L"],
    reference_log_prob: Float[Tensor, "R L"] | None,
) -> Float[Tensor, "R L"]:
    """Compute the penalty of each token for leaving the reference, in nats, differentiable (k1-k3: Schulman's estimators).

        exact:  sum_v pi(v) log(pi(v) / ref(v))    value and gradient are those of KL(pi || ref)
        k1:     d = log pi - log ref               value unbiased; gradient 0 in expectation, NOT the KL's
        k2:     d^2 / 2                            value biased; gradient the KL's in expectation
        k3:     exp(-d) + d - 1                    value unbiased; gradient that of KL(ref || pi), NOT the KL's

    The expectations of k1-k3 are over tokens sampled from pi itself.

    Raises:
        ValueError: when an argument that the kind needs is missing.

    Examples:
        A token with pi = 1/2 and ref = 1/4, so d = log 2 = 0.6931:

        >>> log_prob, reference = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
        >>> [round(kl_penalty(kind, None, log_prob, reference).item(), 4) for kind in ("k1", "k2", "k3")]
        [0.6931, 0.2402, 0.1931]
    """
    if kind == "exact":
        if exact is None:
            raise ValueError("kl 'exact' needs the exact KL of each token, got None: ask forward for a reference")
        return exact
    if reference_log_prob is None:
        raise ValueError(f"kl {kind!r} needs reference_log_prob, got None: ask forward for a reference")
    d = log_ratio_of(log_prob, reference_log_prob)
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    return (-d).clamp(max=_MAX_LOG_RATIO).exp() + d - 1


def kl_to_old(log_prob: Float[Tensor, "R L"], old_log_prob: Float[Tensor, "R L"]) -> Float[Tensor, "R L"]:
    """Estimate KL(pi || pi_old) of Eq. 5 from tokens sampled from pi_old, in nats, >= 0.

        r log r - r + 1,   r = pi / pi_old

    The estimate is unbiased in value and gradient. Its gradient, log r * grad r, is 0 at theta = theta_old: it acts from the second
    update on the same rollout.

    Examples:
        >>> kl_to_old(torch.tensor([[1.0, 2.0]]).log(), torch.zeros(1, 2))  # 0 at r = 1; 2 log 2 - 2 + 1 at r = 2
        tensor([[0.0000, 0.3863]])
    """
    log_r = log_ratio_of(log_prob, old_log_prob).clamp(max=_MAX_LOG_RATIO)
    r = log_r.exp()
    return r * log_r.clamp(min=_MIN_LOG_RATIO) - r + 1


def truncated_importance(
    log_prob_model: Float[Tensor, "R L"], log_prob_sampler: Float[Tensor, "R L"], maximum: float
) -> Float[Tensor, "R L"]:
    """Compute the weight of each token for being sampled from mu, the sampler, and not from pi, the model; no gradient.

        min(c, pi / mu)

    Args:
        maximum: c, > 0; infinity leaves the weights whole.

    Raises:
        ValueError: when maximum is not positive.

    Examples:
        >>> pi, mu = torch.tensor([[0.2, 0.4, 0.8]]), torch.tensor([[0.4, 0.2, 0.1]])
        >>> truncated_importance(pi.log(), mu.log(), maximum=4.0)  # 8 becomes 4
        tensor([[0.5000, 2.0000, 4.0000]])
    """
    if not maximum > 0:
        raise ValueError(f"maximum must be > 0, got {maximum}")
    return log_ratio_of(log_prob_model, log_prob_sampler).detach().clamp(max=_MAX_LOG_RATIO).exp().clamp(max=maximum)


def _scale_log_ratio(
    log_ratio: Float[Tensor, "R L"], lengths: Sequence[int] | None, mask: Float[Tensor, "R L"] | None, ratio: Ratio
) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"]]:
    """Return the mean or sum of the active tokens' log-ratios within each scale, and their number; repeated over its tokens."""
    if lengths is None or sum(lengths) != log_ratio.shape[1]:
        raise ValueError(f"ratio {ratio!r} needs lengths that sum to {log_ratio.shape[1]} tokens, got {lengths}")
    on = torch.ones_like(log_ratio) if mask is None else (mask > 0).to(log_ratio.dtype)
    scales, counts = [], []
    for values, active in zip(torch.split(log_ratio, list(lengths), 1), torch.split(on, list(lengths), 1), strict=True):
        # Not `values * active`: a token that is off may hold anything, also -inf.
        joint = torch.where(active > 0, values, 0.0).sum(dim=1, keepdim=True)
        count = active.sum(dim=1, keepdim=True).clamp(min=1)
        scales.append((joint if ratio == "scale_sum" else joint / count).expand_as(values))
        counts.append(count.expand_as(values))
    return torch.cat(scales, dim=1), torch.cat(counts, dim=1)
