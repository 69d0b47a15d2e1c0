"""The layers of Infinity's transformer, with the names that its published weights have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.policies.cache import KeysValues, LayerCache
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.layers import rotate, scalewise_attention

EPSILON = 1e-6
"""Epsilon of all norms."""
_LARGEST_SCALE = math.log(100)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last dimension."""
        return _unit(x, rms=True) * self.weight.float()


class LayerNorm(nn.LayerNorm):
    """The usual layer norm, in fp32 whatever its weights' dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=EPSILON)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last dimension."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)


def _unit(x: Float[Tensor, "... d"], rms: bool) -> Float[Tensor, "... d"]:
    x = x.float()
    if rms:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON)


def norm(sizes: Sizes, width: int) -> nn.Module:
    """A norm with weights: RMS norm or layer norm, by `sizes.rms`."""
    return RMSNorm(width) if sizes.rms else LayerNorm(width)


def in_own_dtype(module: nn.Module, x: Tensor) -> Tensor:
    """Call a module on its input cast to the dtype of its weights."""
    out: Tensor = module(x.to(next(module.parameters()).dtype))
    return out


class SelfAttention(nn.Module):
    """Attention of scales to themselves and to earlier ones, on queries and keys of length 1 where there is a learned scale."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.mat_qkv = nn.Linear(sizes.width, 3 * sizes.width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(sizes.width)), nn.Parameter(torch.zeros(sizes.width))
        self.proj = nn.Linear(sizes.width, sizes.width)
        if sizes.scale_shape is not None:
            self.scale_mul_1H11 = nn.Parameter(torch.full(sizes.scale_shape, math.log(4)))

    def forward(
        self, x: Float[Tensor, "R n d"], lengths: Sequence[int], past: LayerCache | None, angles: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """The attended features, and the keys and values of past and present."""
        qkv = in_own_dtype(self.mat_qkv, x)
        qkv = qkv + torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias)).to(qkv.dtype)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        normalised = hasattr(self, "scale_mul_1H11")
        if normalised:
            # The published scale is (1, heads, 1, 1), or (1, 1, heads, 1) from one of the public code's kernels.
            scale = self.scale_mul_1H11.float().clamp(max=_LARGEST_SCALE).exp().reshape(1, -1, 1, 1)
            q, k = F.normalize(q.float(), dim=-1, eps=1e-12) * scale, F.normalize(k.float(), dim=-1, eps=1e-12)
        q, k = rotate(q, *angles).to(v.dtype), rotate(k, *angles).to(v.dtype)
        attended, kept = scalewise_attention(q, k, v, lengths, past, scale=1.0 if normalised else None)
        return in_own_dtype(self.proj, attended.transpose(1, 2).flatten(2)), kept


class CrossAttention(nn.Module):
    """Attention to the tokens of a prompt.

    Args:
        width: of the queries and of the output.
        text_width: of the prompt's tokens.
        pool: the query is learned: one for the complete prompt.
    """

    mat_q: nn.Parameter | nn.Linear

    def __init__(self, width: int, text_width: int, heads: int, pool: bool) -> None:
        super().__init__()
        self.heads = heads
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        self.mat_q = nn.Parameter(torch.zeros(1, heads, width // heads)) if pool else nn.Linear(width, width)

    def keys_values(self, text: Float[Tensor, "R S c"]) -> KeysValues:
        """Keys and values of a prompt, (R, heads, S, d / heads) each."""
        kv = in_own_dtype(self.mat_kv, text)
        kv = kv + torch.cat((torch.zeros_like(self.v_bias), self.v_bias)).to(kv.dtype)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x: Float[Tensor, "R n d"] | None, text: KeysValues, mask: Bool[Tensor, "R S"]) -> Float[Tensor, "R _n d"]:
        """The attended features; `x` is None where the query is learned."""
        k, v = text
        if x is None:
            assert isinstance(self.mat_q, nn.Parameter)
            q = self.mat_q.expand(len(k), -1, -1).unsqueeze(2)  # (R, heads, 1, d / heads)
        else:
            assert isinstance(self.mat_q, nn.Module)
            q = in_own_dtype(self.mat_q, x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(q.to(k.dtype), k, v, attn_mask=mask[:, None, None])
        return in_own_dtype(self.proj, attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """fc2(gelu(fc1(x))), or fc2(silu(fcg(x)) fc1(x)) without biases."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gated = sizes.gated
        self.fc1 = nn.Linear(sizes.width, sizes.hidden, bias=not sizes.gated)
        self.fc2 = nn.Linear(sizes.hidden, sizes.width, bias=not sizes.gated)
        if sizes.gated:
            self.fcg = nn.Linear(sizes.width, sizes.hidden, bias=False)

    def forward(self, x: Float[Tensor, "R n d"]) -> Float[Tensor, "R n d"]:
        """Apply the same function at every position."""
        h = in_own_dtype(self.fc1, x)
        h = F.silu(in_own_dtype(self.fcg, x)) * h if self.gated else F.gelu(h, approximate="tanh")
        return in_own_dtype(self.fc2, h)


class Block(nn.Module):
    """Self-attention, cross-attention and a feed-forward layer on an fp32 residual stream.

        x <- x + gamma_1 sa((1 + scale_1) norm(x) + shift_1)
        x <- x + ca_gamma ca(ca_norm(x))
        x <- x + gamma_2 ffn((1 + scale_2) norm(x) + shift_2)

    Gammas, scales and shifts are computed from the pooled prompt.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.rms = sizes.rms
        self.sa = SelfAttention(sizes)
        self.ca = CrossAttention(sizes.width, sizes.width, sizes.heads, pool=False)
        self.ffn = FeedForward(sizes)
        self.ca_norm = norm(sizes, sizes.width)
        if sizes.shared_aln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, sizes.width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(sizes.width, 6 * sizes.width))
        if sizes.cross_scale:
            self.ca_gamma = nn.Parameter(torch.zeros(sizes.width))

    def remember(self, text: Float[Tensor, "R S d"]) -> KeysValues:
        """The prompt's keys and values for cross-attention."""
        return self.ca.keys_values(text)

    def forward(
        self,
        x: Float[Tensor, "R n d"],
        condition: Tensor,
        text: KeysValues,
        mask: Bool[Tensor, "R S"],
        lengths: Sequence[int],
        past: LayerCache | None,
        angles: tuple[Tensor, Tensor],
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """The stream after this block, and its keys and values.

        Args:
            condition: (R, d), or its projection (R, 1, 6, d) where all blocks share one.
            text: keys and values of the prompt.
            angles: cosines and sines of the positions of x.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self._modulation(condition).unbind(2)
        attended, kept = self.sa(_unit(x, self.rms) * (1 + scale1) + shift1, lengths, past, angles)
        x = x + attended.float() * gamma1
        crossed = self.ca(self.ca_norm(x), text, mask).float()
        x = x + (crossed * self.ca_gamma.float() if hasattr(self, "ca_gamma") else crossed)
        return x + self.ffn(_unit(x, self.rms) * (1 + scale2) + shift2).float() * gamma2, kept

    def _modulation(self, condition: Tensor) -> Float[Tensor, "R 1 6 d"]:
        if hasattr(self, "ada_gss"):
            return self.ada_gss.float() + condition
        with torch.autocast(condition.device.type, enabled=False):
            modulation: Tensor = in_own_dtype(self.ada_lin, condition).float().unflatten(-1, (1, 6, -1))
        return modulation


class HeadNorm(nn.Module):
    """(1 + scale) norm(x) + shift, both from the condition."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.rms = sizes.rms
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(sizes.width, 2 * sizes.width))

    def forward(self, x: Float[Tensor, "R n d"], condition: Float[Tensor, "R d"]) -> Float[Tensor, "R n d"]:
        """The features that the head reads."""
        scale, shift = in_own_dtype(self.ada_lin, condition).float().unflatten(-1, (1, 2, -1)).unbind(2)
        features: Tensor = _unit(x, self.rms) * (1 + scale) + shift
        return features


class TextPool(nn.Module):
    """Pools the tokens of a prompt to one vector."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ca = CrossAttention(sizes.width, sizes.text_width, sizes.pool_heads, pool=True)

    def forward(self, text: Float[Tensor, "R S c"], mask: Bool[Tensor, "R S"]) -> Float[Tensor, "R d"]:
        """Attention of a learned query to the prompt's tokens."""
        pooled: Tensor = self.ca(None, self.ca.keys_values(text), mask).squeeze(1)
        return pooled
