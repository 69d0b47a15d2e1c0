"""FSDP2: what is saved on some processes goes on on as many or others, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers
from tests.tiny import tiny_policy, tiny_trainer
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies import parallel_of
from varrl_lightning.strategies.sharded_checkpoints import read_folder

Launch = Callable[[int], Workers]
BOUND = 1e-6


# --- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "lora"), usually([("fsdp2", False), ("fsdp2_full", True)], of=product(("fsdp2", "fsdp2_full"), (False, True)))
)
def test_a_resumed_run_is_one_that_never_stopped(workers: Launch, strategy: str, lora: bool, tmp_path: Path) -> None:
    """Weights, moments, schedule and counters; bit for bit on two processes, and within rounding when their number changes."""

    def run(world_size: int, of: str = strategy, **options: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {"strategy": of, "world_size": world_size, "folder": str(tmp_path), "lora": lora}
        found: dict[str, Any] = workers(world_size)("tests.distributed.jobs_fsdp2:fit", **(arguments | {"steps": 5} | options))[-1]
        return found

    straight = run(2)
    run(2, steps=2, save="two.ckpt")
    run(1, steps=2, save="one.ckpt")
    run(1, of="auto", steps=2, save="single.ckpt")
    assert (tmp_path / "two.ckpt").is_dir() == (strategy == "fsdp2")
    assert same(run(2, load="two.ckpt"), straight) == 0
    assert same(run(1, load="two.ckpt"), straight) <= BOUND
    assert same(run(2, load="one.ckpt"), straight) <= BOUND
    assert same(run(2, load="single.ckpt"), straight) <= BOUND
    single = torch.load(tmp_path / "single.ckpt", weights_only=True)
    if strategy == "fsdp2":
        torch.save(read_folder(tmp_path / "two.ckpt"), tmp_path / "two.file.ckpt")
    written = tmp_path / ("two.file.ckpt" if strategy == "fsdp2" else "two.ckpt")
    assert same(run(1, of="auto", load=written.name), straight) <= BOUND
    whole = torch.load(written, weights_only=True)
    assert whole.keys() == single.keys()
    assert whole["state_dict"].keys() == single["state_dict"].keys()
    assert all(map(is_adapter, whole["state_dict"])) == lora
    assert furthest(whole["state_dict"], single["state_dict"]) <= BOUND


def same(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert (one["counters"], one["lr"]) == (other["counters"], other["lr"])
    moments = [furthest(x, y) for x, y in zip(one["moments"], other["moments"], strict=True)]
    return max(furthest(one["weights"], other["weights"]), *moments)


def test_a_checkpoint_before_the_first_step_and_what_a_folder_says_of_itself(workers: Launch, tmp_path: Path) -> None:
    """Lightning would save moments that no step has made."""
    arguments = {"strategy": "fsdp2", "world_size": 2, "folder": str(tmp_path)}
    workers(2)("tests.distributed.jobs_fsdp2:fit", **arguments, steps=0, save="begin.ckpt")
    path = tmp_path / "begin.ckpt"
    assert read_folder(path)["optimizer_states"][0]["state"] == {}
    straight, resumed = (
        workers(2)("tests.distributed.jobs_fsdp2:fit", **arguments, steps=2, load=load)[0] for load in ("", "begin.ckpt")
    )
    assert same(straight, resumed) == 0
    weights, outline = (read_folder(path, parts)["state_dict"] for parts in ("weights", "outline"))  # type: ignore[arg-type]
    assert {n: x.shape for n, x in weights.items()} == {n: x.shape for n, x in outline.items()}
    assert {x.device.type for x in outline.values()} == {"meta"}
    (path / "meta.pt").unlink()
    with pytest.raises(ValueError, match="not written to its end"):
        read_folder(path)


def test_a_checkpoint_of_another_model_is_refused(workers: Launch, tmp_path: Path) -> None:
    arguments = {"world_size": 2, "folder": str(tmp_path), "steps": 1}
    fit = "tests.distributed.jobs_fsdp2:fit"
    for strategy in ("fsdp2", "fsdp2_full"):
        workers(2)(fit, **arguments, strategy=strategy, save="narrow.ckpt", width=16)
        refused = {"by": fit, "strategy": strategy, "load": "narrow.ckpt", "width": 32}
        for said in workers(2)("tests.distributed.jobs:refused", **arguments, **refused):
            assert "the checkpoint does not fit the model" in said
            assert "policy.transformer.norm.weight" in said


# --- what is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (FSDPStrategy, "cannot do manual optimization.*strategy='fsdp2'"),
        (ModelParallelStrategy, "tensor_parallel_size='auto'.*strategy='fsdp2'"),
        (lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2), "tensor_parallel_size=2"),
    ],
    ids=["fsdp1", "auto", "two"],
)
def test_strategies_that_cannot_do_it(strategy: Callable[[], Any], why: str) -> None:
    trainer = tiny_trainer()
    trainer._accelerator_connector.strategy = strategy()  # FSDPStrategy wants a GPU before anything of ours is asked
    with pytest.raises(ValueError, match=why):
        parallel_of(trainer)


def test_dtypes_that_cannot_be_sharded_together() -> None:
    from varrl_lightning.strategies.fsdp2 import _check_dtypes

    policy = tiny_policy()
    policy.transformer.blocks[0].bfloat16()
    _check_dtypes([*policy.blocks(), policy])  # each layer has its own
    policy.transformer.blocks[1].qkv.bfloat16()
    with pytest.raises(ValueError, match=r"trained weights of Block have several dtypes.*float32 \(.*bfloat16 \(qkv"):
        _check_dtypes([*policy.blocks(), policy])


def test_the_names_are_registered() -> None:
    trainer: L.Trainer = tiny_trainer(strategy="fsdp2_full")
    assert type(trainer.strategy).__name__ == "FSDP2Strategy"
    assert not trainer.strategy._save_distributed_checkpoint  # type: ignore[attr-defined]
