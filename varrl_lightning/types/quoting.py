"""Finds the strings that a prompt asks to be written: what stands between quotation marks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from varrl_lightning.types.normal_form import normal_form
from varrl_lightning.types.quote_marks import (
    LATIN,
    PAIRS,
    PRIMES,
    REVERSED,
    SINGLE,
    Mark,
    begins_with_a_mark,
    is_unspaced,
    marks_of,
)
from varrl_lightning.types.single_quotes import belongs_to_a_word, read_singles

_EDGES = re.compile(r"^[\s,，]+|[\s,，]+$")
_ENTITY = re.compile(r"&(?:quot|#34|#x22|[lr][ds]quo|[bs]dquo|sbquo|[lr]aquo|[lr]saquo);", re.IGNORECASE)
_AROUND = 12
_SENTENCE = 6
"""Words: of so many in quotes, the quotes are rather a sentence's than those of what is to be written."""


class Quotation(NamedTuple):
    """Where a quotation begins and ends in a text, with its marks (`start`, `stop`) and without (`first`, `last`)."""

    start: int
    first: int
    last: int
    stop: int

    @classmethod
    def between(cls, opener: Mark, closer: Mark) -> Quotation:
        """The quotation between two marks."""
        return cls(opener.start, opener.stop, closer.start, closer.stop)


@dataclass(frozen=True)
class Quotes:
    """The strings in a text's quotes.

    Args:
        strings: in order, each once.
        unclear: why they may not be those that are meant; empty where there is no doubt.
    """

    strings: tuple[str, ...] = ()
    unclear: str = ""


def quoted_words(text: str) -> tuple[str, ...]:
    """The strings that a prompt asks to be written, in order: those of `read_quotes`."""
    return read_quotes(text).strings


def read_quotes(text: str) -> Quotes:
    """The strings that a prompt asks to be written, and whether its quotes are clear.

    Quotation marks are those of the world's languages: straight ones, “ ”, „ “, „ ”, ” ”, « », » «, » », ‹ ›, › ‹, ‘ ’, ‚ ‘, ’ ’,
    those of Chinese and Japanese, backticks, and LaTeX's. An opening mark is closed by its own partner only. Of quotes in
    quotes the outer ones count, with all that is in them; but quotes around a whole text that has others inside are the text's own,
    and unclear. Single marks within words, and those that stand for a left-out part of one (`rock 'n' roll`, `'90s`, `the dogs'
    bowl`), are apostrophes; marks behind numbers are feet, inches, minutes.

    Commas at the edges are stripped, since American usage puts the sentence's comma inside. A string that an earlier one contains,
    as complete words, counts once.

    It is unclear when a mark has no partner, when Latin quotation marks stand in others, or when apostrophes and single quotation
    marks can be told apart in several ways. The strings are then the likeliest ones.
    """
    quotations, unclear = _outermost(text)
    if len(quotations) == 1 and _is_all(text, quotations[0]):
        return _whole(text, quotations[0], unclear)
    return Quotes(_strings(text, quotations), unclear[0] if unclear else "")


def _outermost(text: str) -> tuple[list[Quotation], list[str]]:
    """The quotations that are within no other, in order, and what is unclear about the text's marks."""
    marks = marks_of(text)
    entity = _ENTITY.search(text)
    written = [f"{entity.group()} stands for a quotation mark in HTML: write the mark itself"] if entity else []
    if not marks:
        return [], written
    quotations, unclear = _doubles(text, [m for m in marks if m.text not in SINGLE and m.text not in PRIMES])
    outside = [m for m in marks if m.text in SINGLE and not any(q.start <= m.start < q.stop for q in quotations)]
    reading, doubtful = read_singles(text, outside)
    quotations += [Quotation.between(outside[first], outside[last]) for first, last in reading.spans]
    unclear += [_alone(text, outside[reading.stray])] if reading.stray >= 0 else []
    unclear += [_alone(text, m) for m in marks if m.text in PRIMES and not m.before.isalnum()]
    if doubtful:
        unclear.append("apostrophes and single quotation marks can be told apart in several ways")
    unclear += written
    return sorted(q for q in quotations if not any(o.start < q.start and q.stop < o.stop for o in quotations)), unclear


def _doubles(text: str, marks: Sequence[Mark]) -> tuple[list[Quotation], list[str]]:
    """The quotations between marks that are no apostrophes, outermost ones, and what is unclear about them."""
    ends = _ends(marks)
    quotations, unclear, i = [], [], 0
    while i < len(marks):
        end = ends[i]
        if end is None:
            unclear += _stray(text, marks[i])
        else:
            quotations.append(Quotation.between(marks[i], marks[end]))
            if marks[end].measured and belongs_to_a_word(text, marks[i], marks[end]):
                unclear.append(f"{marks[end].text} may close a quotation or mean inches in {_around(text, marks[end])!r}")
            if marks[i].stop == marks[end].start and (marks[i].before.isalnum() or marks[end].after.isalnum()):
                unclear.append(f"there is nothing within {text[marks[i].start : marks[end].stop]} in {_around(text, marks[end])!r}")
            unclear += _unclear_within(text, marks, ends, i, end)
        i = (i if end is None else end) + 1
    return quotations, unclear


def _unclear_within(text: str, marks: Sequence[Mark], ends: Sequence[int | None], first: int, last: int) -> Iterator[str]:
    outer, j = marks[first].text, first + 1
    while j < last:
        end = ends[j]
        if end is None:
            yield from _stray(text, marks[j])
        elif marks[j].text == outer or {marks[j].text, outer} <= LATIN:
            yield f"{marks[j].text} stands within {outer} in {_around(text, marks[j])!r}"
        j = (j if end is None else end) + 1


def _ends(marks: Sequence[Mark]) -> list[int | None]:
    """For each mark that opens a quotation, the index of the mark that closes it; pairs in between are passed over."""
    ends: list[int | None] = [None] * len(marks)
    for i in reversed(range(len(marks))):
        j = i + 1 if _may_open(marks[i]) else len(marks)
        while j < len(marks):
            if _may_close(marks[i], marks[j]):
                ends[i] = j
                break
            j = (ends[j] or j) + 1
    return ends


def _may_open(mark: Mark) -> bool:
    if mark.text in REVERSED:
        return mark.opens_a_word
    is_quote = mark.text in PAIRS and not mark.closes_a_word and not _is_gershayim(mark)
    return is_quote and not (mark.text == '"' and mark.measured)


def _may_close(opener: Mark, closer: Mark) -> bool:
    if closer.text not in PAIRS[opener.text] or closer.opens_a_word or _is_gershayim(closer):
        return False
    return opener.text not in REVERSED or not (closer.before.isspace() or is_unspaced(closer.before))


def _is_gershayim(mark: Mark) -> bool:
    """Whether it marks a Hebrew abbreviation."""
    return mark.text == '"' and "א" <= mark.before <= "ת" and "א" <= mark.after <= "ת"


def _stray(text: str, mark: Mark) -> list[str]:
    """That a mark has no partner, unless it needs none."""
    empty = mark.text == "''" and not (mark.before + mark.after).strip(" ,.;:!?")
    inches = mark.measured and mark.text in '"”“'
    return [] if inches or empty or _is_gershayim(mark) else [_alone(text, mark)]


def _alone(text: str, mark: Mark) -> str:
    return f"{mark.text} has no partner in {_around(text, mark)!r}"


def _around(text: str, mark: Mark) -> str:
    first, last = mark.start - _AROUND, mark.stop + _AROUND
    return f"{'...' * (first > 0)}{text[max(first, 0) : last]}{'...' * (last < len(text))}"


def _is_all(text: str, quotation: Quotation) -> bool:
    """Whether a text is one quotation."""
    return not text[: quotation.start].strip() and not text[quotation.stop :].strip(" \t\n\r.,!?")


def _whole(text: str, quotation: Quotation, unclear: Sequence[str]) -> Quotes:
    """The strings of a text that stands in quotes: those within it, or else all of it."""
    within = read_quotes(text[quotation.first : quotation.last])
    if within.strings:
        return Quotes(within.strings, within.unclear or "the quotes around the whole text are taken for its own")
    strings = _strings(text, [quotation])
    long = any(len(string.split()) >= _SENTENCE for string in strings)
    return Quotes(strings, unclear[0] if unclear else "the whole text stands in quotes" if long else "")


def _strings(text: str, quotations: Sequence[Quotation]) -> tuple[str, ...]:
    strings: list[str] = []
    for quotation in quotations:
        string = _bare(text[quotation.first : quotation.last])
        if normal_form(string).strip() and not any(_contains(earlier, string) for earlier in strings):
            strings.append(string)
    return tuple(strings)


def _bare(string: str) -> str:
    """A string without commas at its edges, and without further quotes around all of it."""
    string = _EDGES.sub("", string)
    within, _ = _outermost(string) if begins_with_a_mark(string) else ([], [])
    all_of_it = len(within) == 1 and (within[0].start, within[0].stop) == (0, len(string))
    return _bare(string[within[0].first : within[0].last]) if all_of_it else string


def _contains(text: str, words: str) -> bool:
    form, part = normal_form(text, "keep"), normal_form(words, "keep").strip()
    return part in form and re.search(rf"(?<!\w){re.escape(part)}(?!\w)", form) is not None
