"""Two processes come to the weights of one, under every strategy."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from tests.distributed import jobs
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
BOUND = 1e-6
CASES: dict[str, dict[str, Any]] = {
    "one micro-batch": {},
    "four micro-batches": {"micro_batch_size": 1},  # of the four branches that each of two processes has
    "fewer prompts than processes": {"batch_size": 1},
    "fewer prompts than processes, four micro-batches": {"batch_size": 1, "group_size": 8, "micro_batch_size": 1},
}
FURTHER: dict[str, dict[str, Any]] = {
    "branches that processes do not divide": {"batch_size": 1, "group_size": 3},
    "prompts that processes do not divide, drawn in parts": {"batch_size": 3, "micro_batch_size": 2, "images_at_once": 3},
    "two updates a rollout of an adapter, weighed and scaled over the batch": {
        "lora": True,
        "updates_per_rollout": 2,
        # Up to the suffix: after it, momentum alone moves what it trains, and multiplies the rounding of a gradient near 0.
        "steps": 8,
        "normalise": {"tokens": "batch", "advantages": "batch"},
    },
    "a mask source": {"mask_source": "disagreement"},
    "a group that is split, whose images a reward compares": {
        "batch_size": 3,
        "images_at_once": 3,
        "reward": {
            "wins": {"reward": {"class_path": "tests.distributed.jobs.WinRate", "init_args": {"each": 8}}, "weight": 1.0},
            "light": {"reward": {"class_path": "tests.tiny.LeftBright"}, "weight": 0.5},
        },
        "mask_source": {"class_path": "boxes", "init_args": {"from_reward": "wins"}},
        "mask": {"missing": "union_always"},
        "alternation": ["prefix"],
        "steps": 2,
    },
    "a reward of which only the order within its group counts": {
        "batch_size": 3,
        "images_at_once": 3,
        "reward": {"class_path": "rank_of", "init_args": {"reward": "tests.served.LeftBrightOf8Bits"}},
        "alternation": ["prefix"],
        "steps": 2,
    },
    "rewards of different scale, standardised over the batch": {
        "batch_size": 3,
        "images_at_once": 3,
        "reward": {
            "light": {"reward": {"class_path": "tests.tiny.LeftBright"}, "weight": 1.0},
            "order": {
                "reward": {"class_path": "rank_of", "init_args": {"reward": "tests.served.LeftBrightOf8Bits"}},
                "weight": 0.5,
            },
            "sharpness": -0.5,
        },
        "combine": "gdpo",
        "steps": 3,
    },
    "a group of which one process has a branch more": {
        "batch_size": 1,
        "group_size": 3,
        "reward": {"class_path": "tests.distributed.jobs.WinRate", "init_args": {"each": 6}},
        "alternation": ["prefix"],
        "steps": 2,
    },
    "a group that is split, whose drafts and whole images a reward compares": {
        "batch_size": 1,
        "group_size": 3,
        "images_at_once": 3,
        "num_continuations": 0,
        "calibrate_every": 2,
        "reward": {"class_path": "tests.distributed.jobs.WinRate", "init_args": {"each": [3, 6]}},
        "alternation": ["prefix"],
        "steps": 2,
    },
}
"""Only under DDP: the strategies do not differ in these."""


ONE, FOUR, FEWER, FEWER_FOUR = CASES
USUAL = [
    (strategy, case)
    for place, strategy in enumerate(STRATEGIES)
    for case in ((ONE, FEWER_FOUR) if place % 2 == 0 else (FOUR, FEWER))
]
"""Each strategy with one and with several micro-batches, and with and without a prompt for each process."""


def _deepspeed(strategy: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")


@cache
def _trained_alone(options: str) -> dict[str, Any]:
    return jobs.train(None, 1, **json.loads(options))


def _alone(**options: Any) -> dict[str, Any]:
    """The run of one process, once for all tests with these options."""
    return _trained_alone(json.dumps(options))


def _check(workers: Callable[[int], Workers], strategy: str, options: dict[str, Any]) -> None:
    alone = _alone(**options)
    ranks = workers(2)("tests.distributed.jobs:train", strategy=strategy, world_size=2, **options)
    begun = jobs.full_weights(jobs.module(lora=options.get("lora", False)))
    assert furthest(begun, alone["weights"]) > 100 * BOUND, "nothing was learnt"
    assert furthest(ranks[0]["weights"], ranks[1]["weights"]) == 0
    assert furthest(alone["weights"], ranks[0]["weights"]) <= BOUND
    for rank in ranks:
        assert rank["counters"] == alone["counters"]
        for name, value in alone["metrics"].items():
            if not any(word in name for word in ("second", "step_time", "implied_K")):
                # Norms, ratios and the like are of the order of one.
                assert rank["metrics"][name] == pytest.approx(value, abs=1e-5, rel=1e-4, nan_ok=True), name


@pytest.mark.parametrize(("strategy", "case"), usually(USUAL, of=product(STRATEGIES, CASES)))
def test_two_processes_are_as_one(workers: Callable[[int], Workers], strategy: str, case: str) -> None:
    _deepspeed(strategy)
    _check(workers, strategy, CASES[case])


@pytest.mark.parametrize("case", FURTHER)
def test_whatever_is_shared_out(workers: Callable[[int], Workers], case: str) -> None:
    _check(workers, "ddp", FURTHER[case])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_whose_reward_is_slow_and_then_fails(workers: Callable[[int], Workers], strategy: str) -> None:
    """All wait, and later all stop with the same words; nobody waits for ever, nobody has other weights."""
    _deepspeed(strategy)
    ranks = workers(2)("tests.distributed.jobs:disturbed", strategy=strategy)
    said = "rank 1: RewardError: the reward 'FailsOnRank1' raised KeyError: 'font'"
    for rank in ranks:
        assert rank["error"].split(" on ")[0].startswith(said[:60])
        assert rank["rollouts"] == 2
    assert furthest(ranks[0]["weights"], ranks[1]["weights"]) == 0


def test_rewards_of_evaluations_say_the_same_on_two_processes(workers: Callable[[int], Workers]) -> None:
    alone = jobs.judged(None, 1)
    for way in ("val", "test", "test/greedy"):
        assert {f"{way}/judges/light/reward", f"{way}/judges/second/word_accuracy"} < alone.keys()
        assert alone[f"{way}/judges/second/unread"] == 1
        assert alone[f"{way}/judges/light/reward"] == pytest.approx(alone[f"{way}/reward"], abs=1e-6)
    for rank in workers(2)("tests.distributed.jobs:judged", strategy="ddp", world_size=2):
        assert rank == pytest.approx(alone, abs=1e-5)
    options = {"by": "tests.distributed.jobs:judged", "strategy": "ddp", "world_size": 2, "fails": True}
    for said in workers(2)("tests.distributed.jobs:refused", **options):
        assert said.startswith("RankError: rank 1: RewardError: the reward 'judges/second' raised KeyError: 'font'")


def test_every_rank_tells_the_line_of_a_fault(workers: Callable[[int], Workers]) -> None:
    for said in workers(2)("tests.distributed.jobs:faulty"):
        assert said.startswith("rank 1: MaskSourceError: the mask source 'function' raised IndexError: no such pixel (File ")
        assert re.search(r"""jobs\.py", line \d+, in mask_source\)$""", said)


def test_a_group_that_is_split_is_not_compared_by_its_images(workers: Callable[[int], Workers]) -> None:
    options: dict[str, Any] = {"strategy": "ddp", "batch_size": 1, "mask_source": "disagreement"}
    for said in workers(2)("tests.distributed.jobs:refused", by="tests.distributed.jobs:train", world_size=2, **options):
        assert "the groups of 1 prompts are split over 2 processes. Make the prompts per update a multiple of that." in said


def test_the_bound_would_show_a_difference() -> None:
    """A micro-batch that is left out, as some engines do, is far beyond it."""
    whole, half = (_alone(batch_size=size) for size in (2, 1))
    assert furthest(whole["weights"], half["weights"]) > 100 * BOUND
    assert torch.isfinite(torch.tensor(whole["metrics"]["loss"]))
