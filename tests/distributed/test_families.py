"""Every family on two processes that hold a part of the weights each: they do what one does with all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch

from tests.distributed import jobs_families
from tests.distributed.cases import usually
from tests.distributed.jobs import furthest
from tests.distributed.workers import Workers
from tests.tiny import SCHEDULE
from varrl_lightning.policies.lora import is_adapter

Launch = Callable[[int], Workers]
BOUND = 1e-6
FAMILIES = ("lettering", "var", "switti", "infinity", "llm_prefix", "tokenflow")
LEAN: dict[str, Any] = {"micro_batches": 2, "gradient_checkpointing": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "fsdp2": {"strategy": "fsdp2", "micro_batches": 4},
    "fsdp2 of an adapter": {"strategy": "fsdp2", "lora": True},
    "lean fsdp2": {"strategy": "fsdp2_lean", **LEAN},
    "zero3": {"strategy": "zero3", **LEAN},
    "zero3 of an adapter": {"strategy": "zero3", "lora": True, **LEAN},
}
USUAL = [
    ("lettering", "lean fsdp2"),
    ("var", "fsdp2"),
    ("switti", "lean fsdp2"),  # the one whose layers stay gathered after what they remember of a text, if nothing lets them go
    ("switti", "fsdp2 of an adapter"),
    ("infinity", "zero3"),
    ("llm_prefix", "zero3"),
    ("tokenflow", "zero3 of an adapter"),
]
"""Each family and each option; the others are slow tests."""


@cache
def alone(family: str, lora: bool = False) -> dict[str, Any]:
    """What one process comes to, with the whole batch at once."""
    return jobs_families.update(None, 1, family, lora=lora)


@pytest.mark.parametrize(("family", "options"), usually(USUAL, of=product(FAMILIES, OPTIONS)))
def test_two_processes_come_to_the_weights_of_one(workers: Launch, family: str, options: str) -> None:
    """Prefix and suffix updates with guidance, a KL to a reference and clipping; `lean` gathers as late as can be."""
    chosen = {name: value for name, value in OPTIONS[options].items() if (family, name) != ("lettering", "gradient_checkpointing")}
    if chosen["strategy"] == "zero3":
        pytest.importorskip("deepspeed")
    wanted = alone(family, "lora" in chosen)
    for found in workers(2)("tests.distributed.jobs_families:update", world_size=2, family=family, **chosen):
        assert furthest(wanted["weights"], found["weights"]) <= BOUND
        torch.testing.assert_close(found["norms"], wanted["norms"], rtol=1e-5, atol=0)
        assert max(wanted["norms"]) > jobs_families.MAX_NORM  # so that clipping does something
        assert found["whole_after_backward"] == [[], [], []]
        if chosen["strategy"] == "fsdp2_lean":
            assert found["most_layers"] <= 1 < found["layers"]  # when another one is gathered


def test_adapters_in_float32_on_a_base_in_bfloat16(workers: Launch) -> None:
    """The frozen base is untouched, bit for bit; the adapter comes as close as rounding of the base's products lets it."""
    options: dict[str, Any] = {"lora": True, "dtype": "bfloat16", "until": 1}
    wanted = jobs_families.update(None, 1, "var", **options)["weights"]
    for found in workers(2)("tests.distributed.jobs_families:update", strategy="fsdp2", world_size=2, family="var", **options):
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
    """A rollout of a model of 2 layers, begun by a pass over styles and letters."""
    layers, passes = 2, 1 + len(SCHEDULE)
    gathered, sharded = (
        workers(2)("tests.distributed.jobs_families:rollout_gathers", strategy=name)[0] for name in ("fsdp2", "fsdp2_lean")
    )
    assert gathered == layers + 1  # each layer, and all the rest, once
    assert sharded == layers * passes + 1
