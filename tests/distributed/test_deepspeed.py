"""ZeRO-1, 2 and 3 on two processes: what is theirs alone; that two processes are as one is shown for all strategies together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.workers import WorkerError, Workers
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies import deepspeed as zero
from varrl_lightning.strategies import zero_checkpoints

pytest.importorskip("deepspeed")

BOUND = 1e-6
JOBS = "tests.distributed.jobs_deepspeed"
Start = Callable[[int], Workers]


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_adapter_in_two_micro_batches(workers: Start, stage: int) -> None:
    options: dict[str, Any] = {"lora": True, "micro_batch_size": 2}
    alone = workers(1)(f"{JOBS}:train", stage=0, processes=1, **options)[0]
    ranks = workers(2)(f"{JOBS}:train", stage=stage, processes=2, **options)
    assert furthest(ranks[0]["weights"], ranks[1]["weights"]) == 0
    assert furthest(ranks[0]["weights"], alone["weights"]) <= BOUND
    assert ranks[0]["counters"] == alone["counters"] == (5, 5, 0, 5)
    for name in ("loss", "grad_norm", "kl"):
        assert ranks[0]["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("stage", "kind"), [(1, "loss"), (2, "gradient"), (3, "loss"), (3, "gradient")])
def test_a_step_that_is_not_finite_changes_nothing_and_counts(workers: Start, stage: int, kind: str) -> None:
    alone = workers(1)(f"{JOBS}:bad_step", stage=0, processes=1, kind=kind)[0]
    for rank in workers(2)(f"{JOBS}:bad_step", stage=stage, processes=2, kind=kind):
        assert rank["unchanged"]
        assert rank["counters"] == alone["counters"] == (3, 3, 1, 3)
        assert furthest(rank["weights"], alone["weights"]) <= BOUND


@pytest.mark.parametrize(
    ("family", "lora"),
    [("var", False), ("switti", True), ("infinity", False), ("infinity", True), ("tokenflow", True), ("llm_prefix", False)],
)
def test_every_family_under_zero3(workers: Start, family: str, lora: bool) -> None:
    options: dict[str, Any] = {"family": family, "lora": lora}
    alone = workers(1)(f"{JOBS}:update", stage=0, processes=1, **options)[0]
    ranks = workers(2)(f"{JOBS}:update", stage=3, processes=2, **options)
    assert ranks[0]["norms"] == pytest.approx(alone["norms"], rel=1e-4)
    assert furthest(ranks[0]["weights"], alone["weights"]) <= BOUND


def test_zero3_leaves_a_process_its_shards(workers: Start) -> None:
    for rank in workers(2)(f"{JOBS}:shards"):
        assert rank["whole"] == []
        assert rank["reference_is_sharded"]
        assert rank["within_sampling"]


@pytest.mark.parametrize("stage", [2, 3])
def test_validation_and_test_are_those_of_one_process(workers: Start, stage: int) -> None:
    alone = workers(1)(f"{JOBS}:evaluated", stage=0, processes=1)[0]
    assert {"val/reward", "test/reward", "test/greedy/reward"} <= alone.keys()
    for rank in workers(2)(f"{JOBS}:evaluated", stage=stage, processes=2):
        assert rank == pytest.approx(alone, rel=1e-4, abs=1e-6)


# --- checkpoints --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "lora"), [(1, False), (2, True), (3, False), (3, True)])
def test_a_resumed_run_is_the_one_that_never_stopped(workers: Start, stage: int, lora: bool, tmp_path: Path) -> None:
    whole = workers(2)(f"{JOBS}:save", stage=stage, processes=2, folder=str(tmp_path), lora=lora)[0]
    resumed = workers(2)(f"{JOBS}:resume", stage=stage, processes=2, path=str(tmp_path / "step=3.ckpt"), lora=lora)[0]
    assert furthest(resumed, whole) == 0
    found = zero_checkpoints.read_zero_folder(tmp_path / "step=6.ckpt")
    assert found["varrl"]["rollouts_done"] == found["global_step"] == 6
    assert all(map(is_adapter, found["state_dict"])) == lora
    state = {name.removeprefix("policy."): x for name, x in found["state_dict"].items()}
    assert furthest(state, whole) == 0
    if lora:
        part = next((tmp_path / "step=6.ckpt").rglob("*mp_rank_00_model_states.pt"))
        written = torch.load(part, weights_only=False)
        assert all(map(is_adapter, written["module"] or ()))
        assert not written["frozen_param_fragments"], "the base is in the checkpoint"


@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_processes_needs_a_conversion(workers: Start, stage: int, tmp_path: Path) -> None:
    whole = workers(2)(f"{JOBS}:save", stage=stage, processes=2, folder=str(tmp_path))[0]
    options: dict[str, Any] = {"stage": stage, "processes": 1, "path": str(tmp_path / "step=3.ckpt")}
    with pytest.raises(WorkerError, match=r"was written by 2 processes and there are 1 now. Convert it once") as caught:
        workers(1)(f"{JOBS}:resume", **options)
    command = next(line for line in str(caught.value).splitlines() if "Convert it" in line).partition("resume again: python ")[2]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True, env=environment, timeout=120)
    assert furthest(workers(1)(f"{JOBS}:resume", **options)[0], whole) <= BOUND


def test_no_folder_of_deepspeeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint of DeepSpeed's, or was not written to its end"):
        zero_checkpoints.read_zero_folder(tmp_path)


# --- what is said -------------------------------------------------------------------------------------------------------------


def test_what_deepspeeds_own_configuration_must_not_say(workers: Start) -> None:
    with pytest.raises(WorkerError, match=r"DeepSpeed's gradient_clipping is 0.5, but max_grad_norm of the model is 2.0"):
        workers(2)(f"{JOBS}:own_settings", max_grad_norm=2.0, zero={}, gradient_clipping=0.5)
    with pytest.raises(WorkerError, match=r"DeepSpeed's offload_optimizer steps again with the last gradient"):
        workers(2)(f"{JOBS}:own_settings", max_grad_norm=2.0, zero={"offload_optimizer": {"device": "cpu"}})


def test_without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_checkpoints, "REQUIREMENT", "deepspeed>=99")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs deepspeed>=99, which is not installed: pip install 'varrl-lightning\[deepspeed\]'"
    ):
        zero.ZeROStrategy()


def test_names(workers: Start) -> None:
    assert workers(1)(f"{JOBS}:names")[0] == {"zero1": 1, "zero2": 2, "zero3": 3}
