"""Numbers of images that show how a model games a reward: dark or empty pictures, noise, a single colour, one picture for all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types import Box

DARK = 0.25
"""Luma below which a pixel is dark."""
LEVELS = 4
"""Levels of each colour channel in the entropy of colours, of which there are 64 then."""
SIDE = 16
"""Pixels to a side of the small pictures that are compared for diversity."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma (ITU-R BT.601)."""


def image_statistics(images: Float[Tensor, "N 3 H W"]) -> dict[str, Float[Tensor, " N"]]:
    """What each image looks like, whatever it shows.

    Returns:
        `dark`: share of pixels with a luma below 1/4. `edges`: mean absolute difference of neighbours' lumas, in [0, 1].
        `colours`: entropy in bits of the 64 coarse colours, in [0, 6]. `sharpness`: variance of the Laplacian, 0 up.
        `contrast`: standard deviation of the luma, in [0, 1/2].

    Examples:
        A black image, and one that is half black and half white:

        >>> half = torch.zeros(3, 4, 4)
        >>> half[:, :, 2:] = 1.0
        >>> found = image_statistics(torch.stack([torch.zeros(3, 4, 4), half]))
        >>> found["dark"].tolist(), found["colours"].tolist()
        ([1.0, 0.5], [0.0, 1.0])
    """
    images = images.float()
    grey = luma(images)
    across, down = grey.diff(dim=-1).abs(), grey.diff(dim=-2).abs()
    return {
        "dark": (grey < DARK).float().mean(dim=(1, 2)),
        "edges": (across.mean(dim=(1, 2)) + down.mean(dim=(1, 2))) / 2,
        "colours": _colour_entropy(images),
        "sharpness": laplacian_variance(grey),
        "contrast": grey.flatten(1).std(dim=1, correction=0),
    }


def group_diversity(images: Float[Tensor, "P A 3 H W"]) -> Float[Tensor, " P"]:
    """How much the images of a group differ: the mean root mean square difference of all pairs, as small pictures; in [0, 1].

    Examples:
        >>> black, white = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
        >>> group_diversity(torch.stack([torch.stack([black, black, white]), torch.stack([black, black, black])])).tolist()
        [0.6666666865348816, 0.0]
    """
    P, A = images.shape[:2]
    small = F.adaptive_avg_pool2d(images.flatten(0, 1).float(), SIDE).view(P, A, -1)
    distances = torch.stack([(small[:, i] - small[:, j]).square().mean(dim=-1).sqrt() for i in range(A) for j in range(i)])
    return distances.mean(dim=0)


def text_area(regions: Sequence[Sequence[Box]], height: int, width: int) -> Float[Tensor, " N"]:
    """The share of each image that lies in one of its boxes, in [0, 1].

    Args:
        regions: the boxes of each image, in pixels.
        height: of the images, in pixels; so is `width`.

    Examples:
        >>> text_area([[Box(0, 0, 2, 4), Box(1, 0, 3, 4)], []], height=4, width=4).tolist()
        [0.75, 0.0]
    """
    covered = torch.zeros(len(regions), height, width)
    for image, boxes in zip(covered, regions, strict=True):
        for box in boxes:
            rows, columns = (slice(max(0, round(low)), max(0, round(high))) for low, high in ((box.y0, box.y1), (box.x0, box.x1)))
            image[rows, columns] = 1.0
    return covered.mean(dim=(1, 2))


def luma(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N H W"]:
    """The brightness of each pixel, .299 r + .587 g + .114 b (ITU-R BT.601).

    Examples:
        >>> luma(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        tensor([[[0.2990]]])
    """
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(dim=1)


def laplacian_variance(grey: Float[Tensor, "N H W"]) -> Float[Tensor, " N"]:
    """The variance of the Laplacian over the inner pixels.

    L = 4 y(i, j) - y(i-1, j) - y(i+1, j) - y(i, j-1) - y(i, j+1)

    Examples:
        Columns that rise by one have a Laplacian of 0 everywhere; columns that alternate have 2 and -2:

        >>> ramp, stripes = torch.arange(5.0).repeat(5, 1), torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat(4, 1)
        >>> laplacian_variance(ramp[None]).tolist(), laplacian_variance(stripes[None]).tolist()
        ([0.0], [4.0])
    """
    kernel = grey.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])
    return F.conv2d(grey[:, None], kernel[None, None]).flatten(1).var(dim=1, correction=0)


def _colour_entropy(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, " N"]:
    levels = (images.clamp(0, 1) * LEVELS).long().clamp(max=LEVELS - 1)
    colours = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
    shares = torch.stack([torch.bincount(each.flatten(), minlength=LEVELS**3) for each in colours]).float()
    shares = shares / shares.sum(dim=1, keepdim=True)
    bits: Tensor = -torch.special.xlogy(shares, shares).sum(dim=1) / math.log(2)
    return bits + 0.0  # not -0
