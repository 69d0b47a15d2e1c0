"""Word accuracy and normalised edit distance of one image, and the words of a text, as the CVTG-2K benchmark defines them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Literal

from varrl_lightning.algorithms.ocr_score import ld

_SINGLE_QUOTED = re.compile(r"'(.*?)'")


def cvtg_words(text: str) -> tuple[str, ...]:
    """Return the strings that CVTG-2K looks for: all between one straight single quote and the next, blank ones left out.

    An apostrophe counts as a quote, which is the benchmark's rule and not this package's (`quoted_words`).

    Examples:
        >>> cvtg_words("a sign 'OPEN' above 'Hot tea'")
        ('OPEN', 'Hot tea')
        >>> cvtg_words("the shop's sign 'OPEN'")
        ('s sign ',)
    """
    return tuple(string for string in _SINGLE_QUOTED.findall(text) if string.strip())


def split_words(lines: Iterable[str]) -> list[str]:
    """Return the words of several lines as CVTG-2K compares them: lower-cased, split on whitespace, and nothing else.

    Everything but that benchmark's own numbers compares the `normal_words` of `types/normal_form.py`.

    Examples:
        >>> split_words(["Hot Tea", "OPEN"])
        ['hot', 'tea', 'open']
    """
    return [word for line in lines for word in line.lower().split()]


def words_found(wanted: Sequence[str], read: Sequence[str]) -> int:
    """Count the wanted words that are among those read; one read word serves any number of equal wanted ones.

    Examples:
        >>> words_found(["open", "open", "tea"], ["open", "coffee"])
        2
    """
    present = set(read)
    return sum(word in present for word in wanted)


def word_closeness(wanted: Sequence[str], read: Sequence[str], match: Literal["difflib", "levenshtein"] = "difflib") -> list[float]:
    """Return, for each wanted word, its LD (Eq. 11) to the read word that is most like it.

    Args:
        match: how that word is chosen: by `difflib`, as in the benchmark, which is not always the word with the greatest LD, or by
            `levenshtein`, which is.

    Examples:
        >>> [round(closeness, 3) for closeness in word_closeness(["tea", "open"], ["tee", "open"])]
        [0.667, 1.0]
        >>> closest = [word_closeness(["late"], ["team", "least"], match)[0] for match in ("difflib", "levenshtein")]
        >>> [round(closeness, 3) for closeness in closest]  # to `team`, for the `te` that both have, and to `least`
        [0.0, 0.4]
    """
    # The benchmark compares with an empty word when nothing was read.
    candidates = list(read) or [""]
    if match == "levenshtein":
        return [max(ld(word, other) for other in candidates) for word in wanted]
    return [ld(word, difflib.get_close_matches(word, candidates, n=1, cutoff=0.0)[0]) for word in wanted]
