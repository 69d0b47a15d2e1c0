"""TokenFlow-t2i, the public predecessor of the paper's base model: a Llama that generates images of 256 x 256 pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varrl_lightning.policies.language_model import PrefixTransformer
from varrl_lightning.policies.layers import outside_autocast
from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy, as_schedule, text_tokenizer, visual_tokenizer
from varrl_lightning.policies.published_names import warn_of_contradictions
from varrl_lightning.schedule import Schedule
from varrl_lightning.text_encoders.cuts import kept_texts
from varrl_lightning.tokenizers.tokenflow_vq import TOKENFLOW_256
from varrl_lightning.types import Sampling
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import dtype_named, numbered, require

NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, low quality, "
    "normal quality, jpeg artifacts, signature, watermark, username, blurry."
)
"""The text of the unconditional half of guidance, as published."""
BEGIN_OF_IMAGE, FIRST_CODE = "<img>", "<vq_token_0>"
MARKS = ("model.embed_tokens.weight",)
"""Tensors by which a transformer of this family is known among others in a file."""
COMPUTED = ("image_token_start", "image_token_end", "*.rotary_emb.inv_freq")
"""Tensors that a checkpoint may hold besides weights."""


class TokenFlowTransformer(PrefixTransformer):
    """TokenFlow-t2i's Llama under its published names; the visual vocabulary is a range of the text vocabulary.

        text:               embed_tokens(id) + lvl_embed_0
        input of scale 0:   embed_tokens(last id) + lvl_embed_0 + pos_1LC_0
        input of scale t:   mm_projector(latent so far) + lvl_embed_{t+1} + pos_1LC     level 1 is unused
        logits:             the visual range of lm_head's

    Args:
        model: of `tokenflow_llama`.
        image_token_start: id of the first visual token.
        visual: V, the number of visual tokens.
        gradient_checkpointing: as in `PrefixTransformer`.
    """

    def __init__(self, model: Any, image_token_start: int, visual: int, gradient_checkpointing: bool = False) -> None:
        super().__init__(model, gradient_checkpointing)
        self.model = model
        self.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
        self.visual_range = slice(image_token_start, image_token_start + visual)

    @property
    def decoder(self) -> Any:
        """The Llama without its head."""
        return self.model

    def text(self, ids: Int[Tensor, "R S"]) -> Float[Tensor, "R S d"]:
        """Embedded ids."""
        embedded: Tensor = self.model.embed_tokens(ids) + self.model.lvl_embed(torch.zeros_like(ids[:1, :1]))
        return embedded

    def query(self, ids: Int[Tensor, "R"] | None, rows: int, schedule: Schedule) -> Float[Tensor, "R 1 d"]:
        """The last text token."""
        assert ids is not None
        embedded: Tensor = self.text(ids[:, None]) + self.model.pos_1LC[:1]
        return embedded

    def picture(self, features: Float[Tensor, "R n C"], t: int, schedule: Schedule) -> Float[Tensor, "R n d"]:
        """Embedded latent so far at each cell."""
        places = self.model.pos_1LC[schedule.offsets[t] : schedule.offsets[t + 1]]
        level = self.model.lvl_embed(torch.full((1,), t + 1, device=features.device))
        embedded: Tensor = self.model.mm_projector(features.to(places.dtype)) + level + places
        return embedded

    def logits(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows V"]:
        """Logits over the visual tokens; the published sampler never samples a text token."""
        return outside_autocast(self.lm_head, features)[..., self.visual_range]


class TokenFlowPolicy(LLMPrefixPolicy):
    """TokenFlow-t2i with its published weights, as its sampler runs it with `loop` 1.

    With more loops the public sampler samples every scale from the second on again, given its first sample. The probability of what
    it returns is then a sum over all first samples, which is intractable, so that such a sampler is no policy for RL.

    The prefix of a prompt is its text with the begin-of-sentence token, cut to 128 tokens, then `<img>`. The public code pads it to
    128 tokens and counts padding as positions; rotary embeddings see differences of positions only, so that here it does not count.

    All formulas are the public code's, and tests compare with it at small sizes. The published checkpoint has not been loaded: it
    is not confirmed that its rotary base and `rms_norm_eps`, which no tensor stores, are those of the training script's Llama-2,
    nor that its vocabulary ends with the visual tokens. The public code could sample tokens behind them; here they are left out.
    """

    transformer: TokenFlowTransformer
    default_sampling = Sampling(cfg=7.5, top_k=600, top_p=0.6)
    text_is_query = True

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | Path,
        tokenizer: str | Path | nn.Module,
        text_encoder: Any = None,
        *,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        image_token_start: int | None = None,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-5,
        schedule: Schedule | Sequence[int] = TOKENFLOW_256,
        negative: str = NEGATIVE,
        max_text_tokens: int = 128,
    ) -> TokenFlowPolicy:
        """Load `ByteFlow-AI/TokenFlow-t2i`, or any checkpoint of its layout; sizes are read from the tensors.

        Args:
            path: a folder or hub id of shards, or a file.
            tokenizer: a `TokenFlowVQ`, or its file.
            text_encoder: the Llama tokenizer with the visual tokens, or its folder or hub id. The checkpoint has one, which
                transformers reads with the package sentencepiece. Or a mapping from texts to the ids of their complete prefix,
                `<img>` included.
            dtype: of all weights; published are bfloat16.
            gradient_checkpointing: recompute the activations of each layer in the backward pass.
            image_token_start: id of `<vq_token_0>`; None reads it from the checkpoint, or else asks the text tokenizer.
            rope_theta: base of the rotary embedding.
            rms_norm_eps: of all norms but those of queries and keys.
            schedule: the scales that the model was trained on.
            negative: the text of the unconditional half of guidance.
            max_text_tokens: where a text is cut off.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped (the message lists them), or do not fit the schedule; when
                it is unknown where the visual tokens begin.
        """
        from varrl_lightning.policies.tokenflow_llama import tokenflow_llama

        warn_of_contradictions("TokenFlowPolicy", path, tokenizer, schedule=schedule)
        weights = dtype_named(dtype)
        tensors, text_encoder, vq = read_tensors(path, marks=MARKS), text_tokenizer(text_encoder), visual_tokenizer(tokenizer)
        scales, visual, channels = as_schedule(schedule, vq), int(vq.vocab_size), int(vq.channels)  # type: ignore[arg-type]
        config = llama_config(tensors, str(path), rope_theta, rms_norm_eps)
        start = _first_visual(tensors, text_encoder, image_token_start, visual, config.vocab_size)
        _check_schedule(tensors, scales, str(path))
        projections = sum(n.startswith("model.mm_projector.") and n.endswith("weight") for n in tensors)
        with torch.device("meta"):
            llama = tokenflow_llama(config, channels, projections, len(scales), scales.offsets[-1])
            transformer = TokenFlowTransformer(llama, start, visual, gradient_checkpointing)
        load_strictly(transformer, tensors, str(path), ignore=COMPUTED, dtype=weights)
        return cls(transformer, vq, text_encoder, scales, negative, max_text_tokens)

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The one schedule that this model was trained on."""
        if size not in (None, self.longest.image_size):
            raise ValueError(f"this model generates images of {self.longest.image_size} pixels only, got {size}")
        return self.longest

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with the ids of the first and the last visual token, which the public code stores."""
        visual = self.transformer.visual_range
        return {
            **tensors,
            "image_token_start": torch.tensor(visual.start),
            "image_token_end": torch.tensor(visual.stop - 1),
        }

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What is read of those texts that have more than `max_text_tokens`, the begin-of-sentence token included."""
        if self.text_encoder is None or isinstance(self.text_encoder, Mapping):
            return {}
        return kept_texts(self.text_encoder, texts, self.max_text_tokens, special=1, encode=self._text_ids)

    def prefix_ids(self, text: str) -> list[int]:
        """Ids of a text, cut off after `max_text_tokens`, and of `<img>`.

        Raises:
            ValueError: when the ids are unknown.
        """
        known = self._known_ids(text)
        if known is not None:
            return known
        begin_of_image = list(self.text_encoder.encode(BEGIN_OF_IMAGE, add_special_tokens=False))
        return self._text_ids(text)[: self.max_text_tokens] + begin_of_image

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a whole text, with the begin-of-sentence token once."""
        ids, begin = list(self.text_encoder.encode(text)), self.text_encoder.bos_token_id
        return ids if ids[:1] == [begin] else [begin, *ids]


def llama_config(tensors: Mapping[str, Tensor], source: str, rope_theta: float, rms_norm_eps: float) -> Any:
    """Read the config of a Llama from its tensors.

    Raises:
        ValueError: when they are none of TokenFlow-t2i.
    """
    from transformers import LlamaConfig

    layer = "model.layers.0."
    outside = ("model.embed_tokens.weight", "model.lvl_embed.weight", "model.pos_1LC")
    inside = ("self_attn.qknorm.query_norm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.up_proj.weight")
    needed = (*outside, *(layer + name for name in inside))
    dims = dict.fromkeys(needed, 2) | {layer + "self_attn.qknorm.query_norm.weight": 1}
    require(tensors, source, "TokenFlow-t2i checkpoint", dims)
    vocab_size, width = tensors["model.embed_tokens.weight"].shape
    size = len(tensors[layer + "self_attn.qknorm.query_norm.weight"])
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=len(tensors[layer + "mlp.up_proj.weight"]),
        num_hidden_layers=numbered(tensors, "model.layers."),
        num_attention_heads=len(tensors[layer + "self_attn.q_proj.weight"]) // size,
        num_key_value_heads=len(tensors[layer + "self_attn.k_proj.weight"]) // size,
        head_dim=size,
        attention_bias=layer + "self_attn.q_proj.bias" in tensors,
        mlp_bias=layer + "mlp.up_proj.bias" in tensors,
        rms_norm_eps=rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
    )


def _first_visual(tensors: Mapping[str, Tensor], text_encoder: Any, given: int | None, visual: int, vocab_size: int) -> int:
    """The id of the first visual token in the vocabulary."""
    if given is not None:
        start = given
    elif "image_token_start" in tensors:
        start = int(tensors["image_token_start"])
    elif hasattr(text_encoder, "convert_tokens_to_ids"):
        start = int(text_encoder.convert_tokens_to_ids(FIRST_CODE))
    else:
        raise ValueError(
            f"nothing says where visual tokens begin; give image_token_start, the id of {FIRST_CODE}, or a text tokenizer"
        )
    if not 0 <= start <= vocab_size - visual:
        raise ValueError(
            f"{visual} visual tokens from id {start} on do not fit a vocabulary of {vocab_size}; give another image_token_start"
        )
    return start


def _check_schedule(tensors: Mapping[str, Tensor], schedule: Schedule, source: str) -> None:
    levels, tokens = len(tensors["model.lvl_embed.weight"]) - 1, len(tensors["model.pos_1LC"])
    if (levels, tokens) != (len(schedule), schedule.offsets[-1]):
        raise ValueError(
            f"{source} was trained on {levels} scales of {tokens} tokens in all, the schedule {schedule.grids} has {len(schedule)} "
            f"of {schedule.offsets[-1]}; give the schedule that the model was trained on"
        )
