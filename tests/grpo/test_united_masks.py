"""`mask.missing: union_always`: a word that a branch did not write has a gradient there too. Costs less than a second."""

from __future__ import annotations

import pytest
import torch

from varrl_lightning.grpo.credit import BranchScores, CreditOptions, MaskOptions, assign_credit, scores_by_branch
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

SCHEDULE = Schedule(((1, 1), (1, 4)))
"""One token, and four whose cells are a fourth of the picture each."""


def scored(stage: Stage, branches: list[int], columns: list[list[int]], missing: str) -> BranchScores:
    """What one process knows of its branches, of whose images the given columns of four are in a box."""
    images = len(columns)
    pixels = torch.zeros(images, 1, 4)
    for image, on in enumerate(columns):
        pixels[image, 0, on] = 1.0
    rollout = Rollout(
        stage,
        [Prompt("a")],
        SCHEDULE,
        tokens=[],
        tail_tokens=[],
        images=torch.zeros(images, 3, 1, 4),
        log_probs=[],
        keys=None,
        branches=tuple(branches),
    )
    scores = Scores(torch.arange(images, dtype=torch.float32) + branches[0])
    return scores_by_branch(rollout, {"r": scores}, pixels, MaskOptions(missing=missing))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("missing", "masks"),
    [
        ("group_union", [[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]),
        ("union_always", [[1, 0, 1, 0]] * 4),
        ("ones", [[1, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]),
    ],
)
def test_the_branches_of_a_group_that_two_processes_share(missing: str, masks: list[list[int]]) -> None:
    stage = Stage(1, 2, branches=4)
    parts = [scored(stage, [0, 1], [[0], [2]], missing), scored(stage, [2, 3], [[], [0]], missing)]
    options = CreditOptions(alpha=0.0, mask=MaskOptions(missing=missing))  # type: ignore[arg-type]
    credit = assign_credit(BranchScores.join(parts, 4), SCHEDULE, stage, {"r": 1.0}, options)
    assert credit.mask.tolist() == masks
    assert (credit.policy_weights > 0).tolist() == [[bool(on) for on in row] for row in masks]


def test_the_continuations_of_a_branch_are_united_first() -> None:
    stage = Stage(0, 1, branches=2, continuations=2)
    narrow = Schedule(((1, 4), (1, 4)))
    scores = scored(Stage(1, 2, branches=2, continuations=2), [0, 1], [[0], [1], [], [3]], "union_always")
    assert scores.tokens_on is not None
    assert scores.tokens_on.tolist() == [[True, True, False, False], [False, False, False, True]]
    credit = assign_credit(scores, narrow, stage, {"r": 1.0}, CreditOptions(mask=MaskOptions(missing="union_always")))
    assert credit.mask.tolist() == [[1, 1, 0, 1]] * 2


def test_a_group_without_any_region_trains_on_the_whole_image_and_outside_holds() -> None:
    stage = Stage(1, 2, branches=2)
    options = CreditOptions(mask=MaskOptions(missing="union_always", outside=0.25))
    nothing = scored(stage, [0, 1], [[], []], "union_always")
    assert assign_credit(nothing, SCHEDULE, stage, {"r": 1.0}, options).mask.tolist() == [[1, 1, 1, 1]] * 2
    some = scored(stage, [0, 1], [[1], []], "union_always")
    assert assign_credit(some, SCHEDULE, stage, {"r": 1.0}, options).mask.tolist() == [[0.25, 1, 0.25, 0.25]] * 2
