"""TokenFlow-t2i's Llama: norms after attention and feed-forward part instead of before them, and normalised queries and keys.

This module imports transformers, and so nothing imports it before a model is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaRMSNorm, apply_rotary_pos_emb

from varrl_lightning.policies.language_model import attend

NORM_EPSILON = 1e-6
"""Epsilon of the norms of queries and keys, whatever `rms_norm_eps` is."""


class Attention(LlamaAttention):
    """Llama's attention; queries and keys are normalised head by head before they are turned."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        norms = {name: LlamaRMSNorm(self.head_dim, eps=NORM_EPSILON) for name in ("query_norm", "key_norm")}
        self.qknorm = nn.ModuleDict(norms)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        """Attended features (R, n, d)."""
        assert position_embeddings is not None
        q, k, v = (
            project(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(self.qknorm["query_norm"](q), self.qknorm["key_norm"](k), *position_embeddings)
        k, v = past_key_values.update(k, v)
        attended, _ = attend(self, q, k, v, attention_mask, scaling=self.scaling, lengths=options.get("lengths"))
        return self.o_proj(attended.flatten(2)), None


class DecoderLayer(LlamaDecoderLayer):  # type: ignore[no-untyped-call]
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = Attention(config, layer_idx)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Features of the next layer, (R, n, d)."""
        attended, _ = self.self_attn(hidden_states, position_embeddings, attention_mask, past_key_values, **options)
        x = hidden_states + self.input_layernorm(attended)
        out: Tensor = x + self.post_attention_layernorm(self.mlp(x))
        return out


def tokenflow_llama(config: LlamaConfig, channels: int, projections: int, scales: int, tokens: int) -> LlamaModel:
    """A Llama with the published names of the parts that TokenFlow-t2i adds.

    Args:
        channels: features per cell of the visual tokenizer.
        projections: linear layers of the projector.
        scales: T; the embedding of levels has one more, for text.
        tokens: of all scales.
    """
    model = LlamaModel(config)
    model.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
    width = config.hidden_size
    parts: list[nn.Module] = [nn.Linear(channels, width)]
    for _ in range(projections - 1):
        parts += [nn.GELU(), nn.Linear(width, width)]
    model.mm_projector = parts[0] if projections == 1 else nn.Sequential(*parts)
    model.lvl_embed = nn.Embedding(scales + 1, width)
    model.pos_1LC = nn.Parameter(torch.empty(tokens, width))
    return model
