"""Two processes stop together, save together, and none waits for one that cannot."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.callbacks.running import prompts_file
from tests.distributed import jobs_saving
from tests.distributed.cases import usually
from tests.distributed.workers import Workers
from tests.tiny import WORDS
from varrl_lightning.sample_tables.parquet import read_sample_tables

Launch = Callable[[int], Workers]


def prepared(folder: Path, strategy: str) -> Path:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    prompts_file(folder / "train.jsonl", WORDS)
    return folder / "checkpoints"


def leftovers(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {"last.ckpt", (folder / "last.ckpt").resolve().name}


@pytest.mark.parametrize(("strategy", "on"), [("ddp", 0), ("fsdp2", 1), ("zero3", 0)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_they_go_on(
    workers: Launch, tmp_path: Path, strategy: str, on: int
) -> None:
    """A sharded checkpoint is a link to a folder; the strategy loads what it leads to."""
    folder = prepared(tmp_path, strategy)
    last = folder / "last.ckpt"
    for rank in workers(2)("tests.distributed.jobs_saving:signalled", strategy=strategy, folder=str(tmp_path), on=on):
        assert (rank["error"], rank["status"], rank["steps"]) == ("StopSignal", 128 + signal.SIGTERM, 2)
    assert jobs_saving.steps_of(last) == 2
    assert not leftovers(folder)
    assert last.is_symlink() == (strategy != "ddp")
    resumed = workers(2)("tests.distributed.jobs_saving:fit", strategy=strategy, folder=str(tmp_path), ckpt_path=str(last))
    assert [rank["steps"] for rank in resumed] == [4, 4]
    assert jobs_saving.steps_of(last) == 4
    assert not leftovers(folder)


@pytest.mark.parametrize(
    ("strategy", "on"),
    usually(
        [("ddp", 0), ("fsdp2", 1), ("zero1", 0), ("zero3", 1)],
        of=[("ddp", 0), ("fsdp2", 0), ("fsdp2", 1), ("zero1", 0), ("zero3", 1)],
    ),
)
def test_a_rank_without_room_leaves_the_checkpoint_before_and_nobody_waits(
    workers: Launch, tmp_path: Path, strategy: str, on: int
) -> None:
    folder = prepared(tmp_path, strategy)
    ranks = workers(2)("tests.distributed.jobs_saving:without_room", strategy=strategy, folder=str(tmp_path), on=on)
    for rank in ranks:
        assert (rank["error"], rank["steps"]) == ("SaveError", 4)  # the run itself has gone on to its end
        assert "could not be saved" in rank["message"]
        assert "The checkpoint before it is untouched" in rank["message"]
    assert jobs_saving.steps_of(folder / "last.ckpt") == 2
    assert not leftovers(folder)


@pytest.mark.parametrize("strategy", ["fsdp2", pytest.param("ddp", marks=pytest.mark.slow)])
def test_what_not_all_ranks_are_known_to_raise_is_not_saved(workers: Launch, tmp_path: Path, strategy: str) -> None:
    folder = prepared(tmp_path, strategy)
    ranks = workers(2)("tests.distributed.jobs_saving:failed", strategy=strategy, folder=str(tmp_path))
    assert [rank["message"] for rank in ranks] == ["'of rank 0'", "'of rank 1'"]
    assert jobs_saving.steps_of(folder / "last.ckpt") == 2  # by the save before the step


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3", pytest.param("ddp", marks=pytest.mark.slow)])
def test_a_reward_that_fails_on_one_rank_is_saved_by_all(workers: Launch, tmp_path: Path, strategy: str) -> None:
    folder = prepared(tmp_path, strategy)
    ranks = workers(2)("tests.distributed.jobs_saving:reward_failed", strategy=strategy, folder=str(tmp_path))
    assert [(rank["error"], rank["steps"]) for rank in ranks] == [("RankError", 2)] * 2
    assert jobs_saving.steps_of(folder / "last.ckpt") == 2
    assert not leftovers(folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_rank_that_cannot_save_for_another_reason_is_told_to_all(workers: Launch, tmp_path: Path, strategy: str) -> None:
    folder = prepared(tmp_path, strategy)
    ranks = workers(2)("tests.distributed.jobs_saving:unsavable", strategy=strategy, folder=str(tmp_path))
    assert {rank["error"] for rank in ranks} == {"RankError" if strategy == "ddp" else "SaveError"}
    for rank in ranks:
        assert "ickle" in rank["message"]
    assert not leftovers(folder)


def test_a_log_that_cannot_be_written_stops_nobody(workers: Launch, tmp_path: Path) -> None:
    folder = prepared(tmp_path, "ddp")
    ranks = workers(2)("tests.distributed.jobs_saving:without_log", strategy="ddp", folder=str(tmp_path))
    assert [(rank["message"], rank["steps"]) for rank in ranks] == [("None", 4)] * 2
    assert jobs_saving.steps_of(folder / "last.ckpt") == 4


def test_the_first_rank_alone_writes_tables_of_its_own_samples(workers: Launch, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    prepared(tmp_path, "ddp")
    ranks = workers(2)("tests.distributed.jobs_saving:with_tables", strategy="ddp", folder=str(tmp_path))
    assert [(rank["message"], rank["steps"]) for rank in ranks] == [("None", 4)] * 2
    rows = read_sample_tables(tmp_path)
    assert {(row.step, row.group) for row in rows} == {(2, 0), (4, 0)}  # the second prompt was the other rank's
    assert {row.branch for row in rows} == {0, 1}
