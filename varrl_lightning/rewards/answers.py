"""The forms in which a reward may answer, read as `Scores`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import RewardError
from varrl_lightning.types import Box, Scores


def read_answer(answer: Any, n: int, name: str, device: torch.device) -> Scores:
    """The answer of a reward about n images: `Scores`, or the values alone as a tensor, an array or a list.

    An image with a region that is not finite has no score: nobody knows where it was judged.

    Returns:
        Scores in float32 on the device; where there is no score, the value is NaN and `valid` is False.

    Raises:
        RewardError: on a wrong type, length or shape; names the reward.
    """
    says = f"the reward {name!r} returned"
    scores = answer if isinstance(answer, Scores) else None
    values = _numbers(answer if scores is None else scores.values, n, says, "values").to(device)
    valid = torch.isfinite(values)
    if scores is None:
        return Scores(values.masked_fill(~valid, torch.nan), valid=valid)
    if scores.valid is not None:
        valid &= _numbers(scores.valid, n, says, "valid").to(device) != 0
    for what, lists in (("regions", scores.regions), ("texts", scores.texts)):
        if lists is not None and len(lists) != n:
            raise RewardError(f"{says} {what} for {len(lists)} of {n} images; expected a list each")
    regions = scores.regions
    if regions is not None:
        known = [all(map(_is_finite, boxes)) for boxes in regions]
        if not all(known):
            warnings.warn(f"{says} regions that are not finite; their images have no score", stacklevel=3)
            regions = [boxes if finite else [] for boxes, finite in zip(regions, known, strict=True)]
            valid &= torch.tensor(known, device=device)
    parts = {part: _numbers(x, n, says, f"the component {part!r}").to(device) for part, x in scores.components.items()}
    return replace(scores, values=values.masked_fill(~valid, torch.nan), components=parts, regions=regions, valid=valid)


def _numbers(given: Any, n: int, says: str, what: str) -> Float[Tensor, " n"]:
    """A column of numbers, one per image, in float32; NaN for None."""
    if isinstance(given, (list, tuple)):
        column = _listed(given, says)
    elif isinstance(given, Tensor):
        column = given.detach()
    elif hasattr(given, "__array__"):  # numpy's, and what numpy reads: a column of pandas, an array of JAX
        column = _from_array(given, says)
    else:
        expected = "Scores, a tensor or an array of shape (N,), or a list of numbers and None"
        raise RewardError(f"{says} a {type(given).__name__}; expected {expected}")
    if tuple(column.shape) != (n,):
        raise RewardError(f"{says} {what} of shape {tuple(column.shape)} for {n} images; expected ({n},), one per image")
    if column.is_complex():
        raise RewardError(f"{says} {what} of dtype {column.dtype}; expected real numbers")
    return column.float()


def _listed(given: Sequence[Any], says: str) -> Tensor:
    """A list of numbers, numpy scalars, tensors without dimensions, and None."""
    for value in given:
        if tuple(getattr(value, "shape", ())):
            raise RewardError(f"{says} a list with an entry of shape {tuple(value.shape)}; expected numbers and None")
    try:
        plain = [value.detach() if isinstance(value, Tensor) else value for value in given]
        return torch.tensor([torch.nan if value is None else float(value) for value in plain], dtype=torch.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(f"{says} a list with {error}; expected numbers and None") from error


def _from_array(given: Any, says: str) -> Tensor:
    """An array of any dtype; NaN where it is masked, and for None in an array of objects."""
    array = np.ma.asanyarray(given)
    if array.dtype.kind in "cmM":  # complex numbers, and times
        raise RewardError(f"{says} an array of dtype {array.dtype}; expected real numbers")
    try:
        return torch.from_numpy(np.ma.filled(array.astype(np.float64), np.nan))
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(f"{says} an array of dtype {array.dtype} with {error}; expected numbers") from error


def _is_finite(box: Box) -> bool:
    return all(math.isfinite(corner) for corner in (box.x0, box.y0, box.x1, box.y1))
