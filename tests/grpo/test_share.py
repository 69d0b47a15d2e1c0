from __future__ import annotations

import pytest
import torch

from varrl_lightning.algorithms.masks import fill_missing
from varrl_lightning.grpo.credit import BranchScores
from varrl_lightning.grpo.rollout import Share


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 64])
def test_every_item_is_one_processes_own(n: int, world_size: int) -> None:
    shares = [Share.of(n, rank, world_size) for rank in range(world_size)]
    assert len({len(share.items) for share in shares}) == 1, "all make the same calls"
    assert [item for share in shares for item in share.items[: share.real]] == list(range(n))
    assert all(item == n - 1 for share in shares for item in share.items[share.real :])
    # In order, so that what all of them tell, cut to n, is the whole.
    assert [item for share in shares for item in share.items][:n] == list(range(n))


def judged(values: list[float], component: str | None, on: bool | None) -> BranchScores:
    rewards = torch.tensor(values, dtype=torch.float32)[:, None]
    return BranchScores(
        {"r": rewards},
        {"r": rewards.isfinite()},
        {"r": {component: rewards * 2} if component else {}},
        None if on is None else torch.full((len(values), 3), on),
    )


def test_what_several_have_judged_is_put_together() -> None:
    joined = BranchScores.join([judged([1, 2], "part", False), judged([3, 3], None, None)], 3)
    assert joined.values["r"].flatten().tolist() == [1, 2, 3]
    assert joined.components["r"]["part"].flatten().tolist()[:2] == [2, 4]
    assert joined.components["r"]["part"][2].isnan().all()
    # Where one has no mask at all, its images were judged everywhere.
    assert joined.tokens_on is not None
    assert joined.tokens_on.any(dim=1).tolist() == [False, False, True]
    assert BranchScores.join([judged([1], None, None)] * 2, 2).tokens_on is None


def test_groups_are_filled_on_tokens_as_on_pixels() -> None:
    mask = torch.tensor([[[True, False], [False, False]]])
    assert fill_missing(mask, mask.any(-1)).tolist() == [[[True, False], [True, False]]]
