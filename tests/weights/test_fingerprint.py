"""Checksums tell tensors apart by any bit; a fingerprint tells models apart by names, shapes and numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from varrl_lightning.weights.fingerprint import checksums, fingerprint


def by_hand(words: list[int]) -> str:
    total, placed = sum(words), sum(i * w for i, w in enumerate(words, start=1))
    return f"{total % 2**64:016x}{placed % 2**64:016x}"


def test_a_checksum_is_fletchers_sum_over_bit_patterns() -> None:
    floats = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    words = [0x3F800000, 0xC0000000 - 2**32, 0x3F000000, 0x40400000]
    assert checksums({"x": floats}) == {"x": f"float32 [2, 2] {by_hand(words)}"}
    assert checksums({"x": floats.bfloat16()}) == {"x": f"bfloat16 [2, 2] {by_hand([0x3F80, 0xC000 - 2**16, 0x3F00, 0x4040])}"}
    assert checksums({"x": torch.tensor([True, False])})["x"] == f"bool [2] {by_hand([1, 0])}"
    assert checksums({"x": torch.zeros(0)})["x"] == f"float32 [0] {by_hand([])}"
    assert checksums({}) == {}


def test_a_checksum_of_many_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randint(-(2**31), 2**31, (1000,), dtype=torch.int32)
    monkeypatch.setattr("varrl_lightning.weights.fingerprint.CHUNK_IN_CACHE", 7)
    assert checksums({"x": x})["x"] == f"int32 [1000] {by_hand(x.tolist())}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_a_bit_anywhere_and_two_entries_swapped_change_the_checksum(dtype: torch.dtype) -> None:
    x = torch.randint(1, 200, (6, 5)).to(dtype)
    x[0, 0], x[5, 4] = 1, 2
    seen = {checksums({"x": x})["x"]}
    raw = x.view(torch.uint8).view(-1)
    for byte in range(raw.numel()):
        for bit in range(8):
            raw[byte] ^= 1 << bit
            seen.add(checksums({"x": x})["x"])
            raw[byte] ^= 1 << bit
    assert len(seen) == 1 + 8 * raw.numel()
    swapped: Tensor = x.clone()
    swapped[0, 0], swapped[5, 4] = x[5, 4].clone(), x[0, 0].clone()
    assert checksums({"x": swapped})["x"] not in seen


def test_what_is_sharded_is_left_out() -> None:
    whole, empty = torch.ones(3), torch.ones(0)
    empty.ds_id = 5  # type: ignore[attr-defined]  # how ZeRO-3 marks a weight whose values are elsewhere
    assert list(checksums({"whole": whole, "elsewhere": empty, "nowhere": torch.ones(2, device="meta")})) == ["whole"]


def test_a_checksum_of_a_sample_takes_evenly_spaced_entries() -> None:
    x = torch.arange(100, dtype=torch.int32)
    assert checksums({"x": x}, 10)["x"] == f"int32 [100] {by_hand(list(range(0, 100, 10)))}"
    assert checksums({"x": x}, 1000) == checksums({"x": x})


def weights() -> dict[str, Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2, 3])}


@pytest.mark.parametrize(
    "changed",
    [
        lambda w: w | {"a": w["a"] + torch.eye(2, 3) * 1e-6},
        lambda w: w | {"a": w["a"].reshape(3, 2)},
        lambda w: w | {"b": w["b"].flip(0)},
        lambda w: {"c" if name == "a" else name: x for name, x in w.items()},
        lambda w: {"a": w["a"]},
    ],
    ids=["number", "shape", "order of entries", "name", "absent"],
)
def test_a_fingerprint_tells_other_weights(changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    assert fingerprint(changed(weights())) != fingerprint(weights())


def test_a_fingerprint_asks_neither_for_order_nor_for_precision_nor_for_layout() -> None:
    given = weights()
    assert fingerprint(dict(reversed(given.items()))) == fingerprint(given)
    assert fingerprint(given | {"a": given["a"].bfloat16()}) == fingerprint(given)  # which holds these numbers exactly
    assert fingerprint(given | {"a": given["a"].T.contiguous().T}) == fingerprint(given)


def test_a_fingerprint_of_a_sample_sees_what_is_sampled() -> None:
    x = torch.zeros(100)
    other = x.clone()
    other[10] = 1
    unsampled = x.clone()
    unsampled[11] = 1
    assert fingerprint({"x": other}, 10) != fingerprint({"x": x}, 10) == fingerprint({"x": unsampled}, 10)
