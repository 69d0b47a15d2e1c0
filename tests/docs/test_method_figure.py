"""The figure of the page on the method is what its script draws, and its masks are those of the package."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from varrl_lightning.algorithms.masks import propagate
from varrl_lightning.schedule import Schedule

FIGURES = Path(__file__).parent.parent.parent / "docs" / "figures"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(FIGURES / "method.py"))


def test_the_figure_is_what_its_script_draws(script: dict[str, Any], tmp_path: Path) -> None:
    script["save"](tmp_path / "method.svg")
    drawn = (FIGURES / "method.svg").read_bytes()
    assert (tmp_path / "method.svg").read_bytes() == drawn
    assert len(drawn) < 200_000


def test_its_masks_are_those_of_mask_propagation(script: dict[str, Any]) -> None:
    pixels = torch.zeros(1, 100, 100, dtype=torch.bool)
    pixels[0, script["WORD"][0], script["WORD"][1]] = True
    schedule = Schedule(tuple((side, side) for side in script["SIDES"]))
    expected = propagate(pixels, schedule, 0, len(schedule))[0]
    drawn = torch.cat([torch.from_numpy(mask).flatten() for mask in script["carried_back"]()])
    assert torch.equal(drawn.float(), expected)
