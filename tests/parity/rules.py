"""What the parity tests and the scripts that made their data have to agree on: the weights, the pictures, and what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from parity.seeded import seeded
from torch import Tensor

TRANSFORMER, TOKENIZER = 1, 2
"""Seeds of the two halves of a model."""
COMPUTED = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV", "position_ids")
"""Tensors in a published file that the code computes; their values are no weights."""
WINDOW = slice(30, 62)
"""Rows and columns of an image that are kept: norms and attention make each pixel depend on all of them."""
KEPT_ENTRIES = 128


def tamed(name: str, tensor: Tensor) -> Tensor:
    """The seeded tensor, rescaled where the plain rule would not exercise the formula.

    VAR's log-scale of l2-normalised attention is clamped at log 100; `1.4 + 8 x` puts some heads on either side of it.
    """
    return 1.4 + 8 * tensor if name.endswith("scale_mul_1H11") else tensor


def is_computed(name: str) -> bool:
    """Whether the public code computes this tensor of a published file."""
    return name.rpartition(".")[-1] in COMPUTED


def layout(state: Mapping[str, Tensor], factors: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What has to be kept of a public state dict so that `weights` makes it again.

    Args:
        factors: by patterns of names; the first that fits a name multiplies its tensor.
    """
    return {
        "shapes": {name: tuple(tensor.shape) for name, tensor in state.items() if not is_computed(name)},
        "computed": {name: tensor.clone() for name, tensor in state.items() if is_computed(name)},
        "factors": dict(factors or {}),
    }


def weights(layout: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """The tensors of a published file."""
    tensors = {name: tensor.clone() for name, tensor in layout["computed"].items()}
    for name, shape in layout["shapes"].items():
        factor = next((x for pattern, x in layout.get("factors", {}).items() if fnmatchcase(name, pattern)), 1.0)
        tensors[name] = factor * tamed(name, seeded(name, shape, seed))
    return tensors


def picture(rows: int, side: int) -> Tensor:
    """A noise image (rows, 3, side, side) in [0, 1]."""
    return (0.5 + seeded("picture", (rows, 3, side, side))).clamp(0, 1)


def window(images: Tensor) -> Tensor:
    """The part of images that is kept."""
    return images[..., WINDOW, WINDOW].clone()


def abridged(gradient: Tensor) -> dict[str, Any]:
    """A gradient's norm and at least `KEPT_ENTRIES` evenly spaced entries, or all where there are fewer."""
    flat = gradient.detach().flatten()
    return {"entries": flat[:: max(1, len(flat) // KEPT_ENTRIES)].clone(), "norm": flat.norm().item()}


def log_probs_of(logits: Tensor, tokens: list[Tensor]) -> Tensor:
    """Log-probability (rows, L) of each token under logits (rows, L, V)."""
    return logits.log_softmax(dim=-1).gather(-1, torch.cat(tokens, dim=1)[..., None])[..., 0]


def ramped(cond: Tensor, uncond: Tensor, cfg: tuple[float, ...], sides: tuple[int, ...]) -> Tensor:
    """Guided logits (rows, L, V) of all scales; `cfg` at each scale."""
    last = len(sides) - 1
    t = torch.cat([torch.full((n * n,), strength * si / last) for si, (n, strength) in enumerate(zip(sides, cfg, strict=True))])
    return (1 + t[:, None]) * cond - t[:, None] * uncond


def encoded(text: str) -> dict[str, Tensor]:
    """Stand-ins for the features that CLIP-L and CLIP-bigG give a text: text (77, 2048), pooled (1280,), mask (77,)."""
    return {
        "text": seeded(f"{text}/text", (77, 2048)) / 0.3,
        "pooled": seeded(f"{text}/pooled", (1280,)) / 0.3,
        "mask": torch.arange(77) < 2 + len(text),
    }
