"""Word accuracy and normalised edit distance of one image, as the CVTG-2K benchmark defines them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from varrl_lightning.algorithms.ocr_score import ld


def split_words(lines: Iterable[str]) -> list[str]:
    """Lower-cased words of several lines, split on whitespace."""
    return [word for line in lines for word in line.lower().split()]


def words_found(wanted: Sequence[str], read: Sequence[str]) -> int:
    """How many of the wanted words are among those read; one read word serves any number of equal wanted ones."""
    present = set(read)
    return sum(word in present for word in wanted)


def word_closeness(wanted: Sequence[str], read: Sequence[str]) -> list[float]:
    """For each wanted word, LD (Eq. 11) to the read word that difflib finds most similar.

    difflib's choice is not always the one with the smallest edit distance; it is the benchmark's.
    """
    # The benchmark compares with an empty word when nothing was read.
    candidates = list(read) or [""]
    return [ld(word, difflib.get_close_matches(word, candidates, n=1, cutoff=0.0)[0]) for word in wanted]
