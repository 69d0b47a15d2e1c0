"""From logits to tokens: guidance, truncation, and sampling by inverse CDF."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from varrl_lightning.algorithms.precision import widened


def guided_logits(
    cond: Float[Tensor, "*batch V"],
    uncond: Float[Tensor, "*batch V"],
    strength: float,
    form: Literal["constant", "ramp"],
    scale: int,
    num_scales: int,
) -> Float[Tensor, "*batch V"]:
    """Apply classifier-free guidance to logits, in the form that the model family was published with.

        constant (Infinity):  strength c + (1 - strength) u                    1 switches it off
        ramp (VAR, Switti):   (1 + t) c - t u,  t = strength * scale / (T-1)   0 switches it off

    Args:
        scale: from 0.
        num_scales: T.

    Examples:
        >>> c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
        >>> guided_logits(c, u, 3.0, "constant", scale=0, num_scales=5)  # 3 c - 2 u
        tensor([3., 4.])
        >>> guided_logits(c, u, 3.0, "ramp", scale=0, num_scales=5), guided_logits(c, u, 3.0, "ramp", scale=4, num_scales=5)
        (tensor([1., 2.]), tensor([4., 5.]))
    """
    if not 0 <= scale < num_scales:
        raise ValueError(f"scale must be in [0, {num_scales}), got {scale}")
    if form == "constant":
        return strength * cond + (1 - strength) * uncond
    t = strength * scale / max(num_scales - 1, 1)
    return (1 + t) * cond - t * uncond


def truncate(
    logits: Float[Tensor, "*batch V"],
    top_k: int = 0,
    top_p: float = 1.0,
    temperature: float = 1.0,
    keep: Int[Tensor, "*batch"] | None = None,
    support: Bool[Tensor, "*batch V"] | None = None,
) -> Float[Tensor, "*batch V"]:
    """Return the logits of the distribution that tokens are sampled from: divided by the temperature, -inf off the support.

    The support: the `top_k` likeliest tokens, ties at the k-th included; of these, renormalised, the smallest set whose mass is at
    least `top_p`, never empty. The last dimension is the vocabulary, so bits come as (..., D, 2).

    Args:
        top_k: 0 keeps all.
        top_p: in (0, 1].
        temperature: > 0.
        keep: a token that is in the support whatever its rank: the one that was sampled, when its log-probability is computed
            again and rounding has moved it over the edge.
        support: the support itself, in place of that of these logits: the one that log-probabilities were taken on before a
            training step. A ratio of two of them means nothing where they are normalised over different tokens.

    Raises:
        ValueError: when an argument is out of range.

    Examples:
        >>> logits = torch.tensor([0.5, 0.3, 0.2]).log()
        >>> truncate(logits, top_k=2).softmax(dim=-1)  # 0.5 / 0.8 and 0.3 / 0.8
        tensor([0.6250, 0.3750, 0.0000])
        >>> truncate(logits, top_p=0.4).softmax(dim=-1)  # the likeliest token alone reaches 0.4
        tensor([1., 0., 0.])
        >>> truncate(logits, top_p=0.4, keep=torch.tensor(2)).isfinite()
        tensor([ True, False,  True])
        >>> truncate(logits, top_k=1, support=torch.tensor([False, True, True])).softmax(dim=-1)  # 0.3 / 0.5 and 0.2 / 0.5
        tensor([0.0000, 0.6000, 0.4000])
    """
    if top_k < 0:
        raise ValueError(f"top_k must be 0 (off) or positive, got {top_k}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    logits = logits / temperature
    if support is None:
        support = _support(logits.detach(), top_k, top_p)
        if support is None:
            return logits
        if keep is not None:
            support = support.scatter(-1, keep[..., None].long(), True)
    return logits.masked_fill(~support, -math.inf)


def inverse_cdf(probabilities: Float[Tensor, "*batch V"], uniform: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """Return the token that a uniform number in [0, 1) selects.

        the first v with  p_0 + ... + p_v > u * sum p

    It is never a token of probability 0, also where rounding carries u to the edge.

    Args:
        probabilities: >= 0 with a positive sum, which need not be 1.

    Examples:
        The edges between the three tokens are at u = 0.25 and 0.75:

        >>> probabilities = torch.tensor([0.25, 0.5, 0.25])
        >>> inverse_cdf(probabilities.expand(4, 3), torch.tensor([0.0, 0.25, 0.74, 0.75]))
        tensor([0, 1, 1, 2])
    """
    # Sums over large vocabularies lose the tail in fp32.
    cumulative = widened(probabilities).cumsum(dim=-1)
    target = widened(uniform)[..., None] * cumulative[..., -1:]
    token = torch.searchsorted(cumulative, target, right=True).clamp(max=probabilities.shape[-1] - 1)
    # A parallel scan may round a sum up across a token of probability 0, and u * sum may round up to the sum.
    possible = probabilities.gather(-1, token) > 0
    return torch.where(possible, token, probabilities.argmax(dim=-1, keepdim=True)).squeeze(-1)


def _support(logits: Float[Tensor, "*batch V"], top_k: int, top_p: float) -> Bool[Tensor, "*batch V"] | None:
    """Return which tokens may be sampled; None for all of them."""
    support = None
    if 0 < top_k < logits.shape[-1]:
        support = logits >= logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(~support, -math.inf)
    if top_p < 1:
        ordered, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        # A token belongs to the smallest set if the likelier ones do not reach top_p without it.
        before = ordered.cumsum(dim=-1) - ordered
        nucleus = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before < top_p)
        support = nucleus if support is None else support & nucleus
    return support
