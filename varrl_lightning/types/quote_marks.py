"""The marks of a text that may be quotation marks, and what stands beside them."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from varrl_lightning.types.normal_form import IGNORABLE

SINGLE = frozenset("'‘’‚‛`´＇❛❜")
"""Marks that may be apostrophes too."""
PRIMES = frozenset("′″‴")
PAIRS = {
    '"': '"',
    "＂": "＂",
    "“": "”",
    "„": "“”",
    "‟": "”",
    "”": "”",
    "❝": "❞",
    "``": ("``", "''"),
    "''": ("''",),
    "«": "»",
    "»": "«»",
    "‹": "›",
    "›": "‹›",
    "「": "」",
    "｢": "｣",
    "『": "』",
    "《": "》",
    "〈": "〉",
    "﹁": "﹂",
    "﹃": "﹄",
    "〝": "〞〟",
}
"""Opening marks that are no apostrophes, and what closes each."""
REVERSED = frozenset("”»›")
"""Opening marks in some languages that are closing ones in others."""
LATIN = frozenset('"＂“„‟”')
"""Outer marks of languages with Latin letters: one of them is not within another."""

_SIGNS = "".join(sorted({c for pair in PAIRS.items() for sign in pair for part in sign for c in part} | SINGLE | PRIMES))
_MARK = re.compile(rf"\\{{0,3}}(`{{2,}}|''|[{_SIGNS}])")  # with backslashes, where a text was escaped twice
_LENGTH = re.compile(r"(?<!\d)\d{1,3}$")
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u312f\u3130-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff]"
)
"""Letters of scripts that set no spaces around words, or that add endings to a quotation without one, as Korean does."""
_OPENING, _CLOSING = frozenset("([{<（［｛【—–-/"), frozenset(".,;:!?…)]}>，。、；：！？）］｝】،؛؟।")


@dataclass(frozen=True)
class Mark:
    """A mark at `text[start:stop]`, with the visible characters beside it; these are empty at the text's ends."""

    start: int
    stop: int
    text: str
    before: str
    after: str
    measured: bool
    """Whether it stands behind a number, as the signs of feet, inches and minutes do."""

    @property
    def opens_a_word(self) -> bool:
        """Whether a word begins here and none ends."""
        apart = not self.before or self.before.isspace() or self.before in _OPENING
        return apart and bool(self.after) and not self.after.isspace() and self.after not in _CLOSING

    @property
    def closes_a_word(self) -> bool:
        """Whether a word ends here and none begins."""
        apart = not self.after or self.after.isspace() or self.after in _CLOSING
        return apart and bool(self.before) and not self.before.isspace() and self.before not in _OPENING

    @property
    def within_a_word(self) -> bool:
        """Whether there are letters or digits on both sides, of scripts with spaces between words."""
        return is_letter(self.before) and is_letter(self.after)


def is_letter(character: str) -> bool:
    """Whether it is a letter, digit or vowel sign of a script that sets spaces between words."""
    return bool(character) and (character.isalnum() or unicodedata.category(character)[0] == "M") and not is_unspaced(character)


def is_unspaced(character: str) -> bool:
    """Whether it belongs to a script that sets no spaces around quotations."""
    return _UNSPACED.fullmatch(character) is not None


def marks_of(text: str) -> list[Mark]:
    """All marks of a text, in order; of two or more equal single ones side by side, a double one."""
    marks = []
    for match in _MARK.finditer(text):
        start, stop = match.span()
        sign = "``" if match.group(1).startswith("``") else match.group(1)
        before, after = _beside(text, start - 1, -1), _beside(text, stop, 1)
        measured = _LENGTH.search(text[max(start - 4, 0) : start]) is not None or (before.isnumeric() and not before.isdigit())
        marks.append(Mark(start, stop, sign, before, after, measured))
    return marks


def begins_with_a_mark(text: str) -> bool:
    """Whether a text's first character is part of a mark."""
    return _MARK.match(text) is not None


def _beside(text: str, place: int, step: int) -> str:
    while 0 <= place < len(text):
        if text[place] not in IGNORABLE:
            return text[place]
        place += step
    return ""
