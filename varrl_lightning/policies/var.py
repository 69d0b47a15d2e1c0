"""VAR, the class-conditional generator of ImageNet pictures (arXiv 2404.02905), in the published layout of its weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache, LayerCache
from varrl_lightning.policies.layers import FeedForward, checkpointed, outside_autocast, scalewise_attention
from varrl_lightning.policies.published_names import warn_of_contradictions
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import VAR_256, VAR_512, Schedule, square
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import dtype_named, numbered, require

IMAGENET = Path(__file__).parent.parent / "assets" / "imagenet" / "classes.txt"
"""One name a line, in the order of the class ids 0-999."""
MARKS = ("word_embed.weight", "class_emb.weight")
"""Tensors by which a transformer of this family is known among others in a file."""
COMPUTED = ("lvl_1L", "attn_bias_for_masking", "blocks.*.attn.zero_k_bias")
"""Tensors that the public code stores, and that are computed from the sizes."""
EPSILON = 1e-6
MAX_LOG_SCALE = math.log(100)


class Attention(nn.Module):
    """Self-attention: of queries and keys divided by their norms, with a learned scale per head; or plain, at a quarter scale."""

    def __init__(self, width: int, heads: int, normalised: bool) -> None:
        super().__init__()
        self.heads, self.normalised = heads, normalised
        self.mat_qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if normalised:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))

    def forward(
        self, x: Float[Tensor, "R n d"], lengths: Sequence[int], past: LayerCache | None
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """Attend to `past` and, scale by scale, to `x`; return the keys and values of both."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = self.mat_qkv(x)
        q, k, v = (qkv + bias.to(qkv.dtype)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(q.shape[-1])
        if self.normalised:
            scale = 1.0
            q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_LOG_SCALE).exp()
            k = F.normalize(k, dim=-1)
        attended, kept = scalewise_attention(q.to(v.dtype), k.to(v.dtype), v, lengths, past, scale)
        return self.proj(attended.transpose(1, 2).flatten(2)), kept


class Block(nn.Module):
    """A transformer layer whose norms are shifted and scaled, and whose branches are gated, by the condition."""

    def __init__(self, width: int, heads: int, hidden: int, normalised: bool, shared: bool) -> None:
        super().__init__()
        self.attn, self.ffn = Attention(width, heads, normalised), FeedForward(width, hidden)
        self.shared = shared
        if shared:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Float[Tensor, "R n d"], condition: Float[Tensor, "R ..."], lengths: Sequence[int], past: LayerCache | None
    ) -> tuple[Float[Tensor, "R n d"], LayerCache]:
        """Run one layer.

        Args:
            condition: (R, d), or (R, 1, 6, d) where one projection of it serves all layers.
        """
        six = self.ada_gss + condition if self.shared else self.ada_lin(condition).unflatten(-1, (1, 6, -1))
        gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
        attended, kept = self.attn(modulated(x, scale1, shift1), lengths, past)
        x = x + attended * gate1
        return x + self.ffn(modulated(x, scale2, shift2)) * gate2, kept


class BeforeHead(nn.Module):
    """The last norm, shifted and scaled by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "R n d"], condition: Float[Tensor, "R d"]) -> Float[Tensor, "R n d"]:
        """Features, ready for the head."""
        scale, shift = self.ada_lin(condition).unflatten(-1, (1, 2, -1)).unbind(2)
        return modulated(x, scale, shift)


class VARTransformer(nn.Module):
    """All that trains of VAR; names of parameters are the published ones.

    Args:
        vocab_size: entries of the codebook.
        channels: of the tokenizer's latent.
        width, depth, heads, hidden: of the transformer.
        classes: without the one that stands for no class.
        sides: side of each scale's grid, in tokens.
        normalised: see `Attention`.
        shared: one projection of the condition for all layers, as in VAR-d36.
        gradient_checkpointing: recompute the activations of a layer in the backward pass.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        channels: int = 32,
        width: int = 1024,
        depth: int = 16,
        heads: int = 16,
        hidden: int = 4096,
        classes: int = 1000,
        sides: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
        normalised: bool = True,
        shared: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = gradient_checkpointing
        self.word_embed, self.class_emb = nn.Linear(channels, width), nn.Embedding(classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, sides[0] ** 2, width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, sum(s * s for s in sides), width))
        self.lvl_embed = nn.Embedding(len(sides), width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width)) if shared else None
        self.blocks = nn.ModuleList([Block(width, heads, hidden, normalised, shared) for _ in range(depth)])
        self.head_nm, self.head = BeforeHead(width), nn.Linear(width, vocab_size)

    def embed(
        self, seen: Float[Tensor, "R n C"], condition: Float[Tensor, "R d"], t: int, schedule: Schedule
    ) -> Float[Tensor, "R n d"]:
        """The inputs of the first layer at scale t: the condition itself at scale 0, later the latent so far."""
        first = condition.unsqueeze(1) + self.pos_start if t == 0 else self.word_embed(seen.to(self.pos_start.dtype))
        begin, end = schedule.offsets[t : t + 2]
        embedded: Tensor = first + self.lvl_embed.weight[t] + self.pos_1LC[:, begin:end]
        return embedded

    def run(self, x: Float[Tensor, "R n d"], lengths: Sequence[int], cache: Cache) -> tuple[Float[Tensor, "R n d"], Cache]:
        """Run all layers and the last norm; positions see the cache, all earlier scales and their own scale."""
        assert cache.condition is not None
        modulation = cache.condition
        if self.shared_ada_lin is not None:
            modulation = self.shared_ada_lin(modulation).unflatten(-1, (1, 6, -1))
        layers = []
        for i, block in enumerate(self.blocks):
            past = cache.layers[i] if cache.layers else None
            x, kept = checkpointed(block, x, modulation, lengths, past, enabled=self.gradient_checkpointing)
            layers.append(kept)
        return self.head_nm(x, cache.condition), Cache(layers, condition=cache.condition)


class ImageNetVARPolicy(VARPolicy):
    """VAR as a policy: a prompt names one of ImageNet's 1000 classes, by `label` or by its name as the text.

    Left out, since they are no part of a policy: the soft Gumbel embedding of the demo (`more_smooth`), which samples no tokens,
    and dropout of conditions and of layers, which the public forward pass applies to conditions even in evaluation.

    Args:
        transformer: all that trains.
        tokenizer: the frozen VQ-VAE.
        sides: side of each scale's grid, in tokens.
        class_names: of the class ids 0, 1, ...
    """

    transformer: VARTransformer
    tokenizer: VQVAE
    guidance = "ramp"
    default_sampling = Sampling(cfg=4.0, top_k=900, top_p=0.95)

    def __init__(
        self, transformer: VARTransformer, tokenizer: VQVAE, sides: Sequence[int], class_names: Sequence[str] | None = None
    ) -> None:
        super().__init__(transformer, {"tokenizer": tokenizer})
        self.vocab_size = tokenizer.vocab_size
        self._schedule = square(tuple(sides), tokenizer.stride)
        names = IMAGENET.read_text().splitlines() if class_names is None else class_names
        self.class_names = [name.strip() for name in names]

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        tokenizer: str | Path | VQVAE,
        *,
        num_heads: int | None = None,
        sides: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        dtype: str = "float32",
        gradient_checkpointing: bool = False,
    ) -> ImageNetVARPolicy:
        """Load `var_d16.pth` to `var_d36.pth`, or any file of their layout, and the VQ-VAE `vae_ch160v4096z32.pth`.

        Sizes are read from the tensors.

        Args:
            path: a file, a folder or a hub id.
            tokenizer: likewise, or a tokenizer.
            num_heads: no tensor has it where attention is not normalised; width / 64 when None, as in all published models.
            sides: of the grids, in tokens; from the stored `lvl_1L` or the number of positions when None.
            class_names: other names for the class ids than ImageNet's.
            dtype: of the transformer's weights: `float32`, `bfloat16` or `float16`.
            gradient_checkpointing: recompute the activations of a layer in the backward pass.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped (the message lists them), or do not fit the tokenizer.
        """
        warn_of_contradictions("ImageNetVARPolicy", path, tokenizer, sides=sides)
        weights = dtype_named(dtype)
        tensors = read_tensors(path, marks=MARKS)
        vae = tokenizer if isinstance(tokenizer, VQVAE) else VQVAE.from_pretrained(tokenizer)
        sizes = _sizes(tensors, str(path), num_heads)
        sides = tuple(sides or _sides(tensors, str(path)))
        with torch.device("meta"):
            transformer = VARTransformer(**sizes, sides=sides, gradient_checkpointing=gradient_checkpointing)  # type: ignore[arg-type]
        load_strictly(transformer, tensors, source=str(path), ignore=COMPUTED, dtype=weights)
        _check_codes(transformer, vae, str(path))
        return cls(transformer, vae, sides, class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.transformer.class_emb.num_embeddings - 1

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The one schedule that these weights have."""
        if size not in (None, self._schedule.image_size):
            raise ValueError(f"this VAR generates pictures of {self._schedule.image_size} pixels only, got {size}")
        return self._schedule

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Class ids; the unconditional half has the id after the last class.

        Raises:
            ValueError: for a prompt without a label whose text is no class name, or a label out of range.
        """
        for prompt in prompts:
            self.schedule(prompt.size)
        labels = torch.tensor([self._label(prompt) for prompt in prompts], device=self.device)
        return Cond(self._schedule, {"label": labels}, {"label": torch.full_like(labels, self.num_classes)})

    def _label(self, prompt: Prompt) -> int:
        if prompt.label is not None:
            if 0 <= prompt.label < self.num_classes:
                return prompt.label
            raise ValueError(f"prompt {prompt.id!r}: label must be in [0, {self.num_classes}), got {prompt.label}")
        text, names = prompt.text.strip(), self.class_names[: self.num_classes]
        if text in names:
            return names.index(text)
        alike = [label for label, name in enumerate(names) if name.lower() == text.lower()]
        if len(alike) == 1:
            return alike[0]
        close = difflib.get_close_matches(text.lower(), [name.lower() for name in names], n=3)
        hint = f". Did you mean {' or '.join(map(repr, close))}?" if close else ""
        if alike:
            hint = ". That is the name of " + " and ".join(f"{label} ({names[label]!r})" for label in alike)
        raise ValueError(
            f"prompt {prompt.id!r}: VAR generates classes; give a `label` in [0, {self.num_classes}), or a class name as the text, "
            f"got {prompt.text!r}{hint}"
        )

    def start_cache(self, inputs: dict[str, Int[Tensor, " R"]], schedule: Schedule) -> Cache:
        """The embedding of the class."""
        return Cache([], condition=self.transformer.class_emb(inputs["label"]))

    def scale_features(
        self,
        inputs: dict[str, Tensor],
        cache: Cache,
        latents: list[Tensor],
        first: int,
        schedule: Schedule,
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of consecutive scales, whose positions see all coarser scales and each other."""
        assert cache.condition is not None
        scales = range(first, first + len(latents))
        seen = [self.tokenizer.next_input(latent, t, schedule) for t, latent in zip(scales, latents, strict=True)]
        parts = [self.transformer.embed(x, cache.condition, t, schedule) for t, x in zip(scales, seen, strict=True)]
        lengths = schedule.lengths[first : scales.stop]
        features, cache = self.transformer.run(torch.cat(parts, dim=1), lengths, cache)
        return list(features.split(lengths, dim=1)), cache

    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits over the codebook."""
        return outside_autocast(self.transformer.head, features)

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors with the buffers that the public code's strict loading expects."""
        lengths = torch.tensor(self._schedule.lengths)
        level = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
        ahead = level[0][:, None] < level[0][None, :]
        biases = {name: x for name, x in tensors.items() if name.endswith(".q_bias")}
        zeros = {name.replace("q_bias", "zero_k_bias"): torch.zeros_like(x) for name, x in biases.items()}
        bias = torch.zeros(ahead.shape).masked_fill(ahead, -math.inf)[None, None]
        return {**tensors, "lvl_1L": level, "attn_bias_for_masking": bias, **zeros}


def modulated(x: Float[Tensor, "R n d"], scale: Float[Tensor, "R 1 d"], shift: Float[Tensor, "R 1 d"]) -> Float[Tensor, "R n d"]:
    """norm(x) (1 + scale) + shift, with a norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=EPSILON) * (1 + scale) + shift


def _check_codes(transformer: VARTransformer, vae: VQVAE, source: str) -> None:
    trained, given = (transformer.head.out_features, transformer.word_embed.in_features), (vae.vocab_size, vae.channels)
    if trained != given:
        raise ValueError(
            f"{source} was trained on {trained[0]} codes of {trained[1]} channels, but the tokenizer has {given[0]} of {given[1]}"
        )


def _sizes(tensors: Mapping[str, Tensor], source: str, num_heads: int | None) -> dict[str, object]:
    matrices = ("head.weight", "word_embed.weight", "class_emb.weight", "blocks.0.ffn.fc1.weight", "lvl_embed.weight")
    dims = dict.fromkeys(matrices, 2) | {"pos_1LC": 3} | ({"lvl_1L": 2} if "lvl_1L" in tensors else {})
    require(tensors, source, "transformer of VAR's layout", dims)
    vocab_size, width = tensors["head.weight"].shape
    scales = tensors.get("blocks.0.attn.scale_mul_1H11")
    heads = width // 64 if scales is None else scales.numel()
    if num_heads is not None and scales is not None and num_heads != heads:
        raise ValueError(f"num_heads is {num_heads}, but {source} has {heads} heads")
    heads = num_heads or heads
    if heads < 1 or width % heads:
        raise ValueError(f"num_heads must divide the width {width}, got {heads}; give the number that {source} was trained with")
    return {
        "vocab_size": vocab_size,
        "channels": tensors["word_embed.weight"].shape[1],
        "width": width,
        "depth": numbered(tensors, "blocks."),
        "heads": heads,
        "hidden": tensors["blocks.0.ffn.fc1.weight"].shape[0],
        "classes": tensors["class_emb.weight"].shape[0] - 1,
        "normalised": scales is not None,
        "shared": "shared_ada_lin.1.weight" in tensors,
    }


def _sides(tensors: Mapping[str, Tensor], source: str) -> tuple[int, ...]:
    """Sides of the grids: from the scale of each position, which the public code stores, else from the number of positions."""
    if "lvl_1L" in tensors:
        levels = tensors["lvl_1L"][0].tolist()
        starts = [i for i, level in enumerate(levels) if i == 0 or levels[i - 1] != level]
        return tuple(math.isqrt(end - start) for start, end in pairwise([*starts, len(levels)]))
    positions = tensors["pos_1LC"].shape[1] if "pos_1LC" in tensors else 0
    for known in (VAR_256, VAR_512):
        if known.offsets[-1] == positions:
            return tuple(side for side, _ in known.grids)
    raise ValueError(
        f"{source} has {positions} positions, which fits no published VAR; give `sides`, the side of each scale's grid"
    )
