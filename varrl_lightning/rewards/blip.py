"""Reads ImageReward's file, a BLIP with a head of linear layers, into the BLIP models of transformers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from varrl_lightning.weights.loading import read_tensors
from varrl_lightning.weights.renaming import frozen_model, renamed
from varrl_lightning.weights.sizes import numbered

VISION, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
"""What the names of the three parts begin with."""
HEAD_LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the head's linear layers; between them it has dropout alone."""
HEAD_WIDTH = 64
"""Channels of an attention head, in BLIP's ViT-B, ViT-L and text encoder."""
UNUSED = ("blip.vision_proj.weight", "blip.vision_proj.bias", "blip.text_proj.weight", "blip.text_proj.bias")
"""BLIP's contrastive projections, which no score passes through."""
COUNTED = f"{TEXT}embeddings.position_ids"
"""0, 1, 2, ...: older files have it."""
_KINDS = ("weight", "bias")
_VISION = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}
_OF_A_BLOCK = {
    "norm1": "layer_norm1",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ATTENTION = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
_OF_A_LAYER = (
    *(f"{kind}.{part}" for kind in ("attention", "crossattention") for part in _ATTENTION),
    *("intermediate.dense", "output.dense", "output.LayerNorm"),
)


class BLIPParts(NamedTuple):
    """The parts of ImageReward.

    Args:
        vision: a BlipVisionModel.
        text: a BlipTextModel that attends to the image's features.
        head: weights and biases of linear layers, in float32.
    """

    vision: Any
    text: Any
    head: list[tuple[Tensor, Tensor]]


def read_blip(path: str | Path, dtype: str) -> BLIPParts:
    """The frozen parts of ImageReward from its published file; all sizes are the tensors', with heads of 64 channels.

    Args:
        path: see `read_tensors`.
        dtype: of BLIP's weights, `float32`, `bfloat16` or `float16`; the head is in float32.

    Raises:
        FileNotFoundError: when there is no such file, here or on the hub.
        ValueError: when a tensor is missing, unexpected or misshaped; says which.
    """
    from transformers import BlipTextModel, BlipVisionModel

    source, tensors = str(path), read_tensors(path, marks=(f"{VISION}cls_token", f"{HEAD}0.weight"))
    used = {name: x for name, x in tensors.items() if name not in (*UNUSED, COUNTED)}
    names = _names(numbered(used, f"{VISION}blocks."), numbered(used, f"{TEXT}encoder.layer."))
    own = renamed(used, names, source, "file of ImageReward")
    vision, text, head = ({x[len(part) :]: own[x] for x in own if x.startswith(part)} for part in ("vision.", "text.", "head."))
    without_pooler: Any = partial(BlipTextModel, add_pooling_layer=False)
    return BLIPParts(
        frozen_model(BlipVisionModel, _vision_config(vision, source), vision, source, dtype),
        frozen_model(without_pooler, _text_config(text), text, source, dtype),
        _head(head, source, text["embeddings.LayerNorm.weight"].shape[0]),
    )


def _names(blocks: int, layers: int) -> dict[str, tuple[str]]:
    ours = {f"{VISION}cls_token": "vision.embeddings.class_embedding", f"{VISION}pos_embed": "vision.embeddings.position_embedding"}
    ours |= {f"{TEXT}embeddings.{x}": f"text.embeddings.{x}" for x in ("word_embeddings.weight", "position_embeddings.weight")}
    pairs = {f"{VISION}{a}": f"vision.{b}" for a, b in _VISION.items()}
    pairs |= {f"{TEXT}embeddings.LayerNorm": "text.embeddings.LayerNorm"}
    for i in range(max(blocks, 1)):  # without any block, those of the first are missing
        pairs |= {f"{VISION}blocks.{i}.{a}": f"vision.encoder.layers.{i}.{b}" for a, b in _OF_A_BLOCK.items()}
    for i in range(max(layers, 1)):
        pairs |= {f"{TEXT}encoder.layer.{i}.{x}": f"text.encoder.layer.{i}.{x}" for x in _OF_A_LAYER}
    pairs |= {f"{HEAD}{i}": f"head.{i}" for i in HEAD_LAYERS}
    return {a: (b,) for a, b in ours.items()} | {f"{a}.{x}": (f"{b}.{x}",) for a, b in pairs.items() for x in _KINDS}


def _vision_config(tensors: Mapping[str, Tensor], source: str) -> Any:
    from transformers import BlipVisionConfig

    hidden, width = tensors["encoder.layers.0.mlp.fc1.weight"].shape
    patch, places = tensors["embeddings.patch_embedding.weight"].shape[-1], tensors["embeddings.position_embedding"].shape[-2]
    side = math.isqrt(places - 1)
    if side**2 != places - 1:
        raise ValueError(f"{source} has {places} positions of images; expected a square and one")
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=numbered(tensors, "encoder.layers."),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(tensors: Mapping[str, Tensor]) -> Any:
    from transformers import BlipTextConfig

    hidden, width = tensors["encoder.layer.0.intermediate.dense.weight"].shape
    rows, places = (tensors[f"embeddings.{x}_embeddings.weight"].shape[0] for x in ("word", "position"))
    return BlipTextConfig(
        vocab_size=rows,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=hidden,
        num_hidden_layers=numbered(tensors, "encoder.layer."),
        num_attention_heads=max(width // HEAD_WIDTH, 1),
        max_position_embeddings=places,
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives the layers that attend to the image; a call still reads the text in both directions
        bos_token_id=0,  # this and the next ones are of no use here, and have to be in the vocabulary
        eos_token_id=0,
        pad_token_id=0,
        sep_token_id=0,
    )


def _head(tensors: Mapping[str, Tensor], source: str, width: int) -> list[tuple[Tensor, Tensor]]:
    layers = [(tensors[f"{i}.weight"].float(), tensors[f"{i}.bias"].float()) for i in HEAD_LAYERS]
    widths = [width, *(len(bias) if bias.dim() else 0 for _, bias in layers)]
    fits = [tuple(weight.shape) == (b, a) for (weight, _), (a, b) in zip(layers, itertools.pairwise(widths), strict=True)]
    if not all(fits) or widths[-1] != 1:
        shapes = ", ".join(f"{HEAD}{i}.weight {list(tensors[f'{i}.weight'].shape)}" for i in HEAD_LAYERS)
        raise ValueError(f"{source}: its head does not lead from {width} features to one number: {shapes}")
    return layers
