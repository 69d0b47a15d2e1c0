"""Tokens from the logits of a scale, and the log-probability, entropy and KL of tokens; the same for all families."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from varrl_lightning.algorithms.noise import Strata, uniforms
from varrl_lightning.algorithms.sampling import inverse_cdf


def split_halves(x: Tensor, halves: int) -> list[Tensor]:
    """The rows of each half of guidance; all rows where there is one half."""
    return list(x.chunk(halves)) if halves > 1 else [x]


def sample_tokens(
    probabilities: Float[Tensor, "R n *V"], keys: Tensor | torch.Generator, scale: int, strata: Strata | None = None
) -> Int[Tensor, "R n *bits"]:
    """Sample each token of a scale: by inverse CDF from the rows' noise keys, or as `torch.multinomial` does from a generator.

    Args:
        strata: groups of rows whose uniforms are stratified, see `uniforms`; nothing to a generator.
    """
    shape = probabilities.shape[:-1]
    if isinstance(keys, torch.Generator):
        rows = probabilities.flatten(0, -2)
        return torch.multinomial(rows, 1, generator=keys).view(shape)
    uniform = uniforms(keys, scale, shape[1:].numel(), strata).view(shape)
    return inverse_cdf(probabilities, uniform)


def by_chunks(score_chunk: Callable[[slice], tuple[Tensor, ...]], shape: tuple[int, ...], size: int) -> tuple[Tensor, ...]:
    """Call a function on one chunk of tokens after the other and join what it returns.

    Each chunk is recomputed in the backward pass: the head is cheap, the logits of a sequence are not.

    Args:
        score_chunk: takes a range of the flattened (rows, n) tokens.
        shape: (rows, n).
        size: tokens of a chunk.
    """
    rows, n = shape
    parts = []
    for first in range(0, rows * n, size):
        index = slice(first, first + size)
        parts.append(checkpoint(score_chunk, index, use_reentrant=False) if torch.is_grad_enabled() else score_chunk(index))
    return tuple(torch.cat(column).unflatten(0, (rows, n)) for column in zip(*parts, strict=True))


def token_scores(
    logits: Float[Tensor, "n *V"], tokens: Int[Tensor, "n *bits"], anchor_log_probs: Float[Tensor, "n *V"] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log_prob, entropy, kl, reference log_prob) of tokens.

        entropy = -sum_v pi_v log pi_v,    kl = sum_v pi_v (log pi_v - log reference_v)

    log_prob is per bit where a token has bits; the others are summed over bits.

    Args:
        logits: fp32, -inf outside the support.
        anchor_log_probs: the reference's log-probabilities on the same support, 0 outside it; without it the last two are zeros.
    """
    support = torch.isfinite(logits)
    log_probs = logits.log_softmax(dim=-1)
    probabilities, log_probs = log_probs.exp(), log_probs.masked_fill(~support, 0.0)
    log_prob = _at(log_probs, tokens)
    entropy = _token_sum(-(probabilities * log_probs).sum(-1))
    if anchor_log_probs is None:
        nothing = torch.zeros_like(entropy)
        return log_prob, entropy, nothing, nothing
    kl = _token_sum((probabilities * (log_probs - anchor_log_probs)).sum(-1))
    return log_prob, entropy, kl, _token_sum(_at(anchor_log_probs, tokens))


def packed(support: Bool[Tensor, "n *V"]) -> UInt8[Tensor, "n bytes"]:
    """A support as bits, eight tokens of the vocabulary in a byte: what a rollout keeps until its last update."""
    bits = support.flatten(1)
    bits = pad(bits, (0, -bits.shape[1] % 8)).unflatten(1, (-1, 8))
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    in_bytes: Tensor = (bits.to(torch.uint8) << places).sum(dim=-1, dtype=torch.uint8)
    return in_bytes


def unpacked(bits: UInt8[Tensor, "n bytes"], shape: torch.Size) -> Bool[Tensor, "n *V"]:
    """The support of this shape that `packed` made the bits of."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    support = ((bits[..., None] >> places) & 1).flatten(1)
    return support[:, : shape[1:].numel()].bool().view(shape)


def packed_bytes(vocabulary: int, bits: int | None) -> int:
    """Bytes of a packed support of one token, of `bits` bits or none."""
    return -(-(vocabulary if bits is None else 2 * bits) // 8)


def _at(log_probs: Float[Tensor, "*rows V"], tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows"]:
    return log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _token_sum(x: Tensor) -> Tensor:
    """Sum over bits, where a token has bits: (tokens, bits) to (tokens,)."""
    return x.sum(-1) if x.dim() == 2 else x
