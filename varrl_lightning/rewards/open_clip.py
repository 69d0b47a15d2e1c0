"""Reads a CLIP model in open_clip's layout, as HPSv2 is published in, into transformers' CLIPModel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from varrl_lightning.weights.loading import read_tensors
from varrl_lightning.weights.renaming import frozen_model, renamed
from varrl_lightning.weights.sizes import numbered

VISION, TEXT = "visual.transformer.resblocks.", "transformer.resblocks."
"""What the names of the image encoder's and the text encoder's layers begin with."""
VISION_HEAD, TEXT_HEAD = 80, 64
"""Widths of a head in ViT-H-14."""
_ALONE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight",
}
_NORMS = {
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "ln_final": "text_model.final_layer_norm",
}
_OF_A_LAYER = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TRANSPOSED = ("visual.proj", "text_projection")


def read_open_clip(path: str | Path, dtype: str, vision_heads: int | None = None, text_heads: int | None = None) -> nn.Module:
    """A frozen CLIPModel from a file of open_clip's layout: a ViT with GELU. All sizes but the heads' are the tensors'.

    Args:
        path: see `read_tensors`.
        dtype: of the weights, `float32`, `bfloat16` or `float16`.
        vision_heads: of the image encoder; a head for each 80 channels when None, as in ViT-H-14.
        text_heads: of the text encoder; a head for each 64 channels when None.

    Raises:
        FileNotFoundError: when there is no such file, here or on the hub.
        ValueError: when a tensor is missing, unexpected or misshaped, or the width is not a multiple of the heads; says which.
    """
    from transformers import CLIPConfig, CLIPModel

    tensors = read_tensors(path, nested=("state_dict",), marks=("visual.conv1.weight", "token_embedding.weight"))
    names = _names(numbered(tensors, VISION), numbered(tensors, TEXT))
    own = renamed(tensors, names, str(path), "CLIP model in open_clip's layout", _TRANSPOSED)
    config = CLIPConfig(
        vision_config=_vision(own, str(path), vision_heads),
        text_config=_text(own, str(path), text_heads),
        projection_dim=own["visual_projection.weight"].shape[0],
    )
    return frozen_model(CLIPModel, config, own, str(path), dtype)


def _names(vision_layers: int, text_layers: int) -> dict[str, tuple[str, ...]]:
    names: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _ALONE.items()}
    names |= {f"{theirs}.{kind}": (f"{ours}.{kind}",) for theirs, ours in _NORMS.items() for kind in ("weight", "bias")}
    for prefix, tower, layers in ((VISION, "vision_model", vision_layers), (TEXT, "text_model", text_layers)):
        for number in range(max(layers, 1)):  # without any layer, those of the first are missing
            theirs, ours = f"{prefix}{number}", f"{tower}.encoder.layers.{number}"
            for kind in ("weight", "bias"):
                names |= {f"{theirs}.{a}.{kind}": (f"{ours}.{b}.{kind}",) for a, b in _OF_A_LAYER.items()}
                names[f"{theirs}.attn.in_proj_{kind}"] = tuple(f"{ours}.self_attn.{x}_proj.{kind}" for x in "qkv")
    return names


def _vision(own: Mapping[str, Tensor], source: str, heads: int | None) -> dict[str, Any]:
    patch = own["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    places = own["vision_model.embeddings.position_embedding.weight"].shape[0]
    side = math.isqrt(places - 1)
    if side**2 != places - 1:
        raise ValueError(f"{source} has {places} positions of images; expected a square and one")
    return _sizes(own, "vision_model", source, heads, VISION_HEAD) | {"patch_size": patch, "image_size": patch * side}


def _text(own: Mapping[str, Tensor], source: str, heads: int | None) -> dict[str, Any]:
    length = own["text_model.embeddings.position_embedding.weight"].shape[0]
    vocabulary = own["text_model.embeddings.token_embedding.weight"].shape[0]
    # 2 asks for the features at the highest id, which is that of the end of a text; no id of a vocabulary that is read here.
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    sizes = _sizes(own, "text_model", source, heads, TEXT_HEAD)
    return sizes | ids | {"max_position_embeddings": length, "vocab_size": vocabulary}


def _sizes(own: Mapping[str, Tensor], tower: str, source: str, heads: int | None, head_width: int) -> dict[str, Any]:
    hidden, width = own[f"{tower}.encoder.layers.0.mlp.fc1.weight"].shape
    heads = heads or max(width // head_width, 1)
    if width % heads:
        raise ValueError(f"{source}: the width {width} of its {tower} is no multiple of {heads} heads; give the number of heads")
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": numbered(own, f"{tower}.encoder.layers."),
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }
