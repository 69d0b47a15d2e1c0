"""Masks from boxes, pixel by pixel."""

from __future__ import annotations

import random

import pytest
import torch

from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Box, Prompt, Rollout, Scores, Stage

HEIGHT, WIDTH = 7, 9


def rollout(n: int) -> Rollout:
    return Rollout(
        stage=Stage(0, 1, branches=2),
        prompts=[Prompt(text="x")],
        schedule=Schedule(((1, 1),)),
        tokens=[],
        tail_tokens=[],
        images=torch.zeros(n, 3, HEIGHT, WIDTH),
        log_probs=[],
    )


def brute_force(boxes: list[Box], padding: int) -> list[list[float]]:
    """A pixel is the square [x, x+1) x [y, y+1); it is on when a padded box reaches into it."""

    def touched(box: Box, x: int, y: int) -> bool:
        across = x + 1 > int(box.x0 // 1) - padding and x < -int(-box.x1 // 1) + padding
        down = y + 1 > int(box.y0 // 1) - padding and y < -int(-box.y1 // 1) + padding
        return across and down

    return [[float(any(touched(b, x, y) for b in boxes)) for x in range(WIDTH)] for y in range(HEIGHT)]


@pytest.mark.parametrize("padding", [0, 2])
def test_boxes_against_every_pixel(padding: int) -> None:
    rng = random.Random(0)
    regions = []
    for count in [0, 1, 2, 3] * 5:
        corners = [(rng.uniform(-3, 8), rng.uniform(-3, 6)) for _ in range(count)]
        regions.append([Box(x, y, x + rng.uniform(0.1, 6), y + rng.uniform(0.1, 5)) for x, y in corners])
    mask = Boxes(padding)(rollout(20), Scores(torch.zeros(20), regions=regions), policy=None)
    assert mask is not None
    assert mask.tolist() == [brute_force(boxes, padding) for boxes in regions]
    assert 0 < mask.mean() < 1


def test_a_reward_without_regions_gives_no_mask() -> None:
    assert Boxes()(rollout(2), Scores(torch.zeros(2)), policy=None) is None


def test_full_is_all_ones() -> None:
    mask = Full()(rollout(2), Scores(torch.zeros(2)), policy=None)
    assert mask.shape == (2, HEIGHT, WIDTH)
    assert (mask == 1).all()


def test_both_are_mask_sources() -> None:
    assert isinstance(Boxes(), MaskSource)
    assert isinstance(Full(), MaskSource)


def test_a_box_cannot_shrink() -> None:
    with pytest.raises(ValueError, match="padding must be 0 or more pixels, got -1"):
        Boxes(padding=-1)
