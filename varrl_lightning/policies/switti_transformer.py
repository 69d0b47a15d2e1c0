"""Switti's transformer: VAR's, with cross-attention to the words of the prompt; parameters have their published names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.policies.cache import Cache, KeysValues, LayerCache
from varrl_lightning.policies.layers import FeedForward, checkpointed, outside_autocast, rotate, scalewise_attention
from varrl_lightning.schedule import Schedule
from varrl_lightning.weights.sizes import numbered, require

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, then times a weight in the dtype of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last dimension."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    """Self-attention whose queries and keys are normalised over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "R n d"],
        lengths: Sequence[int],
        turns: tuple[Tensor, Tensor] | None,
        past: LayerCache | None,
        across: bool,
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """Attend as `scalewise_attention` does; return its keys and values too."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (_split_heads(y, self.heads) for y in (_normalised(q), _normalised(k), v))
        if turns is not None:
            q, k = rotate(q, *turns), rotate(k, *turns)
        attended, kept = scalewise_attention(q, k, v, lengths, past, across=across)
        return self.proj(attended.transpose(1, 2).flatten(2)), kept


class CrossAttention(nn.Module):
    """Attention to the words of the prompt."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv, self.proj = nn.Linear(width, width), nn.Linear(context, 2 * width), nn.Linear(width, width)

    def remember(self, text: Float[Tensor, "R words C"]) -> KeysValues:
        """Keys and values of the prompt, (R, heads, words, d / heads)."""
        k, v = self.to_kv(text).chunk(2, dim=-1)
        return _split_heads(_normalised(k), self.heads), _split_heads(v, self.heads)

    def forward(self, x: Float[Tensor, "R n d"], kept: KeysValues, mask: Bool[Tensor, "R 1 1 words"]) -> Float[Tensor, "R n d"]:
        """Attend where the mask is True."""
        q = _split_heads(_normalised(self.to_q(x)), self.heads)
        attended = F.scaled_dot_product_attention(q, *kept, attn_mask=mask)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class GatedFeedForward(nn.Module):
    """SwiGLU, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj, self.gate_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "R n d"]) -> Float[Tensor, "R n d"]:
        """down(silu(gate(x)) up(x))."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised before and after; the first and last modulated."""

    def __init__(self, width: int, heads: int, context: int, hidden: int, gated: bool, crop: bool) -> None:
        super().__init__()
        self.attn, self.cross_attn = SelfAttention(width, heads), CrossAttention(width, heads, context)
        self.ffn = (GatedFeedForward if gated else FeedForward)(width, hidden)
        self.self_attention_norm1, self.self_attention_norm2 = RMSNorm(width), RMSNorm(width)
        self.cross_attention_norm1, self.cross_attention_norm2 = RMSNorm(width), RMSNorm(width)
        self.ffn_norm1, self.ffn_norm2 = RMSNorm(width), RMSNorm(width)
        self.attention_y_norm = RMSNorm(context)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if crop:
            self.crop_cond_scales = nn.Parameter(torch.zeros(1, width))

    def remember(self, text: Float[Tensor, "R words C"]) -> KeysValues:
        """The prompt's keys and values for cross-attention."""
        kept: KeysValues = self.cross_attn.remember(self.attention_y_norm(text))
        return kept

    def forward(
        self,
        x: Float[Tensor, "R n d"],
        condition: Float[Tensor, "R parts d"],
        lengths: Sequence[int],
        turns: tuple[Tensor, Tensor] | None,
        prompt: tuple[KeysValues, Tensor],
        past: LayerCache | None,
        across: bool,
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """Run one layer; return the keys and values of its self-attention too.

        Args:
            condition: the pooled prompt, and the crop where there is one.
            prompt: keys and values from `remember`, and their mask.
        """
        pooled = condition[:, 0]
        if condition.shape[1] > 1:
            pooled = pooled + self.crop_cond_scales * condition[:, 1]
        gain1, gain2, scale1, scale2, shift1, shift2 = self.ada_lin(pooled)[:, None].chunk(6, dim=-1)
        attended, kept = self.attn(self.self_attention_norm1(x) * (1 + scale1) + shift1, lengths, turns, past, across)
        x = x + self.self_attention_norm2(attended) * gain1
        x = x + self.cross_attention_norm2(self.cross_attn(self.cross_attention_norm1(x), *prompt))
        x = x + self.ffn_norm2(self.ffn(self.ffn_norm1(x) * (1 + scale2) + shift2)) * gain2
        return x, kept


class HeadNorm(nn.Module):
    """The modulated norm before the head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "R n d"], pooled: Float[Tensor, "R d"]) -> Float[Tensor, "R n d"]:
        """Normalise, scale and shift."""
        scale, shift = self.ada_lin(pooled)[:, None].chunk(2, dim=-1)
        modulated: Tensor = _normalised(x) * (1 + scale) + shift
        return modulated


class SwittiTransformer(nn.Module):
    """All that trains, with the published names.

    Args:
        vocab_size: codes of the tokenizer.
        channels: of the tokenizer's latent.
        width, depth, heads, hidden: of the transformer and its feed-forward layers.
        scales: T.
        context: features of a word of the prompt.
        pooled: features of the pooled prompt.
        gated: SwiGLU; GELU where False.
        crop: whether the prompt's condition is joined by that of the crop.
        places: learned positions, one per token; 0 where they are rotary.
        theta, span: of the rotary positions.
        gradient_checkpointing: recompute the activations of a layer in the backward pass.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        channels: int = 32,
        width: int = 1920,
        depth: int = 30,
        heads: int = 30,
        hidden: int = 5120,
        scales: int = 10,
        context: int = 2048,
        pooled: int = 1280,
        gated: bool = True,
        crop: bool = True,
        places: int = 0,
        theta: float = 10000.0,
        span: float = 128.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.vocab_size, self.channels = vocab_size, channels
        self.theta, self.span, self.features = theta, span, width // heads
        self.word_embed = nn.Linear(channels, width)
        self.text_pooler = nn.Linear(pooled, width)
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.lvl_embed = nn.Embedding(scales, width)
        self.blocks = nn.ModuleList([Block(width, heads, context, hidden, gated, crop) for _ in range(depth)])
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, vocab_size)
        if crop:
            self.crop_proj = nn.Linear(width, width)
        if places:
            self.pos_1LC = nn.Parameter(torch.zeros(1, places, width))

    def start(self, inputs: Mapping[str, Tensor]) -> Cache:
        """The cache before scale 0: the condition and the prompt's keys and values."""
        parts = [outside_autocast(self.text_pooler, inputs["pooled"])]
        if "crop" in inputs:
            parts.append(outside_autocast(self.crop_proj, inputs["crop"]))
        text = inputs["text"].to(self.pos_start.dtype)
        kept = [checkpointed(cast(Block, block).remember, text, enabled=self.gradient_checkpointing) for block in self.blocks]
        return Cache([], kept, torch.stack(parts, dim=1))

    def embed(
        self, seen: Float[Tensor, "R n C"], pooled: Float[Tensor, "R d"], t: int, schedule: Schedule
    ) -> Float[Tensor, "R n d"]:
        """The tokens of scale t before the first block: the prompt at scale 0, the latent so far later on."""
        x = pooled[:, None] + self.pos_start if t == 0 else outside_autocast(self.word_embed, seen)
        x = x + self.lvl_embed.weight[t]
        if hasattr(self, "pos_1LC"):
            x = x + self.pos_1LC[:, schedule.offsets[t] : schedule.offsets[t + 1]]
        embedded: Tensor = x
        return embedded

    def run(
        self,
        x: Float[Tensor, "R n d"],
        grids: Sequence[tuple[int, int]],
        mask: Bool[Tensor, "R words"],
        cache: Cache,
        across: bool,
    ) -> tuple[Float[Tensor, "R n d"], Cache]:
        """All blocks and the norm before the head, for consecutive scales; the cache grows where scales see each other."""
        assert cache.condition is not None
        lengths = [h * w for h, w in grids]
        turns = None if hasattr(self, "pos_1LC") else self._turns(grids, x.device)
        layers = []
        for layer, block in enumerate(self.blocks):
            past = cache.layers[layer] if cache.layers else None
            prompt = (cache.cross[layer], mask[:, None, None])
            x, kept = checkpointed(
                block, x, cache.condition, lengths, turns, prompt, past, across, enabled=self.gradient_checkpointing
            )
            layers.append(kept)
        features: Tensor = self.head_nm(x, cache.condition[:, 0])
        return features, Cache(layers if across else [], cache.cross, cache.condition)

    def _turns(self, grids: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles."""
        angles = torch.cat([rotary_angles(grid, self.features, self.theta, self.span) for grid in grids])
        return angles.cos().to(device), angles.sin().to(device)


def rotary_angles(grid: tuple[int, int], features: int, theta: float, span: float) -> Float[Tensor, "n half"]:
    """Angles of the tokens of one scale: half of them turn with x, half with y, over `span` at every scale."""
    h, w = grid
    frequencies = 1.0 / theta ** (torch.arange(0, features, 4).float() / features)
    x = torch.arange(w).repeat(h)[:, None] * (frequencies * (span / max(w - 1, 1)))
    y = torch.arange(h).repeat_interleave(w)[:, None] * (frequencies * (span / max(h - 1, 1)))
    return torch.cat((x, y), dim=-1)


class CropFrequencies(nn.Module):
    """Random frequencies that code the crop as sines and cosines.

    They are frozen and have to stay fp32: at 512 pixels the angles reach thousands, where bf16 loses even the quadrant.
    """

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(width // 8))

    def forward(self, numbers: Float[Tensor, "four"]) -> Float[Tensor, "d"]:
        """(sin, cos)(2 pi f x) of all frequencies f, for one number x after the other."""
        angles = numbers[:, None] * self.weight * 2 * math.pi
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten()


def sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Read the arguments of `SwittiTransformer` from the tensors of a file.

    Raises:
        ValueError: when it is no Switti.
    """
    ffn = "blocks.0.ffn.up_proj.weight" if "blocks.0.ffn.up_proj.weight" in tensors else "blocks.0.ffn.fc1.weight"
    needed = ("head.weight", "word_embed.weight", "text_pooler.weight", "lvl_embed.weight", "blocks.0.cross_attn.to_kv.weight", ffn)
    stored = {name: d for name, d in (("lvl_1L", 2), ("attn_bias_for_masking", 4), ("pos_1LC", 3)) if name in tensors}
    require(tensors, source, "Switti transformer", dict.fromkeys(needed, 2) | stored)
    vocab_size, width = tensors["head.weight"].shape
    return {
        "vocab_size": vocab_size,
        "channels": tensors["word_embed.weight"].shape[1],
        "width": width,
        "depth": numbered(tensors, "blocks."),
        "hidden": tensors[ffn].shape[0],
        "scales": tensors["lvl_embed.weight"].shape[0],
        "context": tensors["blocks.0.cross_attn.to_kv.weight"].shape[1],
        "pooled": tensors["text_pooler.weight"].shape[1],
        "gated": ffn.endswith("up_proj.weight"),
        "crop": "crop_proj.weight" in tensors,
        "places": tensors["pos_1LC"].shape[1] if "pos_1LC" in tensors else 0,
    }


def _normalised(x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    # Autocast computes norms in fp32; cast back, so that a cache's keys are no larger than its values.
    normalised: Tensor = F.layer_norm(x, x.shape[-1:], eps=EPS).to(x.dtype)
    return normalised


def _split_heads(x: Float[Tensor, "R n d"], heads: int) -> Float[Tensor, "R heads n e"]:
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split
