"""FSDP2: two processes with a part of the weights each do what one does with all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from tiny import tiny_policy, tiny_trainer
from torch import Tensor

from tests.distributed import jobs_fsdp2
from tests.distributed.workers import Workers
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.strategies import parallel_of
from varrl_lightning.strategies.sharded_checkpoints import read_folder

Launch = Callable[[int], Workers]
BOUND = 1e-6
FAMILIES = ("lettering", "var", "switti", "infinity", "llm_prefix", "tokenflow")
OPTIONS: dict[str, dict[str, Any]] = {
    "micro-batches": {"micro_batches": 4},
    "lora": {"lora": True},
    "lean": {"micro_batches": 2, "gradient_checkpointing": True},
}


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@lru_cache
def alone(family: str, lora: bool = False) -> dict[str, Any]:
    """What one process comes to, with the whole batch at once."""
    return jobs_fsdp2.update("auto", 1, family, lora=lora)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_come_to_the_weights_of_one(workers: Launch, family: str, options: str) -> None:
    """Prefix and suffix updates with guidance, a KL to a reference and clipping; `lean` gathers as late as can be."""
    chosen = {name: value for name, value in OPTIONS[options].items() if (family, name) != ("lettering", "gradient_checkpointing")}
    wanted = alone(family, "lora" in chosen)
    strategy = "fsdp2_lean" if options == "lean" else "fsdp2"
    for found in workers(2)("tests.distributed.jobs_fsdp2:update", strategy=strategy, world_size=2, family=family, **chosen):
        assert furthest(wanted["weights"], found["weights"]) <= BOUND
        torch.testing.assert_close(found["norms"], wanted["norms"], rtol=1e-5, atol=0)
        assert max(wanted["norms"]) > 0.5  # so that clipping does something
        assert found["whole_after_backward"] == [[], [], []]
        if options == "lean":
            assert found["most_layers"] <= 1 < found["layers"]  # when another one is gathered


def test_one_process(workers: Launch) -> None:
    found = workers(1)("tests.distributed.jobs_fsdp2:update", strategy="fsdp2", world_size=1, family="lettering")[0]
    assert furthest(alone("lettering")["weights"], found["weights"]) <= BOUND


def test_adapters_in_float32_on_a_base_in_bfloat16(workers: Launch) -> None:
    """The frozen base is untouched, bit for bit; the adapter comes as close as rounding of the base's products lets it."""
    options: dict[str, Any] = {"lora": True, "dtype": "bfloat16", "until": 1}
    wanted = jobs_fsdp2.update("auto", 1, "var", **options)["weights"]
    for found in workers(2)("tests.distributed.jobs_fsdp2:update", strategy="fsdp2", world_size=2, family="var", **options):
        weights = found["weights"]
        assert {x.dtype for name, x in weights.items() if is_adapter(name)} == {torch.float32}
        assert all(torch.equal(x, weights[name]) for name, x in wanted.items() if not is_adapter(name))
        # B begins at zero. Rounding may turn the sign of a small gradient, and with it Adam's first step.
        moved, apart = (
            torch.cat([f(n).flatten() for n in wanted if "lora_B" in n]).norm()
            for f in (lambda n: wanted[n], lambda n, weights=weights: wanted[n] - weights[n])
        )
        assert 0 < apart <= 0.2 * moved


def test_all_gathers(workers: Launch) -> None:
    """A rollout of the 7 scales of a model of 2 layers, begun by a pass over styles and letters."""
    layers, passes = 2, 1 + 7
    gathered, sharded = (
        workers(2)("tests.distributed.jobs_fsdp2:rollout_gathers", strategy=name)[0] for name in ("fsdp2", "fsdp2_lean")
    )
    assert gathered == layers + 1  # each layer, and all the rest, once
    assert sharded == layers * passes + 1


# --- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [False, True], ids=["", "lora"])
@pytest.mark.parametrize("strategy", ["fsdp2", "fsdp2_full"])
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
    for strategy in ("fsdp2", "fsdp2_full"):
        workers(2)("tests.distributed.jobs_fsdp2:fit", **arguments, strategy=strategy, save="narrow.ckpt", width=16)
        outcomes = workers(2).outcomes(
            "tests.distributed.jobs_fsdp2:fit", **arguments, strategy=strategy, load="narrow.ckpt", width=32
        )
        for _, error in outcomes:
            assert error is not None
            assert "the checkpoint does not fit the model" in error
            assert "policy.transformer.norm.weight" in error


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
