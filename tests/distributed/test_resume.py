"""A run that was stopped and goes on comes to the weights of one that never was, under every strategy."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import jobs_resume
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers

Start = Callable[[int], Workers]
BOUND = 1e-6
STRATEGIES = {"single": 1, "ddp": 2, "fsdp2": 2, "fsdp2_full": 2, "zero1": 2, "zero2": 2, "zero3": 2}
PLACES = {
    "inside a cycle and an epoch": 2,  # the cycle has four stages, an epoch three batches
    "at the end of an epoch": 3,
    "at the end of a cycle": 4,
    "finished": 6,
}
USUAL = {
    ("single", "inside a cycle and an epoch"),
    ("single", "finished"),
    ("ddp", "at the end of an epoch"),
    ("fsdp2", "at the end of a cycle"),
    ("fsdp2_full", "finished"),
    ("zero1", "at the end of an epoch"),
    ("zero2", "at the end of a cycle"),
    ("zero3", "inside a cycle and an epoch"),
}
"""Each strategy and each place, the places with two strategies that save in different ways; the others are slow tests."""
CHANGES = [("single", "ddp"), ("ddp", "single"), ("fsdp2", "fsdp2"), ("fsdp2_full", "single"), ("ddp", "fsdp2_full")]


USUAL_CHANGES = [(*change, place % 2 == 0) for place, change in enumerate(CHANGES)]
"""Each change, of an adapter and of all weights in turn."""


def run(workers: Start, world_size: int, folder: Path, strategy: str, **options: Any) -> list[dict[str, Any]]:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    named = None if strategy == "single" else strategy
    return workers(world_size)(
        "tests.distributed.jobs_resume:fit", strategy=named, world_size=world_size, folder=str(folder), **options
    )


@cache
def undisturbed(lora: bool = False) -> dict[str, Any]:
    """The run of one process that was never stopped."""
    with tempfile.TemporaryDirectory() as folder:
        return jobs_resume.fit(None, 1, folder, lora=lora)


@pytest.mark.parametrize(("strategy", "place"), usually(USUAL, of=product(STRATEGIES, PLACES)))
def test_a_stopped_or_finished_run_goes_on(workers: Start, tmp_path: Path, strategy: str, place: str) -> None:
    step, world_size = PLACES[place], STRATEGIES[strategy]
    end = {"steps": step} if place == "finished" else {"stop_after": step}
    stopped = run(workers, world_size, tmp_path, strategy, **end)
    assert [(rank["stopped"], rank["rollouts"]) for rank in stopped] == [(place != "finished", step)] * world_size
    resumed = run(workers, world_size, tmp_path, strategy, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    whole = undisturbed()
    assert furthest(stopped[0]["weights"], whole["weights"]) > 100 * BOUND
    for rank in resumed:
        assert (rank["stopped"], rank["rollouts"], rank["lr"]) == (False, 8, whole["lr"])
        assert furthest(rank["weights"], whole["weights"]) <= (0 if strategy == "single" else BOUND)


@pytest.mark.parametrize(
    ("first", "then", "lora"), usually(USUAL_CHANGES, of=[(*change, lora) for lora in (False, True) for change in CHANGES])
)
def test_a_run_goes_on_with_another_number_of_processes(workers: Start, tmp_path: Path, first: str, then: str, lora: bool) -> None:
    before, after = (2, 1) if first != "single" else (1, 2)
    after = 2 if then == "fsdp2_full" else after
    run(workers, before, tmp_path, first, stop_after=3, lora=lora)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    resumed = run(workers, after, tmp_path, then, ckpt_path=last, lora=lora)
    assert [rank["rollouts"] for rank in resumed] == [8] * after
    # An adapter begins at zero, where AdamW makes steps of full length of the smallest gradients, rounding included.
    assert furthest(resumed[0]["weights"], undisturbed(lora)["weights"]) <= (5 * BOUND if lora else BOUND)
