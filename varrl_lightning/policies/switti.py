"""Switti: text to image in VAR's tokens, by a transformer that reads CLIP's words.

The public sampler's `more_smooth` does not exist here. It feeds a mixture of all codebook entries, weighted by a Gumbel softmax, to
the next scale: no token is sampled, so that no probability exists which a policy gradient could raise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache
from varrl_lightning.policies.layers import outside_autocast
from varrl_lightning.policies.published_names import SIDES_512, SIDES_1024, warn_of_contradictions
from varrl_lightning.policies.state import Cond
from varrl_lightning.policies.switti_transformer import CropFrequencies, SwittiTransformer, sizes
from varrl_lightning.schedule import Schedule, square
from varrl_lightning.text_encoders import ClipPair, Given, text_encoder_of
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import dtype_named

PUBLISHED = {len(sides): sides for sides in (SIDES_512, SIDES_1024)}
"""Sides of the published checkpoints' grids, by their number."""
MARKS = ("word_embed.weight", "text_pooler.weight")
"""Tensors by which a transformer of this family is known among others in a file."""
COMPUTED = ("lvl_1L", "attn_bias_for_masking")
"""Tensors that the public code stores, and that are computed from the schedule."""

FEATURES = ("text", "pooled", "mask")
CROP = "crop_embed.weight"
"""The frozen frequencies of the crop condition, which the public code stores among the trained weights."""


def guidance_window(
    scales: int,
    cfg: float = 6.0,
    top_k: int = 400,
    top_p: float = 0.95,
    turn_on: int = 0,
    turn_off: int = 10,
    last_scale_temp: float | None = None,
) -> Sampling:
    """The public pipeline's sampling settings, with its defaults: guidance in scales `[turn_on, turn_off)` only.

    Args:
        scales: T of the model.
        last_scale_temp: temperature of the scales from `turn_off` on.

    Raises:
        ValueError: unless 0 <= turn_on <= turn_off.
    """
    if not 0 <= turn_on <= turn_off:
        raise ValueError(f"guidance must be turned on before it is turned off, got turn_on {turn_on} and turn_off {turn_off}")
    strengths = tuple(float(cfg) if turn_on <= t < turn_off else 0.0 for t in range(scales))
    temperatures = tuple(1.0 if t < turn_off or last_scale_temp is None else float(last_scale_temp) for t in range(scales))
    # Without any guidance there is no unconditional half to be computed.
    return Sampling(_plain(strengths) if any(strengths) else None, top_k, top_p, _plain(temperatures))


def crop_numbers(size: tuple[int, int], base: int = 512) -> list[int]:
    """Height and width of an image after its shorter side became `base`, then how far the central square lies from the top left."""
    sides = torch.tensor(size)
    resized = (sides.float() * (base / sides.min().float())).int()  # fp32, which may lose a pixel, as it did in training
    return torch.cat((resized, (resized - base) // 2)).clamp(min=0).tolist()


class SwittiPolicy(VARPolicy):
    """Switti as a policy over scales.

    In the default model a scale does not attend to the others: they share the latent alone. Forking copies the latent and the
    prompt's keys and values, and a truncated update runs the trained scales only. In `Switti-AR` scales attend to earlier ones.

    Args:
        transformer: all that trains.
        tokenizer: VAR's, with Switti's weights.
        sides: side of each scale's grid, in tokens.
        text_encoder: gives `text`, `pooled` and `mask` of texts; None where no prompt will have to be encoded.
        crop: the frequencies of the crop condition, where the model has one.
        autoregressive: whether scales attend to earlier ones.
        crop_size: height and width of the photographs that images shall look like crops of.

    Raises:
        ValueError: when the tokenizer has other codes than the transformer.
    """

    transformer: SwittiTransformer
    tokenizer: VQVAE
    guidance = "ramp"
    default_sampling = Sampling(6.0, 400, 0.95)

    def __init__(
        self,
        transformer: SwittiTransformer,
        tokenizer: VQVAE,
        sides: Sequence[int] = SIDES_512,
        text_encoder: nn.Module | None = None,
        crop: CropFrequencies | None = None,
        autoregressive: bool = False,
        crop_size: tuple[int, int] = (512, 512),
    ) -> None:
        parts = {"tokenizer": tokenizer, "text_encoder": text_encoder, "crop": crop}
        super().__init__(transformer, {name: part for name, part in parts.items() if part is not None})
        if (transformer.vocab_size, transformer.channels) != (tokenizer.vocab_size, tokenizer.channels):
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} codes of {tokenizer.channels} channels, the transformer was trained "
                f"with {transformer.vocab_size} of {transformer.channels}; give the tokenizer that belongs to it"
            )
        self.vocab_size = tokenizer.vocab_size
        self.scales_attend = autoregressive
        self.crop_size = crop_size
        self._schedule = square(tuple(sides), tokenizer.stride)
        self.default_sampling = guidance_window(len(sides))

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        tokenizer: str | Path | VQVAE,
        text_encoder: Given = None,
        *,
        autoregressive: bool | None = None,
        num_heads: int | None = None,
        sides: Sequence[int] | None = None,
        rope_theta: float = 10000.0,
        rope_size: float = 128.0,
        crop_size: tuple[int, int] = (512, 512),
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
    ) -> SwittiPolicy:
        """Load `yresearch/Switti`, its `-AR` and `-1024` siblings, or any file of their layout, and `yresearch/VQVAE-Switti`.

        Sizes are read from the tensors.

        Args:
            path: a file, a folder or a hub id.
            tokenizer: likewise, or a tokenizer.
            text_encoder: folders or hub ids of CLIP-L and CLIP-bigG, a `.safetensors` file of encoded texts, or a module that gives
                `text`, `pooled` and `mask` of texts; None where no prompt will have to be encoded.
            autoregressive: whether scales attend to earlier ones (`Switti-AR`), which no weight shows; from the stored
                `attn_bias_for_masking` when None.
            num_heads: stored in no tensor; width / 64 when None, as in the published models.
            sides: of the grids, in tokens; from the stored `lvl_1L` or the number of scales when None.
            rope_theta: base of the rotary positions; stored in no tensor.
            rope_size: span of the rotary positions; stored in no tensor.
            crop_size: height and width of the photographs that images shall look like crops of.
            dtype: of the transformer's weights: `float32`, `bfloat16` or `float16`.
            gradient_checkpointing: recompute the activations of a layer in the backward pass.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped (the message lists them), or do not fit what is given.
        """
        warn_of_contradictions(
            "SwittiPolicy",
            path,
            tokenizer,
            sides=sides,
            autoregressive=autoregressive,
            num_heads=num_heads,
            rope_theta=rope_theta,
            rope_size=rope_size,
        )
        weights = dtype_named(dtype)
        tensors, source = read_tensors(path, marks=MARKS), str(path)
        arguments = sizes(tensors, source)
        autoregressive = _scales_attend(tensors, autoregressive, source)
        sides = _sides(tensors, sides, arguments, source)
        heads = _heads(arguments, num_heads, source)
        with torch.device("meta"):
            transformer = SwittiTransformer(
                **arguments, heads=heads, theta=rope_theta, span=rope_size, gradient_checkpointing=gradient_checkpointing
            )
        ignore = (*COMPUTED, CROP) if arguments["crop"] else COMPUTED
        load_strictly(transformer, tensors, source, ignore=ignore, dtype=weights)
        crop = _crop_frequencies(tensors, arguments["width"], source) if arguments["crop"] else None
        if not isinstance(tokenizer, VQVAE):
            tokenizer = VQVAE.from_pretrained(tokenizer)
        encoder = text_encoder_of(text_encoder, ClipPair.from_pretrained)
        return cls(transformer, tokenizer, sides, encoder, crop, autoregressive, crop_size)

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The one schedule that this model has."""
        if size not in (None, self._schedule.image_size):
            raise ValueError(f"this Switti model generates images of {self._schedule.image_size} pixels only, got {size}")
        return self._schedule

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Features of each text, and of `negative` or an empty text for the unconditional half.

        Raises:
            ValueError: when there is no text encoder or one of another family, or a size that the model does not have is asked for.
        """
        for prompt in prompts:
            self.schedule(prompt.size)
        if not hasattr(self, "text_encoder"):
            raise ValueError(
                f"prompt {prompts[0].id!r} has to be encoded, but this Switti policy has no text encoder; pass text_encoder to "
                "SwittiPolicy.from_pretrained: ClipPair for CLIP-L and CLIP-bigG, or EncodedTexts for features from a file"
            )
        prompted, negatives = [p.text for p in prompts], [p.negative or "" for p in prompts]
        texts = list(dict.fromkeys(prompted + negatives))
        with torch.no_grad():
            features = {name: x.to(self.device) for name, x in self.text_encoder(texts).items()}
        if not features.keys() >= set(FEATURES):
            raise ValueError(
                f"Switti reads {', '.join(FEATURES)} of a text, but the text encoder gives {', '.join(features)}; use ClipPair"
            )

        def rows(half: list[str]) -> dict[str, Tensor]:
            index = torch.tensor([texts.index(text) for text in half], device=self.device)
            return {name: features[name][index] for name in FEATURES} | self._crop_condition(len(half))

        return Cond(self.schedule(), rows(prompted), rows(negatives))

    def _crop_condition(self, rows: int) -> dict[str, Tensor]:
        if not hasattr(self, "crop"):
            return {}
        numbers = torch.tensor(crop_numbers(self.crop_size), dtype=torch.float32, device=self.device)
        return {"crop": self.crop(numbers).repeat(rows, 1)}

    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        """The prompt's condition, and its keys and values in every layer."""
        return self.transformer.start(inputs)

    def scale_features(
        self, inputs: dict[str, Tensor], cache: Cache, latents: list[Tensor], first: int, schedule: Schedule
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of consecutive scales, which see the prompt and, in `Switti-AR`, the earlier scales."""
        assert cache.condition is not None
        scales = range(first, first + len(latents))
        parts = []
        for t, latent in zip(scales, latents, strict=True):
            seen = self.tokenizer.next_input(latent, t, schedule)
            parts.append(self.transformer.embed(seen, cache.condition[:, 0], t, schedule))
        grids = schedule.grids[first : scales.stop]
        x, cache = self.transformer.run(torch.cat(parts, dim=1), grids, inputs["mask"], cache, self.scales_attend)
        return list(x.split([part.shape[1] for part in parts], dim=1)), cache

    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits over the codes."""
        return outside_autocast(self.transformer.head, features)

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The public state dict: with the crop's frequencies, the scale of each position, and the mask of self-attention."""
        level = torch.repeat_interleave(torch.arange(len(self._schedule)), torch.tensor(self._schedule.lengths))
        sees = level[:, None] >= level if self.scales_attend else level[:, None] == level
        mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)
        crop = {"crop_embed.weight": self.crop.weight.cpu()} if hasattr(self, "crop") else {}
        return tensors | crop | {"lvl_1L": level[None], "attn_bias_for_masking": mask[None, None]}


def _plain(values: tuple[float, ...]) -> float | tuple[float, ...]:
    return values[0] if len(set(values)) == 1 else values


def _heads(arguments: Mapping[str, Any], given: int | None, source: str) -> int:
    width: int = arguments["width"]
    heads = width // 64 if given is None else given
    # Rotary positions, where they are not learned, turn features in groups of four.
    if heads < 1 or width % heads or not (arguments["places"] or width // heads % 4 == 0):
        raise ValueError(f"{source} has {width} features, which cannot be shared by {heads} heads; give num_heads")
    return heads


def _crop_frequencies(tensors: Mapping[str, Tensor], width: int, source: str) -> CropFrequencies:
    crop = CropFrequencies(width)
    frequencies = {"weight": tensors[CROP]} if CROP in tensors else {}
    load_strictly(crop, frequencies, f"crop_embed of {source}")
    return crop


def _scales_attend(tensors: Mapping[str, Tensor], given: bool | None, source: str) -> bool:
    """Whether scales attend to earlier ones: by the stored mask, where the last token may see the first, or as given."""
    if "attn_bias_for_masking" not in tensors:
        if given is None:
            raise ValueError(f"{source} stores no mask; give autoregressive=True for Switti-AR, autoregressive=False for Switti")
        return given
    stored = bool(tensors["attn_bias_for_masking"][0, 0, -1, 0] == 0)
    if given is not None and given != stored:
        kind = "attend" if stored else "do not attend"
        raise ValueError(f"autoregressive={given} was given, but by its stored mask the scales of {source} {kind} to earlier ones")
    return stored


def _sides(
    tensors: Mapping[str, Tensor], given: Sequence[int] | None, arguments: Mapping[str, Any], source: str
) -> tuple[int, ...]:
    """The given sides; else by the scale of each position, which the public code stores; else by the number of scales."""
    scales, places = arguments["scales"], arguments["places"]
    stored = tuple(math.isqrt(n) for n in tensors["lvl_1L"].flatten().long().bincount().tolist()) if "lvl_1L" in tensors else None
    if given is not None and stored not in (None, tuple(given)):
        raise ValueError(f"sides {tuple(given)} were given, but {source} stores grids of sides {stored}")
    if given is not None:
        sides = tuple(given)
    elif stored is not None:
        sides = stored
    elif scales in PUBLISHED:
        sides = PUBLISHED[scales]
    else:
        raise ValueError(f"{source} has {scales} scales, the published models have {sorted(PUBLISHED)}; give sides")
    if len(sides) != scales:
        raise ValueError(f"{source} has {scales} scales, but sides {sides} are {len(sides)}")
    tokens = sum(side * side for side in sides)
    if places not in (0, tokens):
        raise ValueError(f"{source} has {places} positions, but sides {sides} make {tokens} tokens")
    return sides
