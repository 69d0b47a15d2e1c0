"""Somebody's DataLoader under DDP: Lightning gives each process other rows, and all of them are one update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distributed.jobs_drop_in import ROWS, SPEC, alone, drawn_alone
from tests.distributed.workers import Workers
from tests.tiny import weights
from varrl_lightning.module import VARGRPO

JOBS = "tests.distributed.jobs_drop_in"


def test_what_each_process_is_given_is_one_batch_of_all(workers: Callable[[int], Workers]) -> None:
    (mine, first, reward), (others, second, _) = workers(2)(f"{JOBS}:fit")
    assert torch.equal(mine, others)
    assert sorted(first[0] + first[1] + second[0] + second[1]) == sorted(row["caption"] for row in ROWS)
    together = alone([[*a, *b] for a, b in zip(first, second, strict=True)])
    torch.testing.assert_close(mine, together, atol=1e-6, rtol=0)
    assert -1 < reward < 1


def test_a_stream_that_is_the_same_everywhere_is_not_taken_twice(workers: Callable[[int], Workers]) -> None:
    (mine, first, _), (others, second, _) = workers(2)(f"{JOBS}:fit", stream=True, steps=2)
    assert torch.equal(mine, others)
    assert first == second
    torch.testing.assert_close(mine, alone(first), atol=1e-6, rtol=0)


STONE, RIVER, BREAD = (row["caption"] for row in ROWS[:3])


@pytest.mark.parametrize(
    ("kind", "options", "updates", "warns"),
    [
        pytest.param("sampler", {}, [[STONE] * 2] * 2, False, id="rows that a sampler gave each of them are theirs"),
        pytest.param("stream", {}, [[STONE], [RIVER]], True, id="one stream is shared, and said to be"),
        pytest.param("stream", {"equal_batches": "shared"}, [[STONE], [RIVER]], False, id="the user says: shared"),
        pytest.param("stream", {"equal_batches": "separate"}, [[STONE] * 2, [RIVER] * 2], False, id="the user says: separate"),
        pytest.param("own streams", {}, [[STONE, RIVER], [BREAD] * 2], False, id="different ones before"),
        pytest.param("package", {"equal_batches": "separate"}, [[STONE], [RIVER]], False, id="those of the package are shared"),
    ],
)
def test_equal_batches(
    workers: Callable[[int], Workers], kind: str, options: dict[str, str], updates: list[list[str]], warns: bool
) -> None:
    mine, others = workers(2)(f"{JOBS}:equal", kind=kind, **options)
    assert mine["updates"] == others["updates"] == updates
    assert torch.equal(mine["weights"], others["weights"])
    assert mine["counters"] == others["counters"]
    assert mine["counters"]["separate_batches"] == (kind == "own streams")
    assert bool(mine["said"]) == warns


def test_batches_that_are_said_to_be_shared_must_be(workers: Callable[[int], Workers]) -> None:
    refused = {"by": f"{JOBS}:equal", "kind": "own streams", "equal_batches": "shared"}
    for said in workers(2)("tests.distributed.jobs:refused", **refused):
        assert "rank 1 was given other prompts than rank 0 in rollout 0" in said


def test_the_folder_of_a_sharded_run_is_loaded_in_a_plain_script(workers: Callable[[int], Workers], tmp_path: Path) -> None:
    found, _ = workers(2)(f"{JOBS}:sharded", folder=tmp_path / "sharded")
    loaded = VARGRPO.load_from_checkpoint(tmp_path / "sharded")
    assert torch.equal(weights(loaded), found)
    assert (loaded.rollouts_done, loaded.hparams["policy"]) == (2, SPEC)
    with pytest.raises(ValueError, match="is no folder of a sharded run"):
        VARGRPO.load_from_checkpoint(tmp_path)


def test_each_process_draws_what_it_is_given(workers: Callable[[int], Workers]) -> None:
    """Two batches, the second of one row, for one process and one batch for the other."""
    found = workers(2)(f"{JOBS}:predict", rows=5, batch_size=2)
    assert [[len(batch) for batch in pictures] for pictures in found] == [[2, 1], [2]]
    for rank, pictures in enumerate(found):
        captions = [row["caption"] for row in ROWS[:5][rank::2]]
        alone_each = torch.cat([drawn_alone([caption]) for caption in captions])
        torch.testing.assert_close(torch.cat(pictures), alone_each, atol=1e-3, rtol=0)


def test_sharded_weights_cannot_draw_what_each_process_is_given(workers: Callable[[int], Workers]) -> None:
    for said in workers(2)("tests.distributed.jobs:refused", by=f"{JOBS}:predict", rows=3, batch_size=1, strategy="fsdp2"):
        assert "weights are sharded over the processes, which sample together" in said
