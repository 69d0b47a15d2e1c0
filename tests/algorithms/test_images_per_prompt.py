"""The other reading of a group size: images of a prompt in all. Costs nothing."""

from __future__ import annotations

import pytest

from varrl_lightning.algorithms.stages import branches_of, cycle, spelled_out
from varrl_lightning.types import Stage

EVERY = ("prefix", "suffix", "all")


@pytest.mark.parametrize(("K", "branches"), [(0, 16), (1, 16), (2, 8), (4, 4), (8, 2)])
def test_every_stage_has_as_many_images(K: int, branches: int) -> None:
    stages = cycle(18, 12, None, K, EVERY, images_per_prompt=16)
    assert [stage.branches for stage in stages] == [branches, 16, 16]
    assert [stage.images_per_prompt for stage in stages] == [16, 16, 16]


def test_sixteen_branches_unless_one_of_the_two_is_given() -> None:
    assert {stage.branches for stage in cycle(18, 12, None, 2, EVERY)} == {16}
    assert {stage.branches for stage in cycle(18, 12, 6, 2, EVERY)} == {6}
    assert cycle(18, 18, None, 3, EVERY, images_per_prompt=16) == (Stage(0, 18, 16, name="all"),), "K is ignored, and so divides"
    assert [stage.branches for stage in cycle(18, 12, None, 3, ["suffix"], images_per_prompt=16)] == [16], "no prefix to divide"


def test_starts_divide_the_branches_of_their_own_stage() -> None:
    prefix, suffix = cycle(18, 12, None, 2, ("prefix", "suffix"), images_per_prompt=16, starts=16, first_scale="per_branch")
    assert (prefix.branches, prefix.starts, suffix.branches, suffix.starts) == (8, 8, 16, 16)


@pytest.mark.parametrize(
    ("images", "K", "message"),
    [
        (16, 3, "must be a multiple of the 3 images of a branch, for two branches or more, got 16: a prefix has images_per_prompt"),
        (2, 2, "must be a multiple of the 2 images of a branch, for two branches or more, got 2"),
        (1, 1, "must be a multiple of the 1 images of a branch, for two branches or more, got 1"),
        (0, 2, "got 0"),
        (-4, 2, "got -4"),
    ],
)
def test_images_that_make_no_group(images: int, K: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cycle(18, 12, None, K, ("prefix",), images_per_prompt=images)


def test_one_of_the_two_is_given() -> None:
    with pytest.raises(
        ValueError, match="group_size = 8 counts branches and images_per_prompt = 16 images, which exclude each other"
    ):
        branches_of(8, 16)
    with pytest.raises(ValueError, match="images_per_prompt = 16 says nothing beside stages"):
        spelled_out([Stage(0, 3, 4)], 4, 16)
