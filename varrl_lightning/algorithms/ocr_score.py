"""The OCR reward (Eq. 11-15): how much of the wanted text can be read, and how much else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import Levenshtein

from varrl_lightning.types.normal_form import Case, normal_words

_EPSILON = 1e-5
_ROUNDING = 1e-6

Prediction = tuple[str, float]
"""A word that was read, and how certain the reader is of it, in [0, 1]."""


@dataclass(frozen=True)
class OCRScore:
    """Eq. 15 and its parts.

    Args:
        reward: completeness + similarity - penalty, within [-lam, 2].
        completeness: Comp, in [0, 1].
        similarity: Sim, in [0, 1].
        penalty: Pen, in [0, lam].
        extra_ratio: characters read beyond the wanted ones / wanted characters; for the log, because Pen forgives much of it.
        in_order: share of the wanted words that are read in the wanted order; for the log, because the reward ignores order.

    Examples:
        >>> ocr_score(["OPEN"], [("open", 0.5)])
        OCRScore(reward=1.0, completeness=0.5, similarity=0.5, penalty=0.0, extra_ratio=0.0, in_order=1.0)
    """

    reward: float
    completeness: float
    similarity: float
    penalty: float
    extra_ratio: float
    in_order: float


def edit_distance(x: str, y: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions count 1 each.

    Examples:
        >>> edit_distance("kitten", "sitting")  # k to s, e to i, and a g
        3
    """
    return Levenshtein.distance(x, y)


def ld(x: str, y: str) -> float:
    """Return the normalised Levenshtein score (Eq. 11), in (0, 1]: LD = 1 - EditDist / (max(|x|, |y|) + eps).

    Examples:
        >>> round(ld("tea", "tee"), 3)  # one letter of three differs
        0.667
    """
    return 1 - edit_distance(x, y) / (max(len(x), len(y)) + _EPSILON)


def completeness(wanted: Sequence[str], read: Sequence[Prediction], duplicates: Literal["set", "multiset"] = "set") -> float:
    """Return the share of the wanted words that are read exactly, each at the lowest confidence it was read with (Eq. 12).

        Comp = 1/N * sum_g 1{g in P} * min_{p_i = g} s_i

    Args:
        duplicates: `set` counts a word that is wanted twice twice, however often it was read; `multiset` no more often than it was
            read.

    Examples:
        `open` was read twice, once with confidence 0.5; `cafe` was not read exactly:

        >>> completeness(["open", "cafe"], [("open", 0.9), ("open", 0.5), ("cofe", 0.8)])  # (0.5 + 0) / 2
        0.25
        >>> completeness(["ha", "ha"], [("ha", 1.0)]), completeness(["ha", "ha"], [("ha", 1.0)], duplicates="multiset")
        (1.0, 0.5)
    """
    confidences: dict[str, list[float]] = {}
    for word, confidence in read:
        confidences.setdefault(word, []).append(confidence)
    total = 0.0
    for word, times in Counter(wanted).items():
        readings = confidences.get(word, [])
        counted = times if duplicates == "set" else min(times, len(readings))
        total += counted * min(readings, default=0.0)
    return total / len(wanted)


def penalty(
    wanted: Sequence[str],
    read: Sequence[Prediction],
    lam: float = 0.6,
    bag: Literal["symmetric", "max"] = "symmetric",
) -> float:
    """Return the mismatch of all characters read with all characters wanted, as multisets (Eq. 13).

        Pen = lam * BagDist(P, G) / (|P| + |G|)

    Args:
        bag: `symmetric` counts the characters too many and those missing; `max` the larger of the two.

    Examples:
        One letter too many among 2 wanted and 3 read ones; the order of the letters does not matter:

        >>> round(penalty(["ab"], [("cab", 1.0)], lam=0.5), 3)  # 0.5 * 1 / (3 + 2)
        0.1
        >>> penalty(["ab"], [("cd", 1.0)], lam=0.5), penalty(["ab"], [("cd", 1.0)], lam=0.5, bag="max")
        (0.5, 0.25)
    """
    target, actual = Counter("".join(wanted)), Counter("".join(word for word, _ in read))
    extra, missing = (actual - target).total(), (target - actual).total()
    distance = extra + missing if bag == "symmetric" else max(extra, missing)
    size = actual.total() + target.total()
    return lam * distance / size if size else 0.0


def similarity(
    wanted: Sequence[str],
    read: Sequence[Prediction],
    match: Literal["ld", "ld*conf"] = "ld",
    duplicates: Literal["set", "multiset"] = "set",
) -> float:
    """Return how close the best match of each wanted word is, times that match's confidence (Eq. 14).

        Sim = 1/N * sum_g LD(g, p_i*) s_i*,   i* = argmax_i LD(g, p_i), the most confident of equals

    By this rule a word that is read better but with low confidence can lower the score; see the example.

    Args:
        match: `ld*conf` takes the match that is worth most instead, and is monotone.
        duplicates: with `multiset` the second wanted copy of a word gets its second-best match, and so on.

    Examples:
        >>> round(similarity(["open"], [("opem", 0.8)]), 3)  # LD = 3/4, times 0.8
        0.6
        >>> round(similarity(["open"], [("opem", 0.8), ("open", 0.1)]), 3)  # the exact match counts, at its low confidence
        0.1
        >>> round(similarity(["open"], [("opem", 0.8), ("open", 0.1)], match="ld*conf"), 3)
        0.6
    """
    total = 0.0
    for word, times in Counter(wanted).items():
        scored = [(ld(word, other), confidence) for other, confidence in read]
        ranked = sorted(scored, key=lambda s: s if match == "ld" else (s[0] * s[1], 0.0), reverse=True)
        worth = [closeness * confidence for closeness, confidence in ranked]
        total += times * sum(worth[:1]) if duplicates == "set" else sum(worth[:times])
    return total / len(wanted)


def ocr_score(
    ground_truth: Sequence[str],
    predicted: Sequence[Prediction],
    *,
    lam: float = 0.6,
    match: Literal["ld", "ld*conf"] = "ld",
    bag: Literal["symmetric", "max"] = "symmetric",
    duplicates: Literal["set", "multiset"] = "set",
    case: Case = "lower",
) -> OCRScore:
    """Compute the paper's text-rendering reward (Eq. 15).

        Reward = Comp + Sim - Pen

    It is 2 for a perfect image, -lam for one without text. Both sides are put in their normal form (`normal_form`) and split on
    whitespace; a word inherits the confidence of its line. Punctuation stays. Pen joins the characters without spaces.

    Args:
        ground_truth: the strings to be rendered.
        predicted: (text, confidence in [0, 1]) of each line or word read.
        lam: the penalty's weight, >= 0.
        case: `lower` ignores upper and lower case, `keep` does not.

    Raises:
        ValueError: when there is no word to be rendered, a confidence is out of range, or lam is negative.

    Examples:
        >>> ocr_score(["Hot tea"], [("HOT TEA", 1.0)]).reward
        2.0
        >>> ocr_score(["Hot tea"], []).reward
        -0.6
        >>> score = ocr_score(["Hot tea"], [("hot", 1.0), ("tee", 1.0)])
        >>> round(score.completeness, 3), round(score.similarity, 3), round(score.penalty, 3)  # 1/2, (1 + 2/3) / 2, 0.6 * 2 / 12
        (0.5, 0.833, 0.1)
    """
    if not lam >= 0:
        raise ValueError(f"lam must be >= 0, got {lam}")
    wanted = normal_words(ground_truth, case)
    if not wanted:
        raise ValueError(f"the OCR reward needs at least one word to be rendered, got {list(ground_truth)!r}")
    read = [(word, _confidence(c)) for text, c in predicted for word in normal_words([text], case)]
    comp = completeness(wanted, read, duplicates)
    sim = similarity(wanted, read, match, duplicates)
    pen = penalty(wanted, read, lam, bag)
    target, actual = Counter("".join(wanted)), Counter("".join(word for word, _ in read))
    return OCRScore(
        reward=comp + sim - pen,
        completeness=comp,
        similarity=sim,
        penalty=pen,
        extra_ratio=(actual - target).total() / target.total(),
        in_order=_common_subsequence(wanted, [word for word, _ in read]) / len(wanted),
    )


def _confidence(value: float) -> float:
    if not 0 <= value <= 1 + _ROUNDING:
        raise ValueError(f"an OCR confidence must be in [0, 1], got {value}")
    return min(value, 1.0)


def _common_subsequence(x: Sequence[str], y: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    previous = [0] * (len(y) + 1)
    for a in x:
        current = [0]
        for j, b in enumerate(y):
            current.append(previous[j] + 1 if a == b else max(previous[j + 1], current[j]))
        previous = current
    return previous[-1]
