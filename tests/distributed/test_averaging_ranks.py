"""The average of the weights on two processes is that of one, sharded or not, resumed or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import jobs_averaging
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers

BOUND = 1e-6


@cache
def _alone(lora: bool) -> dict[str, Any]:
    return jobs_averaging.train(None, 1, lora=lora)


@pytest.mark.parametrize(
    ("strategy", "lora", "resumed"),
    usually(
        [("ddp", True, True), ("fsdp2", False, True), ("fsdp2_full", True, True), ("zero2", False, True)],
        of=[
            *product(("ddp", "fsdp2", "fsdp2_full"), (False, True), (False, True)),
            ("zero2", False, False),
            ("zero2", False, True),
        ],
    ),
)
def test_two_processes_average_as_one(
    workers: Callable[[int], Workers], tmp_path: Path, strategy: str, lora: bool, resumed: bool
) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    alone = _alone(lora)
    assert furthest(alone["average"], alone["weights"]) > 100 * BOUND, "the average is no other than the weights"
    options = {"lora": lora, "folder": str(tmp_path) if resumed else None}
    ranks = workers(2)("tests.distributed.jobs_averaging:train", strategy=strategy, world_size=2, **options)
    for rank in ranks:
        assert furthest(rank["average"], alone["average"]) <= BOUND
        assert furthest(rank["weights"], alone["weights"]) <= BOUND
        assert furthest(rank["after"], rank["weights"]) == 0
        # Another token would be another by far more.
        torch.testing.assert_close(rank["drawn"], alone["drawn"], rtol=0, atol=1e-3)
        torch.testing.assert_close(rank["by_call"], rank["drawn"], rtol=0, atol=1e-3)
        too_late = "is not sharded as its average is: use the average before the policy is gathered"
        assert (too_late if strategy.startswith("fsdp2") else "used") in rank["too late"]


@pytest.mark.parametrize(
    ("strategy", "lora", "message"),
    [
        ("zero3", False, "ema_decay keeps an average of the weights, which ZeRO-3 splits in a way of its own; use strategy fsdp2"),
        ("zero2", True, "ema_decay keeps an average of an adapter, which DeepSpeed leaves out of its checkpoints"),
    ],
)
def test_what_cannot_keep_an_average_is_refused_before_training(
    workers: Callable[[int], Workers], strategy: str, lora: bool, message: str
) -> None:
    pytest.importorskip("deepspeed")
    for said in workers(2)("tests.distributed.jobs_averaging:refused", strategy=strategy, lora=lora):
        assert said.startswith(message)
