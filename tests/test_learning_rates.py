"""The schedule of the quick-start."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from varrl_lightning.learning_rates import WarmupCosine


def optimizer(lr: float = 2e-4) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, updates: int) -> list[float]:
    found = []
    for _ in range(updates):
        found.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("warmup", [1, 20])
def test_it_is_pytorchs_two_schedules_in_one(warmup: int) -> None:
    theirs = optimizer()
    parts = [LinearLR(theirs, start_factor=0.1, total_iters=warmup), CosineAnnealingLR(theirs, 100 - warmup, eta_min=2e-5)]
    expected = rates(SequentialLR(theirs, parts, [warmup]), 101)
    assert rates(WarmupCosine(optimizer(), warmup=warmup, total=100, least=0.1), 101) == pytest.approx(expected, rel=1e-9)


def test_it_stays_at_its_least_and_needs_no_warm_up() -> None:
    found = rates(WarmupCosine(optimizer(), warmup=0, total=10, least=0.25), 30)
    assert found[0] == pytest.approx(2e-4)
    assert max(found) == found[0]
    assert found[5] == pytest.approx(2e-4 * (0.25 + 0.75 * (1 + math.cos(math.pi / 2)) / 2))
    assert found[10:] == pytest.approx([5e-5] * 20)


def test_it_goes_on_from_a_checkpoint() -> None:
    whole, first = WarmupCosine(optimizer(), warmup=3, total=9), WarmupCosine(optimizer(), warmup=3, total=9)
    expected = rates(whole, 8)
    rates(first, 4)
    again = WarmupCosine(optimizer(), warmup=3, total=9)
    again.load_state_dict(first.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates(again, 4) == pytest.approx(expected[4:])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"warmup": 10, "total": 10}, r"warmup must be in \[0, total\), got warmup 10 and total 10"),
        ({"warmup": -1, "total": 10}, r"warmup must be in \[0, total\), got warmup -1"),
        ({"warmup": 0, "total": 10, "least": 1.5}, r"least must be in \[0, 1\], a share of the peak, got 1.5"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WarmupCosine(optimizer(), **values)  # type: ignore[arg-type]
