"""Infinity, the bitwise text-to-image generator (arXiv 2412.04431), in the published layout of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache
from varrl_lightning.policies.infinity_schedules import PIXELS, published_schedule, rotary_angles
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.infinity_transformer import InfinityTransformer
from varrl_lightning.policies.published_names import warn_of_contradictions
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import Schedule
from varrl_lightning.text_encoders import Given, T5Text, text_encoder_of
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import dtype_named

MARKS = ("word_embed.weight", "cfg_uncond")
"""Tensors by which a transformer of this family is known among others in a file."""
COMPUTED = (
    "*zero_k_bias",
    "*ln_wo_grad.weight",
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
)
"""Tensors that the public code stores although they are constant or derived: zeros, ones and masks."""


class InfinityPolicy(VARPolicy):
    """Infinity as a policy: a token is a row of bits, sampled independently given what came before.

    The unconditional half of guidance reads a prompt's `negative`, or where it has none a learned text as long as the prompt, which
    trains along. Guidance acts on logits. The public sampler can also mix the hidden states of both halves in the middle of the
    transformer (`cfg_insertion_layer` < 0). That is no function of the two halves' logits, so that its samples have no
    log-probability here, and it is left out.

    Args:
        transformer: all that trains.
        tokenizer: the frozen binary quantiser; its bits fill a token exactly once, or four times (2 x 2 places).
        text_encoder: gives `text` and `mask` of texts; None where no prompt will have to be encoded.
        pixels: the default resolution in megapixels: `0.06M`, `0.25M`, `0.60M` or `1M`.
        rope_normalisation: how positions of coarse scales are spread over the finest grid; see `rotary_angles`.
    """

    transformer: InfinityTransformer
    tokenizer: BSQTokenizer
    text_encoder: nn.Module
    vocab_size = 2
    guidance = "constant"
    default_sampling = Sampling(cfg=4.0, top_p=0.97, temperature=0.5)

    def __init__(
        self,
        transformer: InfinityTransformer,
        tokenizer: BSQTokenizer,
        text_encoder: nn.Module | None = None,
        pixels: str = "1M",
        rope_normalisation: int = 2,
    ) -> None:
        parts: dict[str, nn.Module] = {"tokenizer": tokenizer}
        super().__init__(transformer, parts if text_encoder is None else {**parts, "text_encoder": text_encoder})
        _check_choices(pixels, rope_normalisation)
        self.bits = transformer.sizes.bits
        self.pixels, self.rope_normalisation = pixels, rope_normalisation
        zooms = {tokenizer.channels * zoom**2: zoom for zoom in (1, 2)}
        if self.bits not in zooms:
            raise ValueError(
                f"a token of the transformer has {self.bits} bits, but the tokenizer's have {tokenizer.channels}, or "
                f"{4 * tokenizer.channels} for 2 x 2 places; give the tokenizer that belongs to it"
            )
        self.stride = tokenizer.stride * zooms[self.bits]
        if zooms[self.bits] > 1:  # as Infinity-8B, whose demo samples at temperature 1
            self.default_sampling = Sampling(cfg=4.0, top_p=0.97)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        tokenizer: str | Path | BSQTokenizer,
        text_encoder: Given = None,
        *,
        pixels: Literal["0.06M", "0.25M", "0.60M", "1M"] = "1M",
        num_heads: int | None = None,
        rope_normalisation: Literal[0, 1, 2] = 2,
        level_embedding: Literal["first", "every"] = "first",
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
    ) -> InfinityPolicy:
        """Load `infinity_2b_reg.pth`, the shards of `infinity_8b_weights`, or any weights of their layout.

        Sizes are read from the tensors. The defaults of the other keywords are those of the published models. What fits by shape
        and not by name is warned of before anything is read, as the published `infinity_8b_512x512_weights` at 1M pixels.

        Args:
            path: a file, a folder or a hub id.
            tokenizer: the same, of the VAE that belongs to it; or the loaded tokenizer.
            text_encoder: Flan-T5-XL's folder or hub id (`google/flan-t5-xl`), a `.safetensors` file of encoded texts, or a module
                that gives `text` and `mask` of texts; None where no prompt will have to be encoded.
            pixels: the default resolution in megapixels, that of the weights: `0.06M`, `0.25M`, `0.60M` or `1M`.
            num_heads: only where attention is not normalised; elsewhere it is read from a tensor.
            rope_normalisation: 0, 1 or 2, which the public code calls `rope2d_normalized_by_hw`.
            level_embedding: whether it is added in front of the `first` chunk of blocks only, or of `every` one.
            dtype: of the transformer's weights: `float32`, `bfloat16` or `float16`.
            gradient_checkpointing: recompute the activations of a block in the backward pass.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped, or do not fit what is given; the message lists them.
        """
        _check_choices(pixels, rope_normalisation)
        weights = dtype_named(dtype)
        warn_of_contradictions(
            "InfinityPolicy",
            path,
            tokenizer,
            pixels=pixels,
            rope_normalisation=rope_normalisation,
            level_embedding=level_embedding,
        )
        tensors, source = read_tensors(path, marks=MARKS), str(path)
        with torch.device("meta"):
            transformer = InfinityTransformer(Sizes.of(tensors, source, num_heads), level_embedding, gradient_checkpointing)
        load_strictly(transformer, tensors, source, ignore=COMPUTED, dtype=weights)
        if not isinstance(tokenizer, BSQTokenizer):
            tokenizer = BSQTokenizer.from_pretrained(tokenizer)
        # What the transformer has no learned position for is cut off by the encoder, which says so.
        longest = min(512, transformer.sizes.text_length)
        encoder = text_encoder_of(text_encoder, partial(T5Text.from_pretrained, max_tokens=longest))
        return cls(transformer, tokenizer, encoder, pixels, rope_normalisation)

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The published schedule of an image size: one of four resolutions in one of 15 aspect ratios.

        Raises:
            ValueError: for any other size; lists the nearest.
        """
        return published_schedule(size, self.pixels, self.stride)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Features of each text, and of `negative` where a prompt has one.

        Raises:
            ValueError: when no text encoder was given, sizes differ or are not published, or a text is longer than the learned one.
        """
        schedules = {prompt.size: self.schedule(prompt.size) for prompt in prompts}
        if len(set(schedules.values())) > 1:
            raise ValueError(f"all prompts of a batch must have one image size, got {sorted(map(str, schedules))}")
        if not hasattr(self, "text_encoder"):
            raise ValueError(
                f"prompt {prompts[0].id!r} has to be encoded, but this Infinity policy has no text encoder; pass text_encoder to "
                "InfinityPolicy.from_pretrained: T5Text of Flan-T5-XL, or EncodedTexts for features from a file"
            )
        prompted, negatives = [p.text for p in prompts], [p.negative or p.text for p in prompts]
        texts = list(dict.fromkeys(prompted + negatives))
        with torch.no_grad():
            features = {name: x.to(self.device) for name, x in self.text_encoder(texts).items()}
        used = features["mask"].bool().any(dim=0)  # some encoders pad further than the longest text
        text, mask = features["text"][:, used].float(), features["mask"][:, used].bool()
        self._check_text(texts, text, mask)
        learned = torch.tensor([not p.negative for p in prompts], device=self.device)

        def rows(half: list[str], unconditional: Bool[Tensor, " R"]) -> dict[str, Tensor]:
            index = torch.tensor([texts.index(text) for text in half], device=self.device)
            return {"text": text[index], "mask": mask[index], "unconditional": unconditional}

        schedule = next(iter(schedules.values()))
        return Cond(schedule, rows(prompted, torch.zeros_like(learned)), rows(negatives, learned))

    def _check_text(self, texts: list[str], features: Float[Tensor, "R S c"], mask: Bool[Tensor, "R S"]) -> None:
        sizes = self.transformer.sizes
        if features.shape[-1] != sizes.text_width:
            raise ValueError(
                f"the transformer reads {sizes.text_width} features per word piece, the text encoder gives {features.shape[-1]}"
            )
        for text, length in zip(texts, mask.sum(dim=1).tolist(), strict=True):
            if not 1 <= length <= sizes.text_length:
                raise ValueError(f"a text must have 1 to {sizes.text_length} word pieces, got {length} of {text!r}")

    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        """The pooled prompt, and its keys and values in every block."""
        return self.transformer.read(inputs["text"], inputs["mask"], inputs["unconditional"])

    def scale_features(
        self, inputs: dict[str, Tensor], cache: Cache, latents: list[Tensor], first: int, schedule: Schedule
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of consecutive scales, whose positions see the prompt, all coarser scales and each other."""
        scales = range(first, first + len(latents))
        seen = [self.tokenizer.next_input(x, t, schedule) if t else None for t, x in zip(scales, latents, strict=True)]
        sizes = self.transformer.sizes
        angles = rotary_angles(schedule.grids, sizes.width // sizes.heads, self.rope_normalisation, latents[0].device)
        span = slice(schedule.offsets[first], schedule.offsets[scales.stop])
        lengths = schedule.lengths[first : scales.stop]
        places = (angles[0][span], angles[1][span])
        last = scales.stop == len(schedule)
        features, cache = self.transformer(seen, inputs["mask"], cache, first, lengths, places, last)
        return features, cache

    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits of both values of each bit, (..., bits, 2)."""
        return self.transformer.logits(features)

    def blocks(self) -> list[nn.Module]:
        """The blocks of all chunks."""
        return [block for chunk in self.transformer.chunks for block in chunk]

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with the constants that the public code stores among its weights."""
        constants = {}
        for name, x in tensors.items():
            if name.endswith("v_bias"):
                constants[name.removesuffix("v_bias") + "zero_k_bias"] = torch.zeros_like(x)
            # The public code stores weights of its RMS norms even where these are not learned.
            if self.transformer.sizes.rms and name.endswith("ca_norm.weight"):
                constants[name.removesuffix("ca_norm.weight") + "ln_wo_grad.weight"] = torch.ones_like(x)
        if self.transformer.sizes.rms and self.transformer.sizes.head_aln:
            constants["head_nm.ln_wo_grad.weight"] = torch.ones_like(next(iter(constants.values())))
        return {**tensors, **constants}


def _check_choices(pixels: str, rope_normalisation: int) -> None:
    if pixels not in PIXELS:
        raise ValueError(f"pixels must be one of {', '.join(PIXELS)}, got {pixels!r}")
    if rope_normalisation not in (0, 1, 2):
        raise ValueError(f"rope_normalisation must be 0, 1 or 2, got {rope_normalisation}")
