"""The one form in which texts are compared: by rewards, word accuracy, NED, the marks on sample pictures and all tables.

CVTG-2K's own, stricter definition is `split_words` in `algorithms/word_metrics.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

Case = Literal["lower", "keep"]
"""Whether upper and lower case are alike when texts are compared."""

_IGNORABLE = (
    (0x00AD, 0x00AD),  # soft hyphen
    (0x034F, 0x034F),  # combining grapheme joiner
    (0x061C, 0x061C),  # Arabic letter mark
    (0x115F, 0x1160),  # Hangul fillers
    (0x17B4, 0x17B5),  # Khmer inherent vowels
    (0x180B, 0x180F),  # Mongolian variation selectors and vowel separator
    (0x200B, 0x200F),  # zero-width space, non-joiner and joiner; left-to-right and right-to-left marks
    (0x202A, 0x202E),  # bidi embeddings and overrides
    (0x2060, 0x206F),  # word joiner, invisible operators, bidi isolates
    (0x3164, 0x3164),  # Hangul filler
    (0xFE00, 0xFE0F),  # variation selectors
    (0xFEFF, 0xFEFF),  # byte order mark
    (0xFFA0, 0xFFA0),  # half-width Hangul filler
    (0xFFF0, 0xFFF8),  # unassigned, ignorable by default
    (0x1BCA0, 0x1BCA3),  # shorthand format controls
    (0x1D173, 0x1D17A),  # musical format controls
    (0xE0000, 0xE0FFF),  # tags, variation selectors 17 to 256
)
"""Unicode's Default_Ignorable_Code_Point: characters without a shape of their own, which no reader can see."""
IGNORABLE = frozenset(chr(code) for first, last in _IGNORABLE for code in range(first, last + 1))

# Prime and reversed prime, modifier letters, grave and acute accents, Armenian and Hebrew apostrophes, saltillos, ornaments.
_APOSTROPHES = "‘’‚‛′‵ʹʻʼʽˈˊˋ`´՚׳ߴߵꞋꞌ❛❜"
_QUOTES = "“”„‟〝〞〟״❝❞"
# Hyphens, the figure, en and em dashes and the bar, minus signs, hyphen bullet; Armenian, Hebrew, Canadian and Mongolian hyphens.
_DASHES = "‐‑‒–—―−˗➖⁃֊־᐀᠆⸺⸻"
_SLASHES = "⁄∕"
_ALIKE = str.maketrans(
    dict.fromkeys(IGNORABLE)
    | dict.fromkeys(_APOSTROPHES, "'")
    | dict.fromkeys(_QUOTES, '"')
    | dict.fromkeys(_DASHES, "-")
    | dict.fromkeys(_SLASHES, "/")
)
# NFKC makes an accent that stands alone a space with a combining one, and a double prime two primes.
_ACCENT_ALONE = re.compile(r" [\u0301\u0313]")
_FINAL_SIGMA = str.maketrans("ς", "σ")


def normal_form(text: str, case: Case = "lower") -> str:
    """Return the form in which a text is compared.

    It is NFKC, with the shapes of one mark made one: apostrophes, primes and lone accents `'`, curly and low quotation marks `"`,
    hyphens, dashes and minus signs `-`, fraction slashes `/`. Characters without a shape of their own are dropped: variation
    selectors, zero-width spaces and joiners, soft hyphens, marks of direction. With `lower` it is lower-cased, and a final sigma
    is a sigma. It is not case-folded: `ß` stays a letter other than `ss`.

    Args:
        case: `lower` or `keep`.

    Examples:
        >>> normal_form("ＤＯＮ’Ｔ – Cafe\\u0301"), normal_form("I \\u2764\\ufe0f NY", case="keep")
        ("don't - café", 'I ❤ NY')
        >>> normal_form("½ ΟΔΌΣ"), normal_form("οδόσ"), normal_form("STRASSE") == normal_form("Straße")
        ('1/2 οδόσ', 'οδόσ', False)
    """
    if text.isascii():
        form = text.replace("`", "'").replace("''", '"')
        return form if case == "keep" else form.lower()
    # NFKC again at the end: what is dropped may have stood between a letter and its accent.
    alike = unicodedata.normalize("NFKC", text).translate(_ALIKE)
    form = _ACCENT_ALONE.sub("'", unicodedata.normalize("NFKC", alike)).replace("''", '"')
    if case == "keep":
        return form
    return unicodedata.normalize("NFKC", form.lower()).translate(_FINAL_SIGMA)


def normal_words(texts: Iterable[str], case: Case = "lower") -> list[str]:
    """Return the words of several texts in their normal form, split on whitespace.

    Split after normalising: NFKC turns other spaces into plain ones, and some characters into several words.

    Examples:
        >>> normal_words(["Hot\\u3000Tea", "OPEN"])
        ['hot', 'tea', 'open']
    """
    return [word for text in texts for word in normal_form(text, case).split()]
