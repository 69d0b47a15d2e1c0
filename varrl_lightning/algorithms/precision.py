"""The precision in which returns are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """Return the numbers in float64, in which sums of float32 numbers are right to the last digit that float32 keeps.

    Rounded back, a result does not depend on the order of the numbers. MPS has no float64 and takes float32.

    Examples:
        >>> widened(torch.tensor([0.5])).dtype
        torch.float64
    """
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)
