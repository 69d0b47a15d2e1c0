"""Runs a language model on a text and then on scales: attention is causal over text and across scales, and full within a scale."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.policies.cache import KeysValues, LayerCache, appended
from varrl_lightning.policies.layers import checkpointed
from varrl_lightning.schedule import Schedule

ATTENTION = "varrl_scales"
"""The name of `attend` among transformers' attention functions."""


class PrefixTransformer(nn.Module, ABC):
    """A language model's decoder, with embeddings that turn scales into its inputs and a head that turns its outputs into logits.

    The layers are those of transformers; attention, the cache and gradient checkpointing are ours, because a scale is neither
    causal nor masked, and because transformers checkpoints in training mode only, and then without a cache.

    Args:
        decoder: of the Llama kind: `embed_tokens`, `layers`, `norm` and `rotary_emb`, full attention in every layer.
        gradient_checkpointing: recompute the activations of each layer in the backward pass.

    Raises:
        ValueError: for a decoder of another kind.
    """

    def __init__(self, decoder: Any, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        _check(decoder)
        # A model may be built on the meta device; its frequencies are in no file, so they are built on the CPU.
        with torch.device("cpu"):
            decoder.rotary_emb = type(decoder.rotary_emb)(decoder.config)
        # In bfloat16 they would turn far positions by wrong angles: a tuple hides this copy from casts of the module.
        self._rotary = (copy.deepcopy(decoder.rotary_emb),)
        decoder.config._attn_implementation = ATTENTION
        self.gradient_checkpointing = gradient_checkpointing
        _register()

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The language model without its text head."""

    @abstractmethod
    def text(self, ids: Int[Tensor, "R S"]) -> Float[Tensor, "R S d"]:
        """Embedded text before the first query."""

    @abstractmethod
    def query(self, ids: Int[Tensor, "R"] | None, rows: int, schedule: Schedule) -> Float[Tensor, "R 1 d"]:
        """Embedded input of the 1x1 scale."""

    @abstractmethod
    def picture(self, features: Float[Tensor, "R n C"], t: int, schedule: Schedule) -> Float[Tensor, "R n d"]:
        """Embedded inputs of scale t >= 1: the latent so far at its cells."""

    @abstractmethod
    def logits(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows V"]:
        """Logits over the visual vocabulary."""

    def run(
        self,
        x: Float[Tensor, "R n d"],
        positions: Int[Tensor, "R n"],
        cache: Sequence[LayerCache] | None = None,
        seen: Bool[Tensor, "R 1 _q _k"] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "R n d"], list[LayerCache]]:
        """Normalised outputs of the last layer, and every layer's keys and values, those of `cache` included.

        Args:
            positions: of each input in its row's sequence, counted without padding.
            cache: keys and values of earlier positions.
            seen: which keys may be seen; all where None.
            lengths: tokens of each of consecutive scales; None for text, which is causal where `seen` is None.
        """
        _register()  # the attention function is registered by process: a module may have been sent to another one
        decoder = self.decoder
        rotary = self._rotary[0].to(x.device)(x, positions)
        layers = []
        for i, layer in enumerate(decoder.layers):
            past = None if cache is None else cache[i]
            call = getattr(layer, "through", None) or partial(through, layer)
            x, kept = checkpointed(call, x, rotary, past, seen, lengths, enabled=self.gradient_checkpointing)
            layers.append(kept)
        return decoder.norm(x), layers


class Memory:
    """One layer's keys and values in place of transformers' cache; it lives for one call, so that a layer is a pure function."""

    def __init__(self, past: LayerCache | None) -> None:
        self.kept = past

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> KeysValues:
        """Append keys and values; return all of them."""
        key = key.to(value.dtype)  # under autocast the rotary embedding has made it float32
        together, self.kept = appended(self.kept, key, value)
        return together


def attend(
    module: nn.Module,  # noqa: ARG001
    query: Float[Tensor, "R heads n e"],
    key: Float[Tensor, "R groups k e"],
    value: Float[Tensor, "R groups k e"],
    attention_mask: Bool[Tensor, "R 1 _q _k"] | None,
    scaling: float | None = None,
    lengths: Sequence[int] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "R n heads e"], None]:
    """Attention in the form that transformers' layers ask for: one call of scaled dot-product attention a scale, one for text.

    The sampler, which has one scale at a time, computes what teacher forcing computes, and no n x k mask of scales exists.

    Args:
        attention_mask: `seen` of `PrefixTransformer.run`.
        scaling: of the logits of attention.
        lengths: as in `PrefixTransformer.run`.
    """
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and attention_mask is not None:  # the kernels that take a mask need as many key heads as query heads
        key, value, shared = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1), 1
    query, last, parts = query.to(value.dtype), key.shape[2] - query.shape[2], []
    for part in query.split(list(lengths or [query.shape[2]]), dim=2):
        last += part.shape[2]
        attended = F.scaled_dot_product_attention(
            part,
            key[:, :, :last],
            value[:, :, :last],
            attn_mask=None if attention_mask is None else attention_mask[..., :last],
            is_causal=lengths is None and attention_mask is None,
            scale=scaling,
            enable_gqa=shared > 1,
        )
        parts.append(attended.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def causal(mask: Bool[Tensor, "R S"]) -> Bool[Tensor, "R 1 S S"]:
    """The mask of left-padded texts: a token sees itself and the earlier tokens, never padding; padding sees itself alone."""
    length = mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    return (earlier & mask[:, None, None, :]) | itself


def through(
    layer: Callable[..., Any],
    x: Tensor,
    rotary: tuple[Tensor, Tensor],
    past: LayerCache | None,
    seen: Tensor | None,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, LayerCache]:
    """The outputs of one layer, and its keys and values."""
    memory = Memory(past)
    x = layer(x, attention_mask=seen, position_embeddings=rotary, past_key_values=memory, use_cache=True, lengths=lengths)
    assert memory.kept is not None
    return x, memory.kept


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)


def _check(decoder: Any) -> None:
    absent = [name for name in ("embed_tokens", "layers", "norm", "rotary_emb") if not hasattr(decoder, name)]
    if absent:
        raise ValueError(
            f"{type(decoder).__name__} has no {', '.join(absent)}; the backbone must be a causal language model of the Llama kind, "
            "such as Llama or Qwen2.5, whose decoder has embed_tokens, layers, norm and rotary_emb"
        )
    kinds = set(getattr(decoder.config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(decoder.config, "sliding_window", None):
        raise ValueError(
            f"{type(decoder).__name__} has layers of {sorted(kinds)} and sliding_window "
            f"{getattr(decoder.config, 'sliding_window', None)}; every scale must see the whole prompt: take a backbone with full "
            "attention, or set sliding_window to null in its config"
        )
