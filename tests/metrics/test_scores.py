"""Means of scores over images and by category, and what the paper's tables say."""

from __future__ import annotations

import doctest
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from varrl_lightning.metrics import paper, scores
from varrl_lightning.metrics.scores import CategoryMean, CLIPScore, MeanScore, canonical_category
from varrl_lightning.types import Prompt, Scores

NAN = math.nan


def test_the_mean_leaves_out_what_has_no_score() -> None:
    metric = MeanScore()
    metric.update(torch.tensor([1.0, NAN, 4.0]))
    metric.update(torch.tensor([math.inf, 1.0], dtype=torch.bfloat16))
    assert metric.compute().item() == 2.0
    assert metric.unscored.item() == 2
    metric.reset()
    metric.update(torch.tensor([NAN]))
    assert metric.compute().isnan()


def test_by_category_against_sorting_by_hand() -> None:
    rng = random.Random(0)
    metric, halves = CategoryMean(), (CategoryMean(), CategoryMean())
    seen: dict[str, list[float]] = {c: [] for c in paper.HPSV3_CATEGORIES}
    for batch in range(40):
        names = rng.choices(paper.HPSV3_CATEGORIES[:-1], weights=range(1, 12), k=5)
        values = [rng.choice([rng.uniform(-3, 12), NAN]) for _ in names]
        for name, value in zip(names, values, strict=True):
            seen[name] += [] if math.isnan(value) else [value]
        for m in (metric, halves[batch % 2]):
            m.update(torch.tensor(values), [rng.choice([n, n.lower(), n.replace(" ", "_").upper()]) for n in names])
    flat = [v for vs in seen.values() for v in vs]
    found = metric.compute()
    assert list(found) == ["All", *paper.HPSV3_CATEGORIES]
    assert found["All"].item() == pytest.approx(sum(flat) / len(flat), rel=1e-5)
    for name in paper.HPSV3_CATEGORIES[:-1]:
        assert found[name].item() == pytest.approx(sum(seen[name]) / len(seen[name]), rel=1e-5)
    assert found["Others"].isnan()
    assert metric.unscored.item() == 200 - len(flat)
    macro = sum(found[n].item() for n in paper.HPSV3_CATEGORIES[:-1]) / 11
    assert abs(macro - found["All"].item()) > 1e-3  # categories of different sizes: another mean
    halves[0].merge_state(halves[1])
    for name, value in halves[0].compute().items():
        torch.testing.assert_close(value, found[name], equal_nan=True)


def test_an_unknown_category_adds_nothing() -> None:
    metric = CategoryMean()
    with pytest.raises(
        ValueError, match=r"no category 'naturel scenery'\. Did you mean 'Natural Scenery'\? There are: Characters, Arts,"
    ):
        metric.update(torch.tensor([1.0, 2.0]), ["Food", "naturel scenery"])
    with pytest.raises(ValueError, match=r"no category None\. There are: "):
        metric.update(torch.tensor([1.0]), [None])
    assert metric.images.sum() == 0
    with pytest.raises(ValueError, match="got 2 scores and 1 categories; expected one category per score"):
        metric.update(torch.tensor([1.0, 2.0]), ["Food"])


@pytest.mark.parametrize("names", [[], ["a", "A"], ["all", "b"]])
def test_categories_are_different(names: list[str]) -> None:
    with pytest.raises(ValueError, match="categories need different names, at least one and none called All"):
        CategoryMean(names)


def test_place_of_a_category() -> None:
    assert canonical_category("natural-scenery", paper.HPSV3_CATEGORIES) == 5


class Brightness(nn.Module):
    """A scorer that is a module with a weight: nothing of it may become part of a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        long = torch.tensor([float(len(p.text)) for p in prompts])
        return Scores(self.weight * images.mean(dim=(1, 2, 3)) + long)


def test_clip_score_is_the_mean_over_images() -> None:
    images, prompts = torch.rand(5, 3, 4, 4), [Prompt("a" * n) for n in (1, 2, 3, 4, 5)]
    metric = CLIPScore(Brightness())
    metric.update(images[:4], prompts[:4])
    metric.update(images[4:], prompts[4:])
    assert metric.compute().item() == pytest.approx(2 * images.mean().item() + 3, rel=1e-5)
    assert not metric.compute().requires_grad
    assert not metric.state_dict()
    assert not list(metric.parameters())


def test_the_paper_s_tables_are_whole() -> None:
    assert [len(row) for row in paper.TABLE_1.values()] == [3] * 13
    assert [len(row) for row in paper.TABLE_2.values()] == [13] * 13
    assert len(paper.HPSV3_CATEGORIES) == 12
    assert [len(row) for row in paper.ABLATIONS.values()] == [3] * 15
    # What the text of the paper says of its tables: section 4.2.2 and 4.3.2.
    before, after = paper.TABLE_1["NextFlow"], paper.TABLE_1["NextFlow-RL"]
    assert [round(b - a, 4) for a, b in zip(before[:2], after[:2], strict=True)] == [0.2305, 0.1265]
    columns = ("All", *paper.HPSV3_CATEGORIES)
    best = {c: max(paper.TABLE_2, key=lambda row, i=i: paper.TABLE_2[row][i]) for i, c in enumerate(columns)}
    first = {"All", "Architecture", "Animals", "Natural Scenery", "Plants", "Food", "Others"}
    assert {c for c, row in best.items() if row == "NextFlow-RL"} == first
    assert best["Characters"] == best["Design"] == "Kolors"
    gains = zip(paper.TABLE_2["NextFlow"], paper.TABLE_2["NextFlow-RL"], strict=True)
    assert all(b > a for a, b in gains)


@pytest.mark.parametrize("row", ["NextFlow", "NextFlow-RL"])
def test_all_is_the_mean_of_the_columns_for_nextflow(row: str) -> None:
    """Which catches a number that was copied wrong, too."""
    overall, *columns = paper.TABLE_2[row]
    assert overall == pytest.approx(sum(columns) / 12, abs=0.005)


def test_the_examples_in_the_documentation() -> None:
    result = doctest.testmod(scores)
    assert result.attempted > 0
    assert result.failed == 0
