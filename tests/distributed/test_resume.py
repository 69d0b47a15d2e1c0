"""A run that was stopped and goes on comes to the weights of one that never was, under every strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.distributed.workers import Workers

Start = Callable[[int], Workers]
BOUND = 1e-6
STRATEGIES = {"single": 1, "ddp": 2, "fsdp2": 2, "fsdp2_full": 2, "zero1": 2, "zero2": 2, "zero3": 2}
PLACES = {
    "inside a cycle and an epoch": 2,  # the cycle has four stages, an epoch three batches
    "at the end of an epoch": 3,
    "at the end of a cycle": 4,
}
CHANGES = [("single", "ddp"), ("ddp", "single"), ("fsdp2", "fsdp2"), ("fsdp2_full", "single"), ("ddp", "fsdp2_full")]


def run(workers: Start, world_size: int, folder: Path, strategy: str, **options: Any) -> list[dict[str, Any]]:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    named = None if strategy == "single" else strategy
    return workers(world_size)(
        "tests.distributed.jobs_resume:fit", strategy=named, world_size=world_size, folder=str(folder), **options
    )


@pytest.fixture(scope="module")
def undisturbed(workers: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """The run of a strategy that was never stopped."""
    known: dict[str, dict[str, Any]] = {}

    def of(strategy: str) -> dict[str, Any]:
        if strategy not in known:
            known[strategy] = run(workers, STRATEGIES[strategy], tmp_path_factory.mktemp(strategy), strategy)[0]
        return known[strategy]

    return of


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stopped_run_goes_on(
    workers: Start, undisturbed: Callable[[str], dict[str, Any]], tmp_path: Path, strategy: str, place: str
) -> None:
    step, world_size = PLACES[place], STRATEGIES[strategy]
    stopped = run(workers, world_size, tmp_path, strategy, stop_after=step)
    assert [(rank["stopped"], rank["rollouts"]) for rank in stopped] == [(True, step)] * world_size
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    resumed = run(workers, world_size, tmp_path, strategy, ckpt_path=last)
    whole = undisturbed(strategy)
    assert furthest(stopped[0]["weights"], whole["weights"]) > 100 * BOUND
    for rank in resumed:
        assert (rank["stopped"], rank["rollouts"], rank["lr"]) == (False, 8, whole["lr"])
        assert furthest(rank["weights"], whole["weights"]) <= (0 if strategy == "single" else BOUND)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_finished_run_goes_on(
    workers: Start, undisturbed: Callable[[str], dict[str, Any]], tmp_path: Path, strategy: str
) -> None:
    world_size = STRATEGIES[strategy]
    run(workers, world_size, tmp_path, strategy, steps=6)
    resumed = run(workers, world_size, tmp_path, strategy, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    whole = undisturbed(strategy)
    assert resumed[0]["rollouts"] == 8
    assert furthest(resumed[0]["weights"], whole["weights"]) <= (0 if strategy == "single" else BOUND)


@pytest.mark.parametrize(("first", "then"), CHANGES)
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapter"])
def test_a_run_goes_on_with_another_number_of_processes(workers: Start, tmp_path: Path, first: str, then: str, lora: bool) -> None:
    before, after = (2, 1) if first != "single" else (1, 2)
    after = 2 if then == "fsdp2_full" else after
    run(workers, before, tmp_path / "a", first, stop_after=3, lora=lora)
    last = str(tmp_path / "a" / "checkpoints" / "last.ckpt")
    resumed = run(workers, after, tmp_path / "a", then, ckpt_path=last, lora=lora)
    whole = run(workers, 1, tmp_path / "b", "single", lora=lora)
    assert [rank["rollouts"] for rank in resumed] == [8] * after
    # An adapter begins at zero, where AdamW makes steps of full length of the smallest gradients, rounding included.
    assert furthest(resumed[0]["weights"], whole[0]["weights"]) <= (5 * BOUND if lora else BOUND)
