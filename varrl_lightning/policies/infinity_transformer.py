"""Infinity's transformer, with the names that its published weights have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from varrl_lightning.policies.cache import Cache, LayerCache
from varrl_lightning.policies.infinity_layers import Block, HeadNorm, RMSNorm, TextPool, in_own_dtype, norm
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.layers import checkpointed


class Chunk(nn.Module):
    """Consecutive blocks; the published names have this level."""

    def __init__(self, sizes: Sizes, blocks: int) -> None:
        super().__init__()
        self.module = nn.ModuleList([Block(sizes) for _ in range(blocks)])


class InfinityTransformer(nn.Module):
    """A transformer over scales of bits that reads a prompt by cross-attention.

    Args:
        sizes: usually read from a file.
        level_embedding: is added in front of the `first` chunk only, or in front of `every` chunk.
        gradient_checkpointing: recompute the activations of a block in the backward pass.
    """

    def __init__(self, sizes: Sizes, level_embedding: str = "first", gradient_checkpointing: bool = False) -> None:
        super().__init__()
        if level_embedding not in ("first", "every"):
            raise ValueError(f"level_embedding must be first or every, got {level_embedding!r}")
        self.sizes, self.level_embedding, self.gradient_checkpointing = sizes, level_embedding, gradient_checkpointing
        width = sizes.width
        self.cfg_uncond = nn.Parameter(torch.zeros(sizes.text_length, sizes.text_width))
        self.text_norm = RMSNorm(sizes.text_width)
        self.text_proj_for_sos = TextPool(sizes)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(sizes.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.lvl_embed = nn.Embedding(sizes.levels, width)
        self.norm0_ve = norm(sizes, sizes.bits) if sizes.input_norm else nn.Identity()
        self.word_embed = nn.Linear(sizes.bits, width)
        if sizes.shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if sizes.chunks is None:
            self.blocks = nn.ModuleList([Block(sizes) for _ in range(sizes.depth)])
        else:
            self.block_chunks = nn.ModuleList([Chunk(sizes, count) for count in sizes.chunks])
        if sizes.head_aln:
            self.head_nm = HeadNorm(sizes)
        self.head = _head(sizes)

    def read(self, text: Float[Tensor, "R S c"], mask: Bool[Tensor, "R S"], unconditional: Bool[Tensor, " R"]) -> Cache:
        """Encode prompts before the first scale, in fp32 up to the keys and values.

        Args:
            mask: True for text, False for padding.
            unconditional: rows that read the learned unconditional text instead, as long as their mask is.
        """
        with torch.autocast(text.device.type, enabled=False):
            learned = self.cfg_uncond[: text.shape[1]].float()
            text = self.text_norm(torch.where(unconditional[:, None, None], learned, text.float()))
            condition = self.text_proj_for_sos(text, mask).float()
            text = in_own_dtype(self.text_proj_for_ca, text)
        return Cache([], [block.remember(text) for chunk in self.chunks for block in chunk], condition)

    def forward(
        self,
        seen: Sequence[Float[Tensor, "R _n D"] | None],
        mask: Bool[Tensor, "R S"],
        cache: Cache,
        first: int,
        lengths: Sequence[int],
        angles: tuple[Tensor, Tensor],
        last: bool,
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of consecutive scales, ready for `head`, and the cache with them.

        Args:
            seen: the latent before each of these scales, at its cells; None for scale 0, which starts from the prompt.
            mask: of the prompt.
            cache: from `read`, with all scales before `first`.
            lengths: tokens of these scales.
            angles: cosines and sines of their positions.
            last: no scale follows, so that keys and values are not kept; without gradients they are most of the memory.
        """
        assert cache.condition is not None
        x, levels = self._enter(seen, cache.condition, first, lengths)
        modulation = self._shared(cache.condition)
        past, text = iter(cache.layers), iter(cache.cross)
        layers: list[LayerCache] = []
        for index, chunk in enumerate(self.chunks):
            if index == 0 or self.level_embedding == "every":
                x = x + levels
            for block in chunk:
                arguments = (x, modulation, next(text), mask, lengths, next(past, None), angles)
                x, kept = checkpointed(block, *arguments, enabled=self.gradient_checkpointing)
                if not last:
                    layers.append(kept)
        with torch.autocast(x.device.type, enabled=False):
            features = self.head_nm(x, cache.condition) if hasattr(self, "head_nm") else x
        return list(features.split(tuple(lengths), dim=1)), Cache(layers, cache.cross, cache.condition)

    def logits(self, features: Float[Tensor, "... d"]) -> Float[Tensor, "... D 2"]:
        """Logits of both values of each bit, in fp32."""
        with torch.autocast(features.device.type, enabled=False):
            for layer in self.head if isinstance(self.head, nn.Sequential) else (self.head,):
                features = layer(features) if isinstance(layer, nn.GELU) else in_own_dtype(layer, features)
            logits: Tensor = features.float().unflatten(-1, (-1, 2))
        return logits

    @property
    def chunks(self) -> list[list[Block]]:
        """The blocks, chunk by chunk."""
        if self.sizes.chunks is None:
            return [[block] for block in cast("list[Block]", self.blocks)]
        return [list(cast("list[Block]", chunk.module)) for chunk in self.block_chunks]

    def _enter(
        self, seen: Sequence[Tensor | None], condition: Tensor, first: int, lengths: Sequence[int]
    ) -> tuple[Float[Tensor, "R n d"], Float[Tensor, "n d"]]:
        """The inputs of the first block, and the level embedding of their positions."""
        with torch.autocast(condition.device.type, enabled=False):
            start = condition[:, None] + self.pos_start.float()
            parts = [start if x is None else in_own_dtype(self.word_embed, self.norm0_ve(x)).float() for x in seen]
            rows = self.lvl_embed(torch.arange(first, first + len(lengths), device=condition.device)).float()
        levels = [row.expand(length, -1) for row, length in zip(rows, lengths, strict=True)]
        return torch.cat(parts, dim=1), torch.cat(levels)

    def _shared(self, condition: Float[Tensor, "R d"]) -> Tensor:
        if not hasattr(self, "shared_ada_lin"):
            return condition
        with torch.autocast(condition.device.type, enabled=False):
            modulation: Tensor = in_own_dtype(self.shared_ada_lin, condition).float().unflatten(-1, (1, 6, -1))
        return modulation


def _head(sizes: Sizes) -> nn.Module:
    """Linear layers to the logits, under the public code's numbers; without a modulated norm they begin with a plain norm."""
    layers: list[nn.Module] = [] if sizes.head_aln else [norm(sizes, sizes.width)]
    if sizes.head_depth == 2:
        layers += [nn.Linear(sizes.width, sizes.width), nn.GELU(approximate="tanh")]
    layers.append(nn.Linear(sizes.width, 2 * sizes.bits))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
