import random
from functools import cache
from itertools import combinations

import pytest

from varrl_lightning.algorithms.ocr_score import edit_distance, ld, ocr_score

Read = list[tuple[str, float]]
EPSILON = 1e-5


@cache
def _edits(x: str, y: str) -> int:
    if not x or not y:
        return len(x) + len(y)
    return min(_edits(x[1:], y) + 1, _edits(x, y[1:]) + 1, _edits(x[1:], y[1:]) + (x[0] != y[0]))


def _ld(x: str, y: str) -> float:
    return 1 - _edits(x, y) / (max(len(x), len(y)) + EPSILON)


def _reward(G: list[str], P: Read, match: str, bag: str, duplicates: str) -> float:
    """Eq. 11-15 word by word: every wanted copy of a word looks for itself, in order."""
    comp = sim = 0.0
    for k, g in enumerate(G):
        copy = G[:k].count(g)
        equal = [s for p, s in P if p == g]
        if equal and (duplicates == "set" or copy < len(equal)):
            comp += min(equal)
        ranked = list(P)
        ranked.sort(key=lambda ps: (-_ld(g, ps[0]), -ps[1]) if match == "ld" else (-_ld(g, ps[0]) * ps[1], 0))
        place = 0 if duplicates == "set" else copy
        if place < len(ranked):
            sim += _ld(g, ranked[place][0]) * ranked[place][1]
    letters_g, letters_p = "".join(G), "".join(p for p, _ in P)
    differences = [letters_p.count(c) - letters_g.count(c) for c in set(letters_g + letters_p)]
    extra, missing = sum(d for d in differences if d > 0), -sum(d for d in differences if d < 0)
    distance = extra + missing if bag == "symmetric" else max(extra, missing)
    return comp / len(G) + sim / len(G) - 0.6 * distance / (len(letters_g) + len(letters_p))


def _longest_in_order(G: list[str], P: list[str]) -> int:
    def is_read(words: tuple[str, ...]) -> bool:
        rest = iter(P)
        return all(word in rest for word in words)

    return max(n for n in range(len(G) + 1) if any(map(is_read, combinations(G, n))))


def _extra(G: list[str], P: Read) -> int:
    rest = list("".join(G))
    letters = "".join(p for p, _ in P)
    return sum(1 for c in letters if c not in rest or rest.remove(c))


@pytest.mark.parametrize("duplicates", ["set", "multiset"])
@pytest.mark.parametrize("bag", ["symmetric", "max"])
@pytest.mark.parametrize("match", ["ld", "ld*conf"])
def test_reward_by_loops(match: str, bag: str, duplicates: str) -> None:
    draw = random.Random(8)

    def word() -> str:
        return "".join(draw.choices("abc", k=draw.randint(1, 4)))

    for _ in range(200):
        G = [word() for _ in range(draw.randint(1, 4))]
        G += draw.choices(G, k=draw.randint(0, 2))
        P = [(draw.choice([word(), draw.choice(G)]), round(draw.random(), 2)) for _ in range(draw.randint(0, 5))]
        score = ocr_score(G, P, match=match, bag=bag, duplicates=duplicates)
        assert score.reward == pytest.approx(_reward(G, P, match, bag, duplicates))
        assert score.reward == pytest.approx(score.completeness + score.similarity - score.penalty)
        assert -0.6 <= score.reward <= 2
        assert score.in_order == _longest_in_order(G, [p for p, _ in P]) / len(G)
        assert score.extra_ratio == pytest.approx(_extra(G, P) / len("".join(G)))


def test_edit_distance_against_its_definition() -> None:
    draw = random.Random(9)
    for _ in range(200):
        x, y = ("".join(draw.choices("ab", k=draw.randint(0, 6))) for _ in range(2))
        assert edit_distance(x, y) == _edits(x, y)
        assert ld(x, y) == _ld(x, y)
    assert ld("", "") == 1.0


def test_a_perfect_image_and_an_empty_one() -> None:
    perfect = ocr_score(["Hello World"], [("hello", 1.0), ("WORLD", 1.0)])
    assert (perfect.reward, perfect.extra_ratio, perfect.in_order) == (2.0, 0.0, 1.0)
    for bag in ("symmetric", "max"):
        empty = ocr_score(["hello"], [], bag=bag)
        assert (empty.completeness, empty.similarity, empty.penalty) == (0.0, 0.0, 0.6)
        assert (empty.reward, empty.extra_ratio, empty.in_order) == (-0.6, 0.0, 0.0)


def test_eq_14_is_not_monotone_and_the_option_is() -> None:
    better, worse = [("open", 0.1), ("opem", 0.99)], [("opem", 0.99)]
    assert ocr_score(["open"], better).reward == pytest.approx(0.0, abs=1e-5)
    assert ocr_score(["open"], worse).reward == pytest.approx(0.5925, abs=1e-5)
    assert ocr_score(["open"], better, match="ld*conf").similarity == pytest.approx(0.7425, abs=1e-5)


def test_identical_predictions_count_once_at_their_lowest_confidence() -> None:
    score = ocr_score(["go"], [("go", 0.9), ("go", 0.4)])
    assert score.completeness == 0.4
    assert score.similarity == 0.9, "of equal matches the most confident"


def test_a_word_wanted_twice_but_read_once() -> None:
    once = [("go", 0.8)]
    assert ocr_score(["go", "go"], once).completeness == 0.8
    assert ocr_score(["go", "go"], once, duplicates="multiset").completeness == 0.4
    assert ocr_score(["go", "go"], once, duplicates="multiset").similarity == 0.4


def test_junk_is_nearly_free_and_its_ratio_is_logged() -> None:
    score = ocr_score(["abcd" * 5], [("abcd" * 5, 1.0), ("z" * 80, 1.0)])
    assert score.reward == pytest.approx(2 - 0.6 * 80 / 120)
    assert score.extra_ratio == 4.0


def test_word_order_changes_the_log_only() -> None:
    right = ocr_score(["a", "b", "c"], [("a", 1.0), ("b", 1.0), ("c", 1.0)])
    wrong = ocr_score(["a", "b", "c"], [("c", 1.0), ("a", 1.0), ("b", 1.0)])
    assert right.reward == wrong.reward == 2.0
    assert (right.in_order, wrong.in_order) == (1.0, pytest.approx(2 / 3))


def test_text_is_normalised_lowered_and_split_on_both_sides() -> None:
    full_width, ligature = "ＯＰＥＮ\u3000１２", "ﬁne"
    assert ocr_score([full_width, ligature], [("Open 12", 0.5), ("FINE", 0.5)]).completeness == 0.5
    assert ocr_score(["Open"], [("open", 1.0)], case="keep").completeness == 0.0
    assert ocr_score(["it's,"], [("its", 1.0)]).completeness == 0.0, "punctuation stays"


def test_confidence_may_round_up_but_not_exceed_1() -> None:
    assert ocr_score(["a"], [("a", 1 + 5e-7)]).reward == 2.0


def test_errors_name_value_and_range() -> None:
    with pytest.raises(ValueError, match=r"needs at least one word to be rendered, got \[' '\]"):
        ocr_score([" "], [("a", 1.0)])
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.5"):
        ocr_score(["a"], [("a", 1.5)])
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got 1.0001"):
        ocr_score(["a"], [("a", 1.0001)])
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\], got nan"):
        ocr_score(["a"], [("a", float("nan"))])
    with pytest.raises(ValueError, match="lam must be >= 0, got -1"):
        ocr_score(["a"], [], lam=-1.0)
