"""Tensors are loaded where every name and shape fits, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.weights.stored import TENSORS
from varrl_lightning.weights.loading import differences, load_strictly, read_tensors


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.linear.bias.requires_grad_(False)
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def small_tensors() -> dict[str, Tensor]:
    return {"linear.weight": torch.arange(6.0).view(3, 2), "linear.bias": torch.ones(3), "count": torch.tensor([4, 5])}


def on_meta() -> Small:
    with torch.device("meta"):
        return Small()


@pytest.mark.parametrize("make", [Small, on_meta])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_fits_is_loaded(make: Callable[[], Small], dtype: torch.dtype | None) -> None:
    module, tensors = make(), small_tensors()
    load_strictly(module, tensors, "x.pth", dtype=dtype)
    assert all(torch.equal(x, tensors[name].to(x.dtype)) for name, x in module.state_dict().items())
    assert module.linear.weight.dtype == (dtype or torch.float32)
    assert module.count.dtype == torch.int64
    assert module.linear.weight.requires_grad
    assert not module.linear.bias.requires_grad


@pytest.mark.parametrize("make", [Small, on_meta])
def test_a_bf16_file_is_loaded_as_float32(make: Callable[[], Small]) -> None:
    module = make()
    load_strictly(module, {name: x.bfloat16() if x.is_floating_point() else x for name, x in small_tensors().items()}, "x.pth")
    assert module.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("make", [Small, on_meta])
def test_the_module_shares_no_memory_with_the_file(make: Callable[[], Small], tmp_path: Path) -> None:
    torch.save(small_tensors(), tmp_path / "x.pth")
    module, tensors = make(), read_tensors(tmp_path / "x.pth")
    load_strictly(module, tensors, "x.pth")
    for name, x in module.state_dict().items():
        x.zero_()
        assert torch.equal(tensors[name], small_tensors()[name])


def test_loading_keeps_the_parameters_that_an_optimizer_knows() -> None:
    module = Small()
    weight = module.linear.weight
    load_strictly(module, small_tensors(), "x.pth")
    assert module.linear.weight is weight


def test_transposed_tensors_are_loaded_contiguously() -> None:
    module = on_meta()
    load_strictly(module, small_tensors() | {"linear.weight": torch.arange(6.0).view(2, 3).T}, "x.pth")
    assert module.linear.weight.is_contiguous()
    assert module.linear.weight.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("make", [Small, on_meta])
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(make: Callable[[], Small]) -> None:
    module = make()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    tensors = small_tensors() | {"linear.weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    del tensors["count"]
    with pytest.raises(ValueError, match="does not fit") as error:
        load_strictly(module, tensors, "some/file.pth")
    assert str(error.value).splitlines() == [
        "some/file.pth does not fit Small:",
        "  misshaped linear.weight: [2, 3] in the file, [3, 2] in the model",
        "  missing count [2]",
        "  unexpected extra [1]",
    ]
    assert all(x.is_meta or torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_a_long_list_of_differences_is_cut() -> None:
    with pytest.raises(ValueError, match=r"\.\.\. and 13 more$"):
        load_strictly(Small(), {str(i): torch.zeros(1) for i in range(30)}, "x.pth")


def test_an_integer_is_no_float() -> None:
    with pytest.raises(ValueError, match=r"count is torch\.float32 in the file, torch\.int64 in the model"):
        load_strictly(Small(), small_tensors() | {"count": torch.zeros(2)}, "x.pth")


def test_names_may_be_left_out_of_the_file() -> None:
    module = Small()
    extra = {"blocks.0.zero_k_bias": torch.zeros(1), "mask": torch.zeros(1)}
    load_strictly(module, small_tensors() | extra, "x.pth", ignore=("*.zero_k_bias", "mask"))
    assert torch.equal(module.linear.weight, small_tensors()["linear.weight"])
    with pytest.raises(ValueError, match="unexpected mask"):
        load_strictly(module, small_tensors() | extra, "x.pth", ignore=("*.zero_k_bias", "mas"))


def test_what_no_file_holds_must_not_stay_on_meta() -> None:
    module = on_meta()
    module.register_buffer("table", torch.zeros(1, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="on the meta device that no file holds: table"):
        load_strictly(module, small_tensors(), "x.pth")


def test_no_differences() -> None:
    assert differences(TENSORS, TENSORS) == []
