"""Parts that the transformers of several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from varrl_lightning.policies.cache import LayerCache, appended

T = TypeVar("T")


def scalewise_attention(
    q: Float[Tensor, "R heads n d"],
    k: Float[Tensor, "R heads n d"],
    v: Float[Tensor, "R heads n d"],
    lengths: Sequence[int],
    past: LayerCache | None = None,
    scale: float | None = None,
    across: bool = True,
) -> tuple[Float[Tensor, "R heads n d"], LayerCache]:
    """Attention of consecutive scales: full within a scale, causal across scales.

    One call of scaled dot-product attention per scale, on the keys that it may see and so without a mask: no L x L matrix exists,
    the fast kernels apply, and the sampler, which asks for one scale at a time, computes exactly what teacher forcing computes.

    Args:
        lengths: tokens of each of the scales; they sum to n.
        past: keys and values of earlier positions; all scales see them.
        scale: of the logits of attention; 1 / sqrt(d) when None.
        across: False when a scale sees neither the other scales nor a past.

    Returns:
        the attended features, and the keys and values of past and scales together.
    """
    (k, v), kept = appended(past, k, v)
    before = k.shape[2] - q.shape[2]
    attended, first = [], 0
    for length in lengths:
        last = first + length
        seen = slice(0 if across else before + first, before + last)
        attended.append(F.scaled_dot_product_attention(q[:, :, first:last], k[:, :, seen], v[:, :, seen], scale=scale))
        first = last
    return torch.cat(attended, dim=2), kept


def rotate(
    x: Float[Tensor, "R heads n d"], cos: Float[Tensor, "n half"], sin: Float[Tensor, "n half"]
) -> Float[Tensor, "R heads n d"]:
    """Rotary position embedding: the j-th pair of neighbouring features is turned by the j-th angle, in fp32.

    (x_2j, x_2j+1)  ->  (cos_j x_2j - sin_j x_2j+1, sin_j x_2j + cos_j x_2j+1)
    """
    with torch.autocast(x.device.type, enabled=False):
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((cos * even - sin * odd, sin * even + cos * odd), dim=-1)
        return turned.flatten(-2).to(x.dtype)


def checkpointed(block: Callable[..., T], *args: object, enabled: bool) -> T:
    """Run a block; with `enabled`, recompute its activations in the backward pass."""
    if enabled and torch.is_grad_enabled():
        recomputed: T = checkpoint(block, *args, use_reentrant=False)
        return recomputed
    return block(*args)


def outside_autocast(linear: nn.Module, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Apply a linear layer in the dtype of its weights, even under autocast: for logits, and for the modulation of layers."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = linear(x.to(weight.dtype))
        return y


class FeedForward(nn.Module):
    """Two linear layers with GELU, by its tanh formula, between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "R n d"]) -> Float[Tensor, "R n d"]:
        """Apply both layers at every position."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y
