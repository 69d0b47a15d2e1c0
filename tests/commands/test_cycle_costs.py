"""The arithmetic of a group, against counting."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from varrl_lightning.algorithms.stages import cycle
from varrl_lightning.commands.cycle_costs import cost_table, cycle_costs
from varrl_lightning.schedule import square
from varrl_lightning.types import Stage

SCHEDULE = square((1, 2, 4, 8))  # 1 + 4 + 16 + 64 = 85 tokens


def test_costs_are_counted() -> None:
    prefix, suffix = cycle_costs(cycle(4, 2, 16, 2, ("prefix*3", "suffix")), SCHEDULE, prompts=4)
    assert (prefix.times, suffix.times) == (3, 1)
    assert (prefix.images, suffix.images) == (4 * 16 * 2, 4 * 16)
    assert (prefix.tokens, suffix.tokens) == (4 * 16 * 5, 4 * 16 * 80)
    assert (prefix.share, suffix.share) == (5 / 85, 80 / 85)


def test_a_stage_that_starts_late_counts_its_own_scales_only() -> None:
    (cost,) = cycle_costs([Stage(1, 3, 2, continuations=3)], SCHEDULE, prompts=1)
    assert (cost.images, cost.tokens) == (6, 2 * (4 + 16))


def test_drafts_are_images_too() -> None:
    costs = cycle_costs(cycle(4, 2, 16, 0, ("prefix",)), SCHEDULE, prompts=4, ranks=2)
    assert (costs[0].images, costs[0].tokens) == (64, 4 * 16 * 5)
    console = Console(file=io.StringIO(), width=100)
    console.print(cost_table(costs))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 x 16 x 1 draft = 64" in text
    assert "64 images sampled and scored" in text
    assert "32 branches, 32 images on each" in " ".join(text.split())


def test_a_calibration_scores_drafts_beside_its_images() -> None:
    stages = cycle(4, 2, None, 0, ("prefix",), images_per_prompt=16, calibrate_every=2)
    drafts, calibration = cycle_costs(stages, SCHEDULE, prompts=4, ranks=2)
    assert (drafts.images, calibration.images) == (4 * 16, 4 * 16 * 3)
    console = Console(file=io.StringIO(), width=100)
    console.print(cost_table([drafts, calibration]))
    text = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "4 x 16 x (2 + 1 draft) = 192" in text
    assert "256 images sampled and scored" in text
    assert "32 branches, 96 images on each" in text


def test_the_table_spells_it_out() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(cost_table(cycle_costs(cycle(4, 2, 16, 2, ("prefix*3", "suffix")), SCHEDULE, prompts=4)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4 x 16 x 2 = 128" in text
    assert "4 updates, 448 images sampled and scored, 6,080 tokens trained" in text


def test_no_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt, got 0"):
        cycle_costs([Stage(0, 4, 2)], SCHEDULE, prompts=0)
