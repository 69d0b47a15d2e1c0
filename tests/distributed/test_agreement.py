"""Processes that hold different things stop before a training step, and say what differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.workers import Workers
from varrl_lightning.strategies.consistency import differences
from varrl_lightning.training.guards import Guards

FIT = "tests.distributed.jobs_agreement:fit"


@pytest.mark.parametrize(
    ("faults", "step"),
    [
        (
            {
                "seed": "seed: 0 on rank 0; 7 on rank 1",
                "alpha": "alpha: 0.6 on rank 0; 0.7 on rank 1",
                "eta": "eta: 1.0 on rank 0; 2.0 on rank 1",
                "clip_high": "clip_high: 0.28 on rank 0; 0.5 on rank 1",
                "reward": "reward left: tests.tiny.LeftBright, weight 1.0 on rank 0; tests.tiny.LeftBright, weight 0.5 on rank 1",
                "micro_batch_size": "micro_batch_size: None on rank 0; 2 on rank 1",
                "every": "guards.check_ranks_every_n_steps: 2 on rank 0; 3 on rank 1",
            },
            0,
        ),
        (
            {
                "group_size": "stages.0.branches: 4 on rank 0; 8 on rank 1",
                "group_size ": "stages.1.branches: 4 on rank 0; 8 on rank 1",
                "counter": "bad_steps: 0 on rank 0; 1 on rank 1",
                "version": "version of torch: ",
                "max_steps": "trainer.max_steps: 5 on rank 0; 6 on rank 1",
                "learning rate": "optimizer.0.lr: 0.001 on rank 0; 0.002 on rank 1",
                "order": "prompts.seed: 0 on rank 0; 1 on rank 1",
            },
            0,
        ),
        (
            {
                "m": "stages.0.stop: 2 on rank 0; 3 on rank 1",
                "m ": "stages.1.start: 2 on rank 0; 3 on rank 1",
                "prompts": "prompts: ",
                "tokenizer": "policy.tokenizer.",
                "reference": "reference.",
            },
            0,
        ),
        (
            {
                "weight": "policy.transformer.blocks.1.qkv.weight: float32 [48, 16] ",
                "later counter": "bad_steps: 0 on rank 0; 1 on rank 1",
            },
            4,
        ),
    ],
    ids=lambda faults: next(iter(faults)) if isinstance(faults, dict) else "",
)
def test_a_difference_stops_all_processes_and_is_named(
    workers: Callable[[int], Workers], tmp_path: Path, faults: dict[str, str], step: int
) -> None:
    (message, done, _), (other, done_by_other, _) = workers(2)(FIT, faults=[*faults], folder=tmp_path)
    assert message is not None
    assert message == other
    lines = sorted(line.strip() for line in message.splitlines() if line.startswith("  "))
    assert len(lines) == len(faults), message
    assert all(line.startswith(said) for line, said in zip(lines, sorted(faults.values()), strict=True)), message
    assert all(" on rank 0; " in line and line.endswith(" on rank 1") for line in lines)
    assert (done, done_by_other) == (step, step)
    when = f"after training step {step}, but did after step 2:" if step else "before training step 0:"
    assert f"the 2 processes do not hold the same {when}" in message


def test_weights_as_they_were_given_are_compared_before_a_strategy_takes_them(
    workers: Callable[[int], Workers], tmp_path: Path
) -> None:
    (message, done, asked), (other, _, _) = workers(2)(FIT, faults=["given weights"], folder=tmp_path)
    assert message == other
    assert "do not hold the same before training:" in message
    assert "policy.transformer." in message
    assert "... and " in message
    assert (done, asked) == (0, 1)


def test_processes_that_agree_go_on_and_are_asked_as_often_as_was_said(workers: Callable[[int], Workers], tmp_path: Path) -> None:
    # Of the weights as given, before the first step, after the second and the fourth.
    assert workers(2)(FIT, faults=[], folder=tmp_path) == [(None, 5, 4)] * 2


def test_differences_name_each_value_and_its_ranks() -> None:
    facts = [
        {"a": "1", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "1", "b": "x"},
        {"a": "1"},
        {"a": "1", "b": "x"},
        {"a": "1", "b": "x"},
    ]
    assert differences(facts) == ["b: x on ranks 0, 2, 4-5; y on rank 1; absent on rank 3"]
    assert differences(facts[:1]) == []
    assert differences([{"a": "1"}, {"a": "1"}]) == []
    long, longer = differences([{"a": "z" * 100}, {"a": "z" * 101}])[0].split("; ")
    assert long.startswith("a: " + "z" * 30 + "... (hash ")
    assert long.removeprefix("a: ").split(" on")[0] != longer.split(" on")[0]


def test_the_number_of_steps_is_checked() -> None:
    with pytest.raises(ValueError, match=r"guards\.check_ranks_every_n_steps must be 0"):
        Guards(check_ranks_every_n_steps=-1)
