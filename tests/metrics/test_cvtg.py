"""CVTG-2K's Word Accuracy and NED, whole: prompts to numbers, against the benchmark's script read independently."""

from __future__ import annotations

import difflib
import random

import numpy as np
import pytest

from varrl_lightning.algorithms.word_metrics import cvtg_words, split_words, word_closeness
from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy

CASES = 800


def between_quotes(prompt: str) -> list[str]:
    """Walk from quote to quote: what lies between the 1st and 2nd, 3rd and 4th, ...; none of it holds a line break."""
    words: list[str] = []
    at = 0
    while (start := prompt.find("'", at)) >= 0 and (end := prompt.find("'", start + 1)) >= 0:
        inside = prompt[start + 1 : end]
        if "\n" in inside:
            at = start + 1  # the dot of the script's pattern stops there
            continue
        words += inside.lower().split()
        at = end + 1
    return words


def lev(x: str, y: str) -> int:
    table = np.zeros((len(x) + 1, len(y) + 1), int)
    table[:, 0], table[0] = range(len(x) + 1), range(len(y) + 1)
    for i in range(1, len(x) + 1):
        for j in range(1, len(y) + 1):
            changed = table[i - 1, j - 1] + (x[i - 1] != y[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, changed)
    return int(table[-1, -1])


def closeness(x: str, y: str) -> float:
    return 1 - lev(x, y) / (max(len(x), len(y)) + 1e-5)


def by_the_script(prompt: str, lines: list[str]) -> tuple[list[bool], list[float]]:
    read = [word for line in lines for word in line.lower().split()] or [""]
    wanted = between_quotes(prompt)
    # get_close_matches: greatest ratio, of equals the greatest word; the candidate is the first sequence.
    best = [max(read, key=lambda r: (difflib.SequenceMatcher(None, r, w).ratio(), r)) for w in wanted]
    return [w in read for w in wanted], [closeness(w, b) for w, b in zip(wanted, best, strict=True)]


def random_case(rng: random.Random) -> tuple[str, list[str]]:
    """Words of few letters, and readings of them with errors, so that near misses and ties abound."""

    def word() -> str:
        return "".join(rng.choices("abAB", k=rng.randint(1, 6)))

    quoted = [" ".join(word() for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 4))]
    prompt = " and ".join(f"a sign '{q}'" for q in quoted) + rng.choice(["", "", " that doesn't lie", " ''", " 'a\nb'"])
    asked = [w for q in quoted for w in q.split()]
    lines = [
        " ".join(rng.sample(asked, rng.randint(0, len(asked)))) if rng.random() < 0.4 else word() for _ in range(rng.randint(0, 5))
    ]
    return prompt, [line.replace("a", rng.choice("aab")) for line in lines]


def cases(n: int = CASES, seed: int = 0) -> list[tuple[str, list[str]]]:
    rng = random.Random(seed)
    return [random_case(rng) for _ in range(n)]


def test_the_words_are_the_scripts() -> None:
    for prompt, _ in cases():
        assert split_words(cvtg_words(prompt)) == between_quotes(prompt), prompt


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("'Hot Tea' and 'OPEN'", ("Hot Tea", "OPEN")),
        ("it doesn't say 'open'", ("t say ",)),  # the benchmark's own trap
        ("''  ' ' 'a'", ("a",)),
        ('"double" and ‘curly’', ()),
        ("one ' only", ()),
    ],
)
def test_straight_single_quotes_in_turn(text: str, words: tuple[str, ...]) -> None:
    assert cvtg_words(text) == words


def test_random_cases_one_by_one_and_all_together() -> None:
    accuracy, ned = WordAccuracy(), NormalizedEditDistance()
    found: list[bool] = []
    close: list[float] = []
    differs = 0
    for prompt, lines in cases():
        hits, values = by_the_script(prompt, lines)
        wanted, read = split_words(cvtg_words(prompt)), split_words(lines)
        assert word_closeness(wanted, read) == pytest.approx(values, abs=1e-12), (prompt, lines)
        differs += word_closeness(wanted, read) != word_closeness(wanted, read, "levenshtein")
        accuracy.update([cvtg_words(prompt)], [lines])
        ned.update([cvtg_words(prompt)], [lines])
        found += hits
        close += values
    assert differs > CASES / 20  # where difflib's word is not the nearest one
    assert accuracy.compute().item() == pytest.approx(sum(found) / len(found), abs=1e-6)
    assert ned.compute().item() == pytest.approx(float(np.mean(close)), abs=1e-6)


def test_the_nearest_word_by_choice() -> None:
    nearest, default = NormalizedEditDistance(match="levenshtein"), NormalizedEditDistance()
    values = []
    for prompt, lines in cases(300, seed=1):
        wanted, read = split_words(cvtg_words(prompt)), split_words(lines) or [""]
        values += [max(closeness(w, r) for r in read) for w in wanted]
        nearest.update([wanted], [lines])
        default.update([wanted], [lines])
    assert nearest.compute().item() == pytest.approx(float(np.mean(values)), abs=1e-6)
    assert nearest.compute() > default.compute()
