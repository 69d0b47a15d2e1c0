"""Word accuracy and normalised edit distance of one image, as the CVTG-2K benchmark defines them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from varrl_lightning.algorithms.ocr_score import ld

_SINGLE_QUOTED = re.compile(r"'(.*?)'")


def cvtg_words(text: str) -> tuple[str, ...]:
    """The strings that CVTG-2K looks for: all between one straight single quote and the next, blank ones left out.

    An apostrophe counts as a quote, which is the benchmark's rule and not this package's (`quoted_words`).
    """
    return tuple(found for found in _SINGLE_QUOTED.findall(text) if found.strip())


def split_words(lines: Iterable[str]) -> list[str]:
    """Lower-cased words of several lines, split on whitespace."""
    return [word for line in lines for word in line.lower().split()]


def words_found(wanted: Sequence[str], read: Sequence[str]) -> int:
    """How many of the wanted words are among those read; one read word serves any number of equal wanted ones."""
    present = set(read)
    return sum(word in present for word in wanted)


def word_closeness(wanted: Sequence[str], read: Sequence[str], match: Literal["difflib", "levenshtein"] = "difflib") -> list[float]:
    """For each wanted word, LD (Eq. 11) to the read word that is most like it.

    Args:
        match: `difflib` is the benchmark's choice of that word, not always the one with the greatest LD; `levenshtein` is.
    """
    # The benchmark compares with an empty word when nothing was read.
    candidates = list(read) or [""]
    if match == "levenshtein":
        return [max(ld(word, other) for other in candidates) for word in wanted]
    return [ld(word, difflib.get_close_matches(word, candidates, n=1, cutoff=0.0)[0]) for word in wanted]
