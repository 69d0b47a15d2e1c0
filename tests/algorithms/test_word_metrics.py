"""CVTG-2K's definitions, read again and counted by hand."""

from __future__ import annotations

import random
from difflib import SequenceMatcher

import pytest

from varrl_lightning.algorithms.word_metrics import split_words, word_closeness, words_found


def levenshtein(x: str, y: str) -> int:
    """By the textbook."""
    if not x or not y:
        return len(x) + len(y)
    return min(
        levenshtein(x[1:], y) + 1,
        levenshtein(x, y[1:]) + 1,
        levenshtein(x[1:], y[1:]) + (x[0] != y[0]),
    )


def closeness_by_hand(wanted: str, read: list[str]) -> float:
    """Best ratio, the greatest string of equals; then 1 - distance / (longer + 1e-5)."""

    def ratio(other: str) -> tuple[float, str]:
        return SequenceMatcher(None, other, wanted).ratio(), other

    best = max(read or [""], key=ratio)
    return 1 - levenshtein(wanted, best) / (max(len(wanted), len(best)) + 1e-5)


def random_words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(count)]


def test_closeness_against_every_pair() -> None:
    rng = random.Random(0)
    for _ in range(300):
        wanted, read = random_words(rng, rng.randint(1, 3)), random_words(rng, rng.randint(0, 4))
        expected = [closeness_by_hand(word, read) for word in wanted]
        assert word_closeness(wanted, read) == pytest.approx(expected)


def test_the_match_is_difflibs_and_not_the_nearest() -> None:
    """The benchmark's numbers depend on it."""
    rng = random.Random(1)
    differs = 0
    for _ in range(300):
        (wanted,), read = random_words(rng, 1), random_words(rng, 4)
        nearest = max(1 - levenshtein(wanted, r) / (max(len(wanted), len(r)) + 1e-5) for r in read)
        found = word_closeness([wanted], read)[0]
        assert found <= nearest + 1e-9
        differs += found < nearest - 1e-9
    assert differs > 0


def test_words_found_is_membership() -> None:
    assert words_found(["go", "go", "home"], ["go"]) == 2
    assert words_found(["go"], ["gogo", "g o"]) == 0
    assert words_found([], ["go"]) == 0


def test_lines_are_lowered_and_split() -> None:
    assert split_words(["Hot  TEA", " now\n"]) == ["hot", "tea", "now"]


def test_nothing_read_is_next_to_nothing() -> None:
    """The benchmark puts an empty word there: 1 - 3 / (3 + 1e-5), not 0."""
    assert word_closeness(["tea"], []) == pytest.approx([1e-5 / 3], rel=1e-3)
