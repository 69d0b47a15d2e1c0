"""Finds the strings that a prompt asks to be written: what stands between quotation marks."""

from __future__ import annotations

import re

_QUOTED = re.compile(
    r"(?<!\d)\"([^\"]*)\""  # after a digit the sign means inches
    r"|“([^”]+)”"
    # A closing single quote follows a character and ends a word; a decade ('90s) opens nothing.
    r"|(?<!\w)(?:'(?!\s|['’]|\d0s\b)|‘(?!\s))(.*?\S)['’](?!\w)"
)
_EDGE_COMMAS = " ,，"


def quoted_words(text: str) -> tuple[str, ...]:
    """The strings that a prompt asks to be written, in order.

    Quotation marks are double or curly. Single quotes count at word boundaries only, so that `don't` stays one word. Commas at the
    edges are stripped, since American usage puts the sentence's comma inside. A string that an earlier one contains, as complete
    words, counts once.
    """
    strings: list[str] = []
    for match in _QUOTED.finditer(text):
        string = next(group for group in match.groups() if group is not None).strip(_EDGE_COMMAS)
        if string and not any(_contains(earlier, string) for earlier in strings):
            strings.append(string)
    return tuple(strings)


def _contains(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None
