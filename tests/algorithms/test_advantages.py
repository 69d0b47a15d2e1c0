import math
import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.advantages import batch_advantages, degenerate_groups, group_advantages

NAN = math.nan
RETURNS = torch.tensor(
    [
        [1.0, 2.0, 4.0, -1.0],
        [3.0, NAN, 5.0, NAN],
        [7.0, 7.0, 7.0, 7.0],
        [NAN, NAN, 2.0, NAN],
        [0.0, math.inf, 1.0, 2.0],
    ],
    dtype=torch.float64,
)


def _by_loops(returns: Tensor, scale: str, eps: float = 1e-4) -> tuple[list[list[float]], list[list[bool]]]:
    every = [[r for r in group if math.isfinite(r)] for group in returns.tolist()]
    batch_std = statistics.stdev([r for group in every for r in group])
    advantages, active = [], []
    for group, known in zip(returns.tolist(), every, strict=True):
        std = statistics.stdev(known) if len(known) > 1 else 0.0
        divisor = {"group": std + eps, "batch": batch_std + eps, "none": 1.0}[scale]
        on = [math.isfinite(r) and std > 0 for r in group]
        active.append(on)
        mean = statistics.mean(known)
        advantages.append([(r - mean) / divisor if ok else 0.0 for r, ok in zip(group, on, strict=True)])
    return advantages, active


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_by_loops(scale: str) -> None:
    expected, expected_active = _by_loops(RETURNS, scale)
    advantages, active = group_advantages(RETURNS, scale=scale)
    torch.testing.assert_close(advantages, torch.tensor(expected).double())
    assert active.tolist() == expected_active


def test_a_branch_that_is_not_valid_leaves_the_group() -> None:
    returns, valid = torch.tensor([[1.0, 9.0, 2.0]]), torch.tensor([[True, False, True]])
    advantages, active = group_advantages(returns, valid, scale="none")
    assert advantages.tolist() == [[-0.5, 0.0, 0.5]]
    assert active.tolist() == valid.tolist()


def test_a_group_whose_std_is_below_the_minimum_is_inactive_whatever_divides() -> None:
    returns = torch.tensor([[0.0, 1e-3], [0.0, 1.0]])
    for scale in ("group", "batch", "none"):
        advantages, active = group_advantages(returns, scale=scale, min_std=1e-2)
        assert active.tolist() == [[False, False], [True, True]]
        assert advantages[0].tolist() == [0.0, 0.0]


def test_a_branch_alone_has_nothing_to_compare() -> None:
    _, active = group_advantages(torch.tensor([[NAN, 2.0], [1.0, 1.0]]), min_std=0.0)
    assert not active.any()


def test_equal_returns_are_inactive_without_a_minimum() -> None:
    advantages, active = group_advantages(torch.tensor([[91.31956] * 3, [91.31956, 91.31956, 91.4]]), min_std=0.0)
    assert active.tolist() == [[False] * 3, [True] * 3]
    assert advantages[0].tolist() == [0.0] * 3


def test_a_large_common_value_costs_no_digits() -> None:
    returns = torch.tensor([[4096.0, 4097.0], [4096.5, 4098.0]])
    advantages, _ = group_advantages(returns, scale="batch", eps=0.0)
    expected = 0.5 / statistics.stdev(returns.flatten().tolist())
    assert advantages[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_groups_that_say_nothing() -> None:
    assert degenerate_groups(group_advantages(RETURNS)[1]).tolist() == [False, False, True, True, False]


def test_batch_advantages_against_numpy() -> None:
    """Sums of standardised rewards, less their mean and over their unbiased std, both over the active branches of the batch."""
    sums = torch.tensor([[1.5, -0.5, -1.0], [0.0, 0.0, 0.0], [0.3, NAN, -0.1], [2.0, NAN, NAN]])
    advantages, active = batch_advantages(sums, eps=0.01)
    assert active.tolist() == [[True] * 3, [False] * 3, [True, False, True], [False] * 3]
    known = np.array([1.5, -0.5, -1.0, 0.3, -0.1])
    expected = (known - known.mean()) / (known.std(ddof=1) + 0.01)
    np.testing.assert_allclose(advantages[active].numpy(), expected, rtol=1e-6)
    assert not advantages[~active].any()


def test_a_batch_without_an_active_branch_has_no_advantages() -> None:
    advantages, active = batch_advantages(torch.tensor([[1.0, 1.0], [NAN, 2.0]]))
    assert not advantages.any()
    assert not active.any()
    assert batch_advantages(torch.tensor([[0.0, 1e-3]]), min_std=0.1)[1].tolist() == [[False, False]]
