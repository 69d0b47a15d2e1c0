"""ZeRO-1, 2 and 3 on two processes: what is theirs alone; that two processes are as one is shown for all strategies together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import jobs_deepspeed
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies import deepspeed as zero
from varrl_lightning.strategies import zero_checkpoints

pytest.importorskip("deepspeed")

BOUND = 1e-6
JOBS = "tests.distributed.jobs_deepspeed"
STRATEGIES = ("zero1", "zero2", "zero3")
Start = Callable[[int], Workers]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_that_is_not_finite_changes_nothing_and_counts(workers: Start, strategy: str) -> None:
    alone = _bad_steps_alone()
    for rank in workers(2)(f"{JOBS}:bad_steps", strategy=strategy, processes=2):
        assert rank["changed"] == [False, True, False, True]
        assert rank["counters"] == alone["counters"] == (5, 5, 2, 5)
        assert furthest(rank["weights"], alone["weights"]) <= BOUND


@cache
def _bad_steps_alone() -> dict[str, Any]:
    return jobs_deepspeed.bad_steps(None, 1)


def test_zero3_leaves_a_process_its_shards(workers: Start) -> None:
    for rank in workers(2)(f"{JOBS}:shards"):
        assert rank["whole"] == []
        assert rank["reference_is_sharded"]
        assert rank["within_sampling"]


@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_validation_and_test_are_those_of_one_process(workers: Start, strategy: str) -> None:
    alone = _evaluated_alone()
    assert {"val/reward", "test/reward", "test/greedy/reward"} <= alone.keys()
    for rank in workers(2)(f"{JOBS}:evaluated", strategy=strategy, processes=2):
        assert rank == pytest.approx(alone, rel=1e-4, abs=1e-6)


@cache
def _evaluated_alone() -> dict[str, float]:
    return jobs_deepspeed.evaluated(None, 1)


# --- checkpoints --------------------------------------------------------------------------------------------------------------


@cache
def _alone(lora: bool, folder: Path) -> dict[str, Any]:
    return jobs_deepspeed.save(None, 1, str(folder), lora=lora, micro_batch_size=2)


@pytest.mark.parametrize(
    ("strategy", "lora"),
    usually([("zero2", False), ("zero3", True)], of=product(STRATEGIES, (False, True))),
)
def test_a_run_is_that_of_one_process_and_goes_on_as_if_it_never_stopped(
    workers: Start, strategy: str, lora: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In two micro-batches. Without an adapter, on one process as well, once the checkpoint is converted."""
    options: dict[str, Any] = {"strategy": strategy, "lora": lora, "micro_batch_size": 2}
    alone = _alone(lora, tmp_path_factory.getbasetemp() / f"alone_{lora}")
    whole, other = workers(2)(f"{JOBS}:save", processes=2, folder=str(tmp_path), **options)
    assert furthest(whole["weights"], other["weights"]) == 0
    assert furthest(whole["weights"], alone["weights"]) <= BOUND
    assert whole["counters"] == alone["counters"] == (6, 6, 0, 6)
    for name in ("loss", "grad_norm", "kl"):
        assert whole["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-4, abs=1e-6)
    resumed = workers(2)(f"{JOBS}:resume", processes=2, path=str(tmp_path / "step=3.ckpt"), **options)[0]
    assert furthest(resumed, whole["weights"]) == 0
    found = zero_checkpoints.read_zero_folder(tmp_path / "step=6.ckpt")
    assert found["varrl"]["rollouts_done"] == found["global_step"] == 6
    assert all(map(is_adapter, found["state_dict"])) == lora
    state = {name.removeprefix("policy."): x for name, x in found["state_dict"].items()}
    assert furthest(state, whole["weights"]) == 0
    if lora:
        part = next((tmp_path / "step=6.ckpt").rglob("*mp_rank_00_model_states.pt"))
        written = torch.load(part, weights_only=False)
        assert all(map(is_adapter, written["module"] or ()))
        assert not written["frozen_param_fragments"], "the base is in the checkpoint"
        return
    # Another number of processes needs a conversion.
    options |= {"processes": 1, "path": str(tmp_path / "step=3.ckpt")}
    said = workers(1)("tests.distributed.jobs:refused", by=f"{JOBS}:resume", **options)[0]
    assert "was written by 2 processes and there are 1 now. Convert it once" in said
    command = next(line for line in said.splitlines() if "Convert it" in line).partition("resume again: python ")[2]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True, env=environment, timeout=120)
    assert furthest(workers(1)(f"{JOBS}:resume", **options)[0], whole["weights"]) <= BOUND


def test_no_folder_of_deepspeeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no checkpoint of DeepSpeed's, or was not written to its end"):
        zero_checkpoints.read_zero_folder(tmp_path)


# --- what is said -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero": {}, "gradient_clipping": 0.5}, "DeepSpeed's gradient_clipping is 0.5, but max_grad_norm of the model is 2.0"),
        (
            {"zero": {"offload_optimizer": {"device": "cpu"}}},
            "DeepSpeed's offload_optimizer steps again with the last gradient",
        ),
    ],
    ids=["clipping", "offload"],
)
def test_what_deepspeeds_own_configuration_must_not_say(workers: Start, settings: dict[str, Any], message: str) -> None:
    for said in workers(2)("tests.distributed.jobs:refused", by=f"{JOBS}:own_settings", max_grad_norm=2.0, **settings):
        assert message in said


def test_without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_checkpoints, "REQUIREMENT", "deepspeed>=99")
    with pytest.raises(
        ModuleNotFoundError, match=r"needs deepspeed>=99, which is not installed: pip install 'varrl-lightning\[deepspeed\]'"
    ):
        zero.ZeROStrategy()


def test_names(workers: Start) -> None:
    assert workers(2)(f"{JOBS}:names")[0] == {"zero1": 1, "zero2": 2, "zero3": 3}
