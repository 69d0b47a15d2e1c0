from fractions import Fraction
from itertools import product

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.masks import fill_missing, propagate, unite_over_continuations
from varrl_lightning.schedule import VAR_256, Schedule, square

Cells = set[tuple[int, int]]
Grid = tuple[int, int]


def _meet(i: int, n: int, j: int, m: int) -> bool:
    """Do the open intervals (i/n, (i+1)/n) and (j/m, (j+1)/m) overlap?"""
    return max(Fraction(i, n), Fraction(j, m)) < min(Fraction(i + 1, n), Fraction(j + 1, m))


def _cells_meeting(on: Cells, of: Grid, grid: Grid) -> Cells:
    cells = product(range(grid[0]), range(grid[1]))
    return {(y, x) for y, x in cells if any(_meet(y, grid[0], v, of[0]) and _meet(x, grid[1], u, of[1]) for v, u in on)}


def _brute_force(mask: Tensor, schedule: Schedule, start: int, stop: int, method: str, dilation: int) -> list[float]:
    size = (mask.shape[0], mask.shape[1])
    lit = mask.nonzero().tolist()
    pixels = {
        (y, x) for y, x in product(range(size[0]), range(size[1])) if any(max(abs(y - v), abs(x - u)) <= dilation for v, u in lit)
    }
    on = {len(schedule) - 1: _cells_meeting(pixels, size, schedule.grids[-1])}
    for t in reversed(range(len(schedule) - 1)):
        finer = (on[t + 1], schedule.grids[t + 1]) if method == "chained" else (pixels, size)
        on[t] = _cells_meeting(*finer, schedule.grids[t])
    return [float((y, x) in on[t]) for t in range(start, stop) for y, x in product(*map(range, schedule.grids[t]))]


SCHEDULES = {
    "divisible": square((1, 2, 4, 8)),
    "VAR's 10, 13, 16": square((10, 13, 16)),
    "not square": Schedule(((1, 2), (2, 3), (3, 5), (5, 7))),
    "repeated and coarser": Schedule(((3, 3), (2, 4), (4, 4), (4, 4))),
}


@pytest.mark.parametrize("method", ["chained", "direct"])
@pytest.mark.parametrize("size", [(16, 16), (11, 23), (3, 5)])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_propagation_against_brute_force(schedule: Schedule, size: Grid, method: str) -> None:
    torch.manual_seed(len(schedule) + size[1])
    masks = torch.rand(3, *size) > 0.97
    masks[0, size[0] // 2, size[1] // 3] = True
    stop, dilation = len(schedule), 0
    expected = [_brute_force(mask, schedule, 0, stop, method, dilation) for mask in masks]
    assert propagate(masks, schedule, 0, stop, method).tolist() == expected


@pytest.mark.parametrize("method", ["chained", "direct"])
def test_dilation_and_a_span_of_scales(method: str) -> None:
    schedule, masks = SCHEDULES["not square"], torch.zeros(2, 20, 17, dtype=torch.bool)
    masks[0, 9, 4] = masks[1, 0, 16] = True
    expected = [_brute_force(mask, schedule, 1, 3, method, 2) for mask in masks]
    assert propagate(masks, schedule, 1, 3, method, dilation=2).tolist() == expected
    assert expected != [_brute_force(mask, schedule, 1, 3, method, 0) for mask in masks]


def test_the_chain_begins_at_the_last_scale_also_for_a_prefix() -> None:
    """A pixel at the edge of a cell of 16 reaches further through 13 than through the pixels alone."""
    mask = torch.zeros(1, 256, 256, dtype=torch.bool)
    mask[0, 100, 100] = True
    chained, direct = (propagate(mask, VAR_256, 0, 5, method) for method in ("chained", "direct"))
    assert chained.tolist() == [_brute_force(mask[0], VAR_256, 0, 5, "chained", 0)]
    assert (chained >= direct).all()
    assert chained.sum() > direct.sum() == 5


def test_tokens_that_are_off_weigh_what_is_outside() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    assert propagate(mask, square((1, 2)), 0, 2, outside=0.25).tolist() == [[1.0, 1.0, 0.25, 0.25, 0.25]]


def test_a_mask_of_fractions_carries_its_maximum() -> None:
    mask = torch.tensor([[[0.1, 0.5], [0.0, 0.25]]])
    assert propagate(mask, square((1, 2)), 0, 2).tolist() == [[0.5, *mask.flatten().tolist()]]


def test_masks_unite_over_continuations() -> None:
    masks = torch.tensor([[[0.6, 0.0]], [[0.4, 0.9]], [[0.5, 0.2]], [[0.1, 0.0]]])
    assert unite_over_continuations(masks, K=2).tolist() == [[[True, True]], [[False, False]]]
    assert unite_over_continuations(masks, K=1, threshold=0.15)[:, 0].tolist() == [
        [True, False], [True, True], [True, True], [False, False],
    ]  # fmt: skip


def test_a_branch_without_regions_takes_the_union_of_its_group() -> None:
    mask = torch.zeros(2, 3, 1, 4, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 1, 0, 2] = mask[1, 0, 0, 1] = True
    has = torch.tensor([[True, True, False], [False, False, False]])
    filled = fill_missing(mask, has)
    assert filled[0, 2].tolist() == [[True, False, True, False]]
    assert torch.equal(filled[0, :2], mask[0, :2])
    assert filled[1].all(), "a group without any region trains on the whole image"
    assert fill_missing(mask, has, "ones")[0, 2].all()
    assert torch.equal(fill_missing(mask, has, "ones")[0, :2], mask[0, :2])


def test_errors_name_value_and_range() -> None:
    mask = torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1.0"):
        unite_over_continuations(mask, 1, 1.0)
    with pytest.raises(ValueError, match="K must be at least 1 and divide the 3 masks, got 2"):
        unite_over_continuations(mask, 2)
    with pytest.raises(ValueError, match=r"0 <= start < stop <= 2, got \[0, 3\)"):
        propagate(mask, square((1, 2)), 0, 3)
    with pytest.raises(ValueError, match=r"outside must be in \[0, 1\], got 2.0"):
        propagate(mask, square((1, 2)), 0, 2, outside=2.0)
    with pytest.raises(ValueError, match="dilation must be >= 0 pixels, got -1"):
        propagate(mask, square((1, 2)), 0, 2, dilation=-1)
