"""The metrics over images, batches and processes."""

from __future__ import annotations

import doctest
import random
from collections.abc import Sequence

import pytest

from varrl_lightning.algorithms.word_metrics import word_closeness
from varrl_lightning.metrics import text
from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy

VOCABULARY = ["hot", "tea", "open", "SALE", "now", "ope", "sal"]


def images(n: int, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    rng = random.Random(seed)
    wanted = [rng.choices(VOCABULARY, k=rng.randint(1, 4)) for _ in range(n)]
    return wanted, [rng.choices(VOCABULARY, k=rng.randint(0, 4)) for _ in range(n)]


def flat(wanted: Sequence[Sequence[str]], read: Sequence[Sequence[str]]) -> list[tuple[str, list[str]]]:
    return [(w.lower(), [r.lower() for r in rs]) for ws, rs in zip(wanted, read, strict=True) for w in ws]


def test_both_are_means_over_all_words() -> None:
    wanted, read = images(50)
    accuracy, ned = WordAccuracy(), NormalizedEditDistance()
    for metric in (accuracy, ned):
        metric.update(wanted, read)
    words = flat(wanted, read)
    assert accuracy.compute().item() == pytest.approx(sum(w in r for w, r in words) / len(words))
    assert ned.compute().item() == pytest.approx(sum(word_closeness([w], r)[0] for w, r in words) / len(words))
    assert 0.1 < accuracy.compute() < ned.compute() < 1


def test_an_image_counts_by_its_words() -> None:
    metric = WordAccuracy()
    metric.update([["a", "b", "c"], ["d"]], [["a", "b", "c"], []])
    assert metric.compute().item() == 0.75  # the mean over images would be .5


@pytest.mark.parametrize("kind", [WordAccuracy, NormalizedEditDistance])
def test_batches_and_processes_add_up(kind: type[WordAccuracy]) -> None:
    wanted, read = images(30)
    whole, first, second = kind(), kind(), kind()
    whole.update(wanted, read)
    first.update(wanted[:7], read[:7])
    second.update(wanted[7:20], read[7:20])
    second.update(wanted[20:], read[20:])
    # As across processes: the states are summed.
    first.merge_state(second)
    assert first.compute() == whole.compute()
    first.reset()
    first.update(wanted, read)
    assert first.compute() == whole.compute()


def test_lines_are_split_and_case_is_ignored() -> None:
    metric = WordAccuracy()
    metric.update([["Hot TEA"]], [["hot", "Tea now"]])
    assert metric.compute().item() == 1.0


def test_no_word_wanted_is_not_a_number() -> None:
    metric = WordAccuracy()
    metric.update([[]], [["tea"]])
    assert metric.compute().isnan()


def test_as_many_images_on_both_sides() -> None:
    with pytest.raises(ValueError, match="got the wanted words of 2 images and the read words of 1; expected as many"):
        WordAccuracy().update([["a"], ["b"]], [["a"]])


def test_the_examples_in_the_documentation() -> None:
    result = doctest.testmod(text)
    assert result.attempted > 0
    assert result.failed == 0
