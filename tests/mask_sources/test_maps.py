"""Blur, scale and cut, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from varrl_lightning.mask_sources.maps import check_map_options, cut, smooth


def test_a_point_becomes_a_gaussian() -> None:
    point = torch.zeros(1, 21, 15)
    point[0, 10, 7] = 1.0
    blurred = smooth(point, 1.0)
    weights = [math.exp(-(d**2) / 2) for d in range(-3, 4)]
    expected = torch.zeros(21, 15)
    for y, down in enumerate(weights):
        for x, across in enumerate(weights):
            expected[7 + y, 4 + x] = down * across / sum(weights) ** 2
    torch.testing.assert_close(blurred[0], expected)


def test_a_constant_map_stays_also_at_the_edges_of_a_small_image() -> None:
    maps = torch.full((2, 3, 4), 0.7)
    torch.testing.assert_close(smooth(maps, 5.0), maps)


def test_mixed_precision_changes_nothing() -> None:
    maps = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = smooth(maps, 1.0)
    torch.testing.assert_close(mixed, smooth(maps, 1.0), rtol=0, atol=0)


def test_no_blur() -> None:
    maps = torch.rand(2, 3, 4)
    assert smooth(maps, 0.0) is maps


def test_without_a_quantile_each_map_is_divided_by_its_own_maximum() -> None:
    maps = torch.tensor([[[1.0, 2.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 3e-20]], [[0.0, 0.0], [0.0, 0.0]]])
    assert cut(maps, None).tolist() == [[[0.25, 0.5], [1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize(
    ("quantile", "on"),
    [
        (0.0, [1, 2, 3, 4, 5, 6, 7, 8, 9]),  # zero is never on
        (0.7, [7, 8, 9]),
        (0.75, [8, 9]),  # 2.5 of ten, rounded to the even
        (0.9, [9]),
        (0.99, [9]),  # never none
    ],
)
def test_the_largest_pixels_are_kept(quantile: float, on: list[int]) -> None:
    maps = torch.tensor([[[3.0, 9, 1, 0, 7], [5, 2, 8, 4, 6]]])
    mask = cut(maps, quantile)
    assert sorted(maps[mask == 1].tolist()) == on
    assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_pixels_alike_are_kept_together() -> None:
    assert cut(torch.full((1, 2, 3), 0.2), 0.9).tolist() == [[[1.0] * 3] * 2]
    assert cut(torch.zeros(1, 2, 3), 0.9).tolist() == [[[0.0] * 3] * 2]


@pytest.mark.parametrize(
    ("smoothing", "quantile", "message"),
    [
        (-0.1, None, "smoothing must be 0 .* got -0.1"),
        (float("nan"), None, "smoothing must be 0 .* got nan"),
        (0.0, 1.0, r"quantile must be in \[0, 1\), or null .* got 1.0"),
        (0.0, -0.5, "quantile must be in .* got -0.5"),
    ],
)
def test_options_out_of_range(smoothing: float, quantile: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_map_options(smoothing, quantile)
