"""A language model that writes an image scale after scale behind its prompt: the kind of model that the paper trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache
from varrl_lightning.policies.language_model import PrefixTransformer, causal, through
from varrl_lightning.policies.state import Cond
from varrl_lightning.policies.visual_language_model import VisualLanguageModel
from varrl_lightning.schedule import NEXTFLOW_1024, Schedule, square
from varrl_lightning.tokenizers.tokenflow_vq import NESTED, TokenFlowVQ
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.weights.files import split_key
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import dtype_named

MARKS = ("boi",)
"""Tensors by which a transformer of this family is known among others in a file."""


class LLMPrefixPolicy(VARPolicy):
    """An image as the continuation of a prompt: text, `<boi>`, then all scales, each written at once.

    The paper describes its base model, NextFlow: the transformer starts from Qwen2.5-VL-7B; it gets a new visual codebook and a
    revised head; after `<boi>` attention is full and generation is VAR's; the scales are those of Table 6; sampling is VAR's, with
    guidance 5, top-k 2 and top-p .9; training has no guidance. Its code and its weights are not published, and no more than that is
    confirmed. Our choices are the connector, the embeddings of scale and place, a learned `<boi>` as the query of the 1x1 scale,
    one-dimensional positions that continue those of the text, and the layout of the weights file. The language part of Qwen2.5-VL
    counts a text alike in all three dimensions of its positions, so that with these weights a Qwen2 model computes the same.

    Rows may have texts of different lengths. They are padded on the left; padding is never seen and does not count as a position.

    Args:
        transformer: all that trains.
        tokenizer: the visual tokenizer, frozen.
        text_encoder: a tokenizer of transformers, or a mapping from texts to their ids; None where no prompt is encoded.
        schedule: all scales of the largest image, as a schedule or as the sides of square grids.
        negative: the text of the unconditional half of guidance, where a prompt has no `negative`.
        max_text_tokens: the longest text.
    """

    transformer: PrefixTransformer
    guidance = "ramp"
    default_sampling = Sampling(cfg=5.0, top_k=2, top_p=0.9)
    text_is_query: bool = False
    """Whether the last text token, in place of `<boi>`, asks for the 1x1 scale."""

    def __init__(
        self,
        transformer: PrefixTransformer,
        tokenizer: nn.Module,
        text_encoder: Any = None,
        schedule: Schedule | Sequence[int] = NEXTFLOW_1024,
        negative: str = "",
        max_text_tokens: int = 512,
    ) -> None:
        super().__init__(transformer, {"tokenizer": tokenizer})
        self.vocab_size = _vocabulary(tokenizer)
        self.text_encoder, self.negative, self.max_text_tokens = text_encoder, negative, max_text_tokens
        self.longest = as_schedule(schedule, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        tokenizer: str | Path | nn.Module,
        text_encoder: Any = None,
        *,
        backbone: Any = None,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        schedule: Schedule | Sequence[int] = NEXTFLOW_1024,
        negative: str = "",
        max_text_tokens: int = 512,
    ) -> LLMPrefixPolicy:
        """Load weights in this package's layout: `backbone.*` with the decoder's names, and the visual parts.

        Args:
            path: a safetensors file, a folder of shards, or a hub id.
            tokenizer: the visual tokenizer, or the file of a `VQVAE` or a `TokenFlowVQ`.
            text_encoder: as in the class, or a folder or hub id of a text tokenizer.
            backbone: config of the language model, or a folder or hub id that has one; `path` itself when None.
            dtype: of all weights.
            gradient_checkpointing: recompute the activations of each layer in the backward pass.
            schedule, negative, max_text_tokens: as in the class.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped (the message lists them), or the config is.
        """
        from transformers import AutoModel

        weights = dtype_named(dtype)
        config = _config(path if backbone is None else backbone)
        tensors, vq = read_tensors(path, marks=MARKS), visual_tokenizer(tokenizer)
        longest = as_schedule(schedule, vq)
        with torch.device("meta"):
            decoder = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
            transformer = VisualLanguageModel(decoder, *_sizes(vq, longest), len(longest), gradient_checkpointing)
        load_strictly(transformer, tensors, str(path), dtype=weights)
        return cls(transformer, vq, text_tokenizer(text_encoder), longest, negative, max_text_tokens)

    @classmethod
    def from_backbone(
        cls,
        backbone: Any,
        tokenizer: str | Path | nn.Module,
        text_encoder: Any = None,
        *,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
        schedule: Schedule | Sequence[int] = NEXTFLOW_1024,
        seed: int = 0,
        negative: str = "",
        max_text_tokens: int = 512,
    ) -> LLMPrefixPolicy:
        """Begin with a plain language model; its visual parts are random, so that it must be pre-trained before use.

        Args:
            backbone: a causal language model of transformers, or the folder or hub id of one.
            tokenizer: as in `from_pretrained`.
            text_encoder: as in `from_pretrained`; None takes the backbone's tokenizer when `backbone` is a folder or hub id.
            dtype, gradient_checkpointing: as in `from_pretrained`.
            seed: of the random visual parts.
            schedule, negative, max_text_tokens: as in the class.

        Raises:
            ValueError: for a backbone of another kind than Llama's and Qwen2's.
        """
        from transformers import AutoModelForCausalLM

        if isinstance(backbone, (str, Path)):
            text_encoder = backbone if text_encoder is None else text_encoder
            backbone = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype_named(dtype))
        vq = visual_tokenizer(tokenizer)
        longest = as_schedule(schedule, vq)
        transformer = VisualLanguageModel(backbone, *_sizes(vq, longest), len(longest), gradient_checkpointing, seed)
        transformer.to(dtype_named(dtype))
        return cls(transformer, vq, text_tokenizer(text_encoder), longest, negative, max_text_tokens)

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The scales of an image size: all, or those up to the one whose grid covers it, as in the paper's Table 6."""
        if size is None:
            return self.longest
        height, width = self.longest.stride
        image_sizes = [(h * height, w * width) for h, w in self.longest.grids]
        if size not in image_sizes:
            raise ValueError(f"no image of {size} pixels ends this model's schedule; it generates {sorted(set(image_sizes))}")
        return Schedule(self.longest.grids[: image_sizes.index(size) + 1], self.longest.stride)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Ids of each prompt and of its negative prompt, padded on the left to one length.

        Raises:
            ValueError: for a text that is too long or, without a text tokenizer, unknown; for prompts of several sizes.
        """
        schedules = {self.schedule(prompt.size) for prompt in prompts}
        if len(schedules) != 1:
            raise ValueError(f"prompts of one call must have one size, got {sorted({str(p.size) for p in prompts})}")
        texts = [p.text for p in prompts]
        negatives = [self.negative if p.negative is None else p.negative for p in prompts]
        ids = {text: self.prefix_ids(text) for text in dict.fromkeys((*texts, *negatives))}
        length = max(len(row) for row in ids.values())
        conditional, unconditional = (self._padded([ids[text] for text in half], length) for half in (texts, negatives))
        return Cond(schedules.pop(), conditional, unconditional)

    def prefix_ids(self, text: str) -> list[int]:
        """Ids of a text with the special tokens of the language model's tokenizer.

        Raises:
            ValueError: when the text has more than `max_text_tokens`, or when its ids are unknown.
        """
        ids = self._known_ids(text)
        if ids is None:
            ids = list(self.text_encoder.encode(text))
        if len(ids) > self.max_text_tokens:
            raise ValueError(
                f"a prompt has {len(ids)} tokens, max_text_tokens is {self.max_text_tokens}; shorten it, or allow more: {text!r}"
            )
        return ids

    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        """Keys and values of the text before the query."""
        ids, mask = self._text(inputs)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        seen = None if bool(mask.all()) else causal(mask)
        return Cache(self.transformer.run(self.transformer.text(ids), positions, seen=seen)[1])

    def scale_features(
        self, inputs: dict[str, Tensor], cache: Cache, latents: list[Tensor], first: int, schedule: Schedule
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of consecutive scales, whose positions see the text, all coarser scales and their own scale."""
        _, mask = self._text(inputs)
        last = first + len(latents)
        x = torch.cat([self._input(inputs, latent, first + i, schedule) for i, latent in enumerate(latents)], dim=1)
        place = torch.arange(schedule.offsets[first], schedule.offsets[last], device=x.device)
        positions = mask.sum(dim=1, keepdim=True) + place
        seen = None
        if not bool(mask.all()):
            visual = mask.new_ones(len(mask), schedule.offsets[last])
            seen = torch.cat((mask, visual), dim=1)[:, None, None]
        lengths = schedule.lengths[first:last]
        features, layers = self.transformer.run(x, positions, cache.layers, seen, lengths)
        return list(features.split(lengths, dim=1)), Cache(layers)

    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits over the visual vocabulary."""
        return self.transformer.logits(features)

    def blocks(self) -> list[nn.Module]:
        """The decoder's layers, each with `through`: a call of it that has keys and values among its inputs and outputs."""
        layers: list[Any] = list(self.transformer.decoder.layers)
        for layer in layers:
            if not hasattr(layer, "through"):
                layer.through = partial(through, layer.forward)
        return layers

    def _input(self, inputs: dict[str, Tensor], latent: Tensor, t: int, schedule: Schedule) -> Float[Tensor, "R n d"]:
        if t == 0:
            ids = inputs["ids"][:, -1] if self.text_is_query else None
            return self.transformer.query(ids, len(latent), schedule)
        return self.transformer.picture(self.tokenizer.next_input(latent, t, schedule), t, schedule)

    def _text(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids and mask of the text before the query."""
        end = inputs["ids"].shape[1] - self.text_is_query
        return inputs["ids"][:, :end], inputs["mask"][:, :end]

    def _padded(self, rows: Sequence[Sequence[int]], length: int) -> dict[str, Tensor]:
        length = max(length, 1 + self.text_is_query)  # attention over zero keys is undefined
        ids = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows], device=self.device)
        mask = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows], device=self.device)
        return {"ids": ids, "mask": mask}

    def _known_ids(self, text: str) -> list[int] | None:
        """Ids from the mapping; None where a tokenizer has to compute them."""
        if not isinstance(self.text_encoder, Mapping):
            if self.text_encoder is not None:
                return None
            raise ValueError(
                f"no text tokenizer was given to make ids of {text[:80]!r}; give text_encoder: a tokenizer of transformers, its "
                "folder or hub id, or a mapping from texts to ids"
            )
        if text not in self.text_encoder:
            raise ValueError(f"text_encoder holds the ids of {len(self.text_encoder)} texts, and not those of {text[:80]!r}")
        return [int(i) for i in self.text_encoder[text]]


def as_schedule(schedule: Schedule | Sequence[int], tokenizer: Any) -> Schedule:
    """A schedule, also of the sides of square grids, at the stride of a visual tokenizer."""
    return schedule if isinstance(schedule, Schedule) else square(schedule, tokenizer.stride)


def visual_tokenizer(source: str | Path | nn.Module) -> nn.Module:
    """A visual tokenizer: the given module, or one read from a file."""
    if isinstance(source, nn.Module):
        return source
    names = read_tensors(source, nested=NESTED, marks=("quantize.embedding*weight",))
    return (TokenFlowVQ if "quantize.embedding_vqgan.weight" in names else VQVAE).from_pretrained(source)


def text_tokenizer(source: Any) -> Any:
    """A text tokenizer of transformers from its folder or hub id; any other object is returned unchanged."""
    if not isinstance(source, (str, Path)):
        return source
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source)


def _config(source: Any) -> Any:
    """The config of a language model: the given one, or one from a folder or hub id."""
    if not isinstance(source, (str, Path)):
        return source
    source = split_key(str(source))[0]
    if Path(source).is_file() and Path(source).suffix != ".json":
        raise ValueError(
            f"{source} is a file and has no config of the backbone; give backbone: a config, or a folder or hub id with one"
        )
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(source)


def _sizes(tokenizer: Any, schedule: Schedule) -> tuple[int, int]:
    """V, and the features per cell, of a visual tokenizer."""
    features = tokenizer.next_input(tokenizer.begin(1, schedule), 0, schedule)
    return _vocabulary(tokenizer), int(features.shape[-1])


def _vocabulary(tokenizer: Any) -> int:
    return int(tokenizer.vocab_size)
