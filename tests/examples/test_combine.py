"""The example that trains under each `combine`. Costs about eight seconds: two updates, which the real OCR engine reads."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from varrl_lightning.algorithms.advantages import batch_advantages, group_advantages
from varrl_lightning.algorithms.vmr import standardised_sum


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import combine

    return combine


def test_shares_by_hand(example: ModuleType) -> None:
    """In one group b is half of a; in the other it goes against it, and the advantages of both count alike."""
    returns = {"a": torch.tensor([[0.0, 2.0], [0.0, 2.0]]), "b": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    advantages = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    found = example.shares(returns, {"a": 1.0, "b": 1.0}, advantages, standardised=False)
    assert found == pytest.approx({"a": (2 / 3 + 2) / 2, "b": (1 / 3 - 1) / 2})
    first = {name: values[:1] for name, values in returns.items()}
    assert example.shares(first, {"a": 1.0, "b": 1.0}, advantages[:1], standardised=True) == pytest.approx({"a": 0.5, "b": 0.5})
    assert example.shares(first, {"a": 1.0, "b": -3.0}, advantages[:1], standardised=True) == pytest.approx({"a": -0.5, "b": 1.5})


def test_terms_are_those_of_the_packages_advantages(example: ModuleType) -> None:
    """The shares explain the advantages: to move a reward's term changes them by its share."""
    generator = torch.Generator().manual_seed(0)
    returns = {name: scale * torch.randn(5, 8, generator=generator) for name, scale in (("a", 1.0), ("b", 100.0), ("c", 0.01))}
    weights = {"a": 1.0, "b": -0.5, "c": 2.0}
    summed = sum(weights[name] * values for name, values in returns.items())
    standardised = standardised_sum(returns, weights, eps=0.0)
    ways = ((group_advantages(summed, torch.ones(5, 8, dtype=torch.bool))[0], False), (batch_advantages(standardised)[0], True))
    for advantages, of_spread in ways:
        found = example.shares(returns, weights, advantages, standardised=of_spread)
        assert sum(found.values()) == pytest.approx(1)
    assert found["c"] == pytest.approx(4 / 5.25, abs=0.15), "standardised, each reward counts by the square of its weight"
    assert example.shares(returns, weights, ways[0][0], standardised=False)["b"] > 0.99, "not standardised, by its scale too"


def test_two_updates(example: ModuleType) -> None:
    before, after = example.train("gdpo", updates=2, prompts_at_once=2, validated=2)
    assert list(before) == ["ocr", "jpeg_size", "sharpness"]
    for measured in (before, after):
        assert sum(each.share for each in measured.values()) == pytest.approx(1)
        assert all(each.spread > 0 for each in measured.values())
    assert 0.5 < before["ocr"].mean < 2
    assert before["jpeg_size"] != after["jpeg_size"], "nothing was trained"
    text = example.table("gdpo", before, after)
    assert [line.split()[0] for line in text.splitlines()] == ["gdpo", "ocr", "jpeg_size", "sharpness"]
