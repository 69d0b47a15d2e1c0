"""From a rough map of what mattered in an image to a mask: smoothed, scaled to [0, 1], cut at a quantile."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def check_map_options(smoothing: float, quantile: float | None) -> None:
    """Check what `smooth` and `cut` are asked for.

    Raises:
        ValueError: names the option, its value and its range.
    """
    if not (smoothing >= 0 and math.isfinite(smoothing)):
        raise ValueError(f"smoothing must be 0 (off) or more, in fractions of the shorter side, got {smoothing}")
    if quantile is not None and not 0 <= quantile < 1:
        raise ValueError(f"quantile must be in [0, 1), or null for a map without a cut, got {quantile}")


def smooth(maps: Float[Tensor, "R H W"], sigma: float) -> Float[Tensor, "R H W"]:
    """Blur each map by a Gaussian that is cut at 3 sigma; the edge is continued, so that a constant map stays as it is.

    Args:
        sigma: standard deviation in pixels; below a tenth of a pixel nothing happens.
    """
    if sigma < 0.1:
        return maps
    reach = math.ceil(3 * sigma)
    at = torch.arange(-reach, reach + 1, device=maps.device, dtype=maps.dtype)
    kernel = (-(at**2) / (2 * sigma**2)).exp()
    kernel = kernel / kernel.sum()
    x = maps[:, None]
    with torch.autocast(maps.device.type, enabled=False):  # half precision makes pixels alike that the cut has to tell apart
        x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None, :])
        x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return x[:, 0]


def cut(maps: Float[Tensor, "R H W"], quantile: float | None) -> Float[Tensor, "R H W"]:
    """Scale each map to [0, 1], or keep its largest pixels as ones.

        map / max(map)                                              without a quantile
        1 for the max(1, round((1 - q) H W)) largest pixels, 0 else   with one; ties with the last of them are kept too

    Zero stays zero in both: of a map that is zero everywhere, nothing is known.

    Args:
        maps: >= 0.
        quantile: q in [0, 1).
    """
    flat = maps.flatten(1)
    if quantile is None:
        largest = flat.amax(dim=1)[:, None, None]
        return torch.where(largest > 0, maps / largest.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
    pixels = flat.shape[1]
    kept = max(1, round((1 - quantile) * pixels))
    least = flat.kthvalue(pixels - kept + 1, dim=1).values[:, None, None]
    return ((maps >= least) & (maps > 0)).to(maps.dtype)
