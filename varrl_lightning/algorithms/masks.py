"""Mask Propagation (section 3.5): from the pixels that decided the reward to the tokens of every scale.

Cells are fractions of the image: cell i of h covers (i/h, (i+1)/h). Two cells meet when they overlap with positive
area, decided in integers, so that 13 cells over 16 are exact. The image's size in pixels is free.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from varrl_lightning.schedule import Schedule

Missing = Literal["group_union", "union_always", "ones"]
"""What a branch without regions takes as its mask; see `fill_missing`."""


def unite_over_continuations(masks: Float[Tensor, "N H W"], K: int, threshold: float = 0.5) -> Bool[Tensor, "R H W"]:
    """Return the pixel mask of each branch: where any of its K images is above the threshold.

    Args:
        masks: rows in (P, A, K) order, values in [0, 1].
        threshold: in [0, 1).

    Raises:
        ValueError: when K does not divide the rows or the threshold is out of range.

    Examples:
        One branch with two continuations, whose masks have two pixels each:

        >>> masks = torch.tensor([[[0.9, 0.0]], [[0.0, 0.4]]])
        >>> unite_over_continuations(masks, K=2)
        tensor([[[ True, False]]])
        >>> unite_over_continuations(masks, K=2, threshold=0.3)
        tensor([[[True, True]]])
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    if K < 1 or masks.shape[0] % K:
        raise ValueError(f"K must be at least 1 and divide the {masks.shape[0]} masks, got {K}")
    return (masks > threshold).view(-1, K, *masks.shape[1:]).any(dim=1)


def fill_missing(
    mask: Bool[Tensor, "P A *cells"],
    has_regions: Bool[Tensor, "P A"],
    missing: Missing = "group_union",
) -> Bool[Tensor, "P A *cells"]:
    """Give a mask to the branches whose images did not show all regions.

    group_union: a branch without any takes the union of its group's masks. union_always: every branch takes it, since a word that
    was not found has no box in the branch that failed to write it, and its tokens would get no gradient there. Both are all ones
    where the group has no region. ones: all ones for a branch without any.

    Examples:
        >>> mask, has_regions = torch.tensor([[[True, False], [False, False]]]), torch.tensor([[True, False]])
        >>> fill_missing(mask, has_regions)
        tensor([[[ True, False],
                 [ True, False]]])
        >>> fill_missing(mask, has_regions, "ones")
        tensor([[[ True, False],
                 [ True,  True]]])

        Two words, of which each branch shows another one:

        >>> fill_missing(torch.eye(2, dtype=torch.bool)[None], torch.tensor([[True, True]]), "union_always")
        tensor([[[True, True],
                 [True, True]]])
    """
    ones = torch.ones_like(mask)
    has = has_regions.reshape(*has_regions.shape, *[1] * (mask.dim() - 2))
    if missing == "ones":
        substitute = ones
    else:
        union = (mask & has).any(dim=1, keepdim=True)
        substitute = torch.where(has.any(dim=1, keepdim=True), union, ones)
    if missing == "union_always":
        return substitute.expand_as(mask)
    return torch.where(has, mask, substitute)


def propagate(
    mask: Bool[Tensor, "R H W"] | Float[Tensor, "R H W"],
    schedule: Schedule,
    start: int,
    stop: int,
    method: Literal["chained", "direct"] = "chained",
    *,
    outside: float = 0.0,
    dilation: int = 0,
) -> Float[Tensor, "R L"]:
    """Compute the weight of each token of scales `[start, stop)` from a pixel mask (section 3.5).

    direct: a token is on if its cell meets an on pixel. chained: the same at the last scale; at every coarser one a token is on if
    its cell meets an on cell of the next finer scale, which widens the mask wherever the finer grid is no multiple of the coarser.
    A mask of fractions carries its maximum instead of on and off.

    Args:
        mask: of the finished image, any size, values in [0, 1].
        outside: weight of tokens that are off, in [0, 1].
        dilation: pixels by which the mask grows on each side (a square) beforehand.

    Raises:
        ValueError: when an argument is out of range; the message names it.

    Examples:
        The third of six pixels is on. It lies in the left one of two tokens and in the middle one of three. This middle one meets
        both of the two, so that the chain turns on the right one, too:

        >>> schedule = Schedule(((1, 1), (1, 2), (1, 3)))
        >>> mask = torch.tensor([[[False, False, True, False, False, False]]])
        >>> direct, chained = (propagate(mask, schedule, 0, 3, method) for method in ("direct", "chained"))
        >>> [scale.tolist() for scale in direct[0].split(schedule.lengths)]
        [[1.0], [1.0, 0.0], [0.0, 1.0, 0.0]]
        >>> [scale.tolist() for scale in chained[0].split(schedule.lengths)]
        [[1.0], [1.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if not 0 <= start < stop <= len(schedule):
        raise ValueError(f"scales must satisfy 0 <= start < stop <= {len(schedule)}, got [{start}, {stop})")
    if not 0 <= outside <= 1:
        raise ValueError(f"outside must be in [0, 1], got {outside}")
    if dilation < 0:
        raise ValueError(f"dilation must be >= 0 pixels, got {dilation}")
    if method == "direct":
        scales = [_cover(mask, grid, dilation) for grid in schedule.grids[start:stop]]
    else:
        # The chain begins at the last scale, also when only coarse ones are asked for.
        scales = [_cover(mask, schedule.grids[-1], dilation)]
        for grid in schedule.grids[-2::-1][: len(schedule) - 1 - start]:
            scales.insert(0, _cover(scales[0], grid))
        scales = scales[: stop - start]
    weights = torch.cat([scale.flatten(1) for scale in scales], dim=1).float()
    return outside + (1 - outside) * weights


def _cover(fine: Shaped[Tensor, "R Hf Wf"], grid: tuple[int, int], dilation: int = 0) -> Shaped[Tensor, "R h w"]:
    """Return the maximum of the fine cells that each cell of `grid` meets, rows first, then columns.

    To reach `dilation` fine cells further on each side is the same as to dilate the fine mask by a square.
    """
    for dim, cells in ((1, grid[0]), (2, grid[1])):
        size = fine.shape[dim]
        # Fine cell j meets cell i of n iff i/n < (j+1)/size and j/size < (i+1)/n.
        bounds = [(i * size // cells - dilation, -(-(i + 1) * size // cells) + dilation) for i in range(cells)]
        parts = [fine.narrow(dim, max(lo, 0), min(hi, size) - max(lo, 0)).amax(dim) for lo, hi in bounds]
        fine = torch.stack(parts, dim=dim)
    return fine
