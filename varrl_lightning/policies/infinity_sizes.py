"""Reads the sizes of Infinity's transformer from the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from varrl_lightning.weights.sizes import numbered, require


@dataclass(frozen=True)
class Sizes:
    """The sizes and options of an Infinity transformer.

    Args:
        width: of the residual stream.
        bits: of a token.
        chunks: how many blocks each chunk has; None where the names know no chunks (`blocks.N`): each block then counts as one.
        depth: number of blocks.
        heads: of self-attention and of cross-attention.
        text_width, text_length: of the learned unconditional text.
        pool_heads: of the pooling of the text.
        levels: rows of the level embedding.
        hidden: of the feed-forward layers.
        scale_shape: of the learned scale of normalised attention; None where attention is not normalised.
        gated: SwiGLU feed-forward without biases.
        rms: norms are RMS norms.
        input_norm: norm of what enters.
        shared_aln: one map from the condition to the modulation of all blocks.
        cross_scale: blocks weigh their cross-attention.
        head_aln: the condition modulates the norm in front of the head.
        head_depth: 1 or 2.
    """

    width: int
    bits: int
    chunks: tuple[int, ...] | None
    depth: int
    heads: int
    text_width: int
    text_length: int
    pool_heads: int
    levels: int
    hidden: int
    scale_shape: tuple[int, ...] | None
    gated: bool
    rms: bool
    input_norm: bool
    shared_aln: bool
    cross_scale: bool
    head_aln: bool
    head_depth: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str, num_heads: int | None) -> Sizes:
        """Read the sizes from the tensors of a file; `num_heads` is needed where no tensor has it.

        Raises:
            ValueError: when the file is none of this family, or `num_heads` does not agree with it or is needed and None.
        """
        chunks = _chunks(tensors, source)
        first = "blocks.0." if chunks is None else "block_chunks.0.module.0."
        outside = ("cfg_uncond", "lvl_embed.weight", "word_embed.weight", "text_proj_for_sos.ca.mat_q")
        needed = (*outside, f"{first}ffn.fc1.weight")
        dims = dict.fromkeys(needed, 2) | {"text_proj_for_sos.ca.mat_q": 3}
        require(tensors, source, "transformer of Infinity's layout", dims)
        width, bits = tensors["word_embed.weight"].shape
        scale = tensors.get(f"{first}sa.scale_mul_1H11")
        return cls(
            width=width,
            bits=bits,
            chunks=chunks,
            depth=numbered(tensors, "blocks.") if chunks is None else sum(chunks),
            heads=_heads(scale, num_heads, width, source),
            text_width=tensors["cfg_uncond"].shape[1],
            text_length=tensors["cfg_uncond"].shape[0],
            pool_heads=tensors["text_proj_for_sos.ca.mat_q"].shape[1],
            levels=tensors["lvl_embed.weight"].shape[0],
            hidden=tensors[f"{first}ffn.fc1.weight"].shape[0],
            scale_shape=None if scale is None else tuple(scale.shape),
            gated=f"{first}ffn.fcg.weight" in tensors,
            rms=f"{first}ca_norm.bias" not in tensors,
            input_norm="norm0_ve.weight" in tensors,
            shared_aln="shared_ada_lin.1.weight" in tensors,
            cross_scale=f"{first}ca_gamma" in tensors,
            head_aln="head_nm.ada_lin.1.weight" in tensors,
            head_depth=sum(tensors[name].dim() == 2 for name in tensors if name.startswith("head.") and name.endswith("weight")),
        )


def _chunks(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...] | None:
    """Blocks of each chunk; None where the names know no chunks."""
    if numbered(tensors, "blocks."):
        return None
    prefixes = [f"block_chunks.{i}.module." for i in range(numbered(tensors, "block_chunks."))]
    chunks = tuple(numbered(tensors, prefix) for prefix in prefixes)
    if len(set(chunks)) > 1:
        raise ValueError(f"the chunks of {source} must have the same number of blocks each, got {chunks}; a block is missing")
    return chunks


def _heads(scale: Tensor | None, given: int | None, width: int, source: str) -> int:
    stored = None if scale is None else scale.numel()
    if stored is None and given is None:
        raise ValueError(f"no tensor of {source} has the number of heads: attention is not normalised there; give num_heads")
    if stored is not None and given not in (None, stored):
        raise ValueError(f"num_heads is {given}, but {source} has {stored} heads; leave num_heads out")
    heads = stored or given
    assert heads is not None
    if width % heads or width // heads % 4:
        raise ValueError(f"num_heads must divide the width {width} of {source} into heads of a multiple of 4, got {heads}")
    return heads
