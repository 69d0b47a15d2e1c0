"""Rollouts without anything to learn from change nothing on any process, under any strategy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest

from tests.distributed import jobs_skipping
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers

STRATEGIES = [(name,) for name in ("ddp", "fsdp2", "zero1", "zero2", "zero3") if "zero" not in name or find_spec("deepspeed")]


@pytest.mark.parametrize("strategy", usually([case for case in STRATEGIES if case[0] in ("fsdp2", "zero2")], of=STRATEGIES))
def test_idle_and_unjudged_rollouts_change_nothing(workers: Callable[[int], Workers], strategy: str) -> None:
    alone = _alone()
    assert (alone["counters"]["skipped_steps"], alone["counters"]["unjudged_rollouts"], alone["steps"]) == (2, 1, 4)
    for rank in workers(2)("tests.distributed.jobs_skipping:skipping", strategy=strategy, processes=2):
        assert rank["changed"] == alone["changed"] == [False, False, True]
        assert (rank["counters"], rank["steps"]) == (alone["counters"], alone["steps"])
        assert furthest(rank["weights"], alone["weights"]) <= 1e-6


@cache
def _alone() -> dict[str, Any]:
    return jobs_skipping.skipping(None, 1)
