"""The scale schedules that Infinity was trained with, and the rotary positions that follow from them."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from varrl_lightning.schedule import Schedule

Grids = tuple[tuple[int, int], ...]

PIXELS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
"""How many of the 13 scales each resolution has."""
_TALL: tuple[Grids, ...] = (
    ((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (12, 12), (16, 16), (20, 20), (24, 24), (32, 32), (40, 40), (48, 48), (64, 64)),
    ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24), (35, 28), (45, 36), (55, 44), (70, 56)),
    ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21), (36, 27), (48, 36), (60, 45), (72, 54)),
    ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22), (39, 26), (48, 32), (63, 42), (78, 52)),
    ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20), (42, 24), (56, 32), (70, 40), (84, 48)),
    ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19), (46, 23), (60, 30), (74, 37), (90, 45)),
    ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16), (50, 20), (65, 26), (80, 32), (100, 40)),
    ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15), (54, 18), (72, 24), (90, 30), (111, 37)),
)
PUBLISHED: tuple[Grids, ...] = _TALL + tuple(tuple((w, h) for h, w in grids) for grids in _TALL[1:])
"""All 13 scales of each aspect ratio: the square, seven tall ones, and the same seven turned to wide ones."""
_BASE, _TABLE = 10000.0, 128


def published_schedule(size: tuple[int, int] | None, pixels: str, stride: int) -> Schedule:
    """The published schedule of an image size.

    Args:
        size: `(height, width)` in pixels; the square of `pixels` when None.
        pixels: `0.06M`, `0.25M`, `0.60M` or `1M`: the resolution in megapixels.
        stride: pixels per token.

    Raises:
        ValueError: for a size that is none of the 60 published ones; lists the nearest.
    """
    if size is None:
        return Schedule(PUBLISHED[0][: PIXELS[pixels]], (stride, stride))
    sizes = {
        (stride * grids[count - 1][0], stride * grids[count - 1][1]): Schedule(grids[:count], (stride, stride))
        for count in PIXELS.values()
        for grids in PUBLISHED
    }
    if size not in sizes:
        near = sorted(sizes, key=lambda s: abs(s[0] - size[0]) + abs(s[1] - size[1]))[:4]
        raise ValueError(
            f"Infinity has no schedule for {size[0]}x{size[1]} pixels (height x width); the nearest are "
            + ", ".join(f"{height}x{width}" for height, width in near)
        )
    return sizes[size]


def last_grid(grids: Grids) -> tuple[int, int]:
    """The 13th grid of the published schedule that `grids` is the beginning of.

    Raises:
        ValueError: when it begins none, or several.
    """
    candidates = {full[-1] for full in PUBLISHED if full[: len(grids)] == grids}
    if len(candidates) != 1:
        known = "of no aspect ratio" if not candidates else f"of {len(candidates)} aspect ratios"
        raise ValueError(
            f"Infinity's positions follow from the aspect ratio, but {grids} is the beginning {known} that it was trained with; "
            "take schedules from `InfinityPolicy.schedule`"
        )
    return candidates.pop()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached tensors must serve training too
def rotary_angles(
    grids: Grids, head_dim: int, normalisation: int, device: torch.device
) -> tuple[Float[Tensor, "L half"], Float[Tensor, "L half"]]:
    """Cosines and sines of all positions of a schedule, scale after scale: the first half of the pairs turns by y, the other by x.

        angle_j(y) = y / 10000^(4 j / head_dim),   j < head_dim / 4,   where the cell (y, x) of scale t is seen
        0: at (y, x);   2: at (round(y H / h_t), round(x W / w_t)), with (H, W) the 13th grid of the aspect ratio;
        1: between: the cosines and sines of a 128-cell map, squeezed to h_t x w_t bilinearly, corner on corner.

    Args:
        normalisation: 0, 1 or 2.

    Raises:
        ValueError: for another one, or a schedule that begins no published one.
    """
    last = last_grid(grids) if normalisation else grids[-1]
    if normalisation == 1:
        # The order of operations is the public code's: int() depends on the last digit.
        extent = [_TABLE if side == max(last) else int(_TABLE / max(last) * side) for side in last]
        table = _waves(torch.arange(extent[0]), torch.arange(extent[1]), head_dim).permute(0, 3, 1, 2)
        maps = [F.interpolate(table, grid, mode="bilinear", align_corners=True).permute(0, 2, 3, 1) for grid in grids]
    elif normalisation in (0, 2):
        stretch = [(last[0] / h, last[1] / w) if normalisation else (1.0, 1.0) for h, w in grids]
        maps = [
            _waves((torch.arange(h).float() * y).round(), (torch.arange(w).float() * x).round(), head_dim)
            for (h, w), (y, x) in zip(grids, stretch, strict=True)
        ]
    else:
        raise ValueError(f"rope_normalisation must be 0, 1 or 2, got {normalisation}")
    cos, sin = torch.cat([x.flatten(1, 2) for x in maps], dim=1).to(device)
    return cos, sin


def _waves(y: Tensor, x: Tensor, head_dim: int) -> Float[Tensor, "2 h w half"]:
    """Cosines and sines at the crossings of rows y and columns x."""
    frequencies = 1.0 / _BASE ** (torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    rows = torch.outer(y.float(), frequencies)[:, None].expand(-1, len(x), -1)
    columns = torch.outer(x.float(), frequencies)[None].expand(len(y), -1, -1)
    angles = torch.cat((rows, columns), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))
