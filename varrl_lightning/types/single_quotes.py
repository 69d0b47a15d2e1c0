"""Which single marks of a text are quotation marks and which are apostrophes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from varrl_lightning.types.quote_marks import Mark, is_letter

Role = Literal["opens", "closes", "apostrophe"]
Span = tuple[int, int]

_CLOSERS = {"'": "'", "‘": "’", "‛": "’", "’": "’", "‚": "‘’", "`": "`'´", "´": "´", "＇": "＇", "❛": "❜", "❜": "❜"}
_QUOTES_ALONE = frozenset("‚＇❛")
# Words that begin with an apostrophe and are none without it: not 'round.
_LEFT_OUT = re.compile(r"(?:\d\ds?|n|em|til|tis|twas|twere|cuz|neath|gainst|kay|[st])(?!\w)", re.IGNORECASE)
_DECADE = re.compile(r"\d0s(?!\w)")
_SHORTENED = "o|ol|li?l|th|an|n|d|l|c|j|m|t|qu|jusqu|wi|mo|po|fo|y|ma|gov|jus|las|mos|nex"
_ENDINGS = re.compile(rf"(?:[sxz]|in|(?<!\w)(?:{_SHORTENED})|[\u05d0-\u05ea])$", re.IGNORECASE)
"""Ends of words that end with an apostrophe: plural possessives, words without their last letters, Hebrew abbreviations."""
_BEHIND = 24
"""Characters before a mark that are looked at."""
_WORD_BEFORE = re.compile(r"\w+ $")
_AND = re.compile(r"(\w+) ['‘’`´]n['’`´] \w", re.IGNORECASE)
_NAMES_A_LETTER = re.compile(
    "letters?|characters?|initials?|words?|text|say|says|saying|reads?|reading|spells?|spelling|sign|label+ed|titled|named|called|"
    "and|or|the|an?|with|of|is|in",
    re.IGNORECASE,
)
_WORD_NEXT = re.compile(r" +[^\W\d_]")
_OWNER = re.compile(r"an?|the|my|our|your|his|her|its|their|these|those|all|both", re.IGNORECASE)
_STRAY = 10
_CLOSE_CALL = 1
_KEPT, _OPEN = 8, 24
"""Readings, and open quotations, that are followed; prompts have fewer."""


class Reading(NamedTuple):
    """A way to read the marks; the least one is the likeliest.

    Args:
        cost: the sum of the costs of unlikely readings of single marks.
        length: characters in quotes.
        spans: indices of the opening and the closing mark of each quotation.
        stray: index of the first mark that is neither a quotation mark nor an apostrophe; -1 where there is none.
        unsure: whether an apostrophe within a quotation might have closed it, or one that opens it might be an apostrophe.
    """

    cost: int = 0
    length: int = 0
    spans: tuple[Span, ...] = ()
    stray: int = -1
    unsure: bool = False


def read_singles(text: str, marks: Sequence[Mark]) -> tuple[Reading, bool]:
    """The likeliest reading of single marks, and whether it is unsure, or another one that asks for other words about as likely.

    Of equally likely ones, the one with the least text in quotes. Costs: a mark that is neither quotation mark nor apostrophe 10,
    an apostrophe at the end of a word 1 or 2, a quotation that begins with what may be an apostrophe 2.
    """
    outside = [Reading()]
    inside: dict[int, list[Reading]] = {}  # by the mark that opened a quotation
    for i, mark in enumerate(marks):
        roles = dict(_roles(text, mark))
        opened = _opened(outside, roles) if "opens" in roles else []
        closed = [
            reading
            for first, readings in inside.items()
            if "closes" in roles and _closes(text, marks[first], mark)
            for reading in _closed(text, readings, (first, marks[first]), (i, mark), roles)
        ]
        outside = _likeliest([*_passed(outside, i, roles), *closed])
        inside = {first: _passed(readings, i, roles, within=True) for first, readings in inside.items()}
        if opened:
            inside = dict([*inside.items(), (i, opened)][-_OPEN:])
    best, *others = outside
    return best, best.unsure or any(other.spans != best.spans for other in others)


def _opened(readings: Sequence[Reading], roles: Mapping[Role, int]) -> list[Reading]:
    unsure = "apostrophe" in roles
    return [Reading(r.cost + roles["opens"], r.length, r.spans, r.stray, r.unsure or unsure) for r in readings]


def _passed(readings: Sequence[Reading], place: int, roles: Mapping[Role, int], within: bool = False) -> list[Reading]:
    """The readings in which the mark is an apostrophe, or else a stray one."""
    if "apostrophe" in roles:
        unsure = within and "closes" in roles
        return [Reading(r.cost + roles["apostrophe"], r.length, r.spans, r.stray, r.unsure or unsure) for r in readings]
    return [Reading(r.cost + _STRAY, r.length, r.spans, place if r.stray < 0 else r.stray, r.unsure) for r in readings]


def _closed(
    text: str, readings: Sequence[Reading], opener: tuple[int, Mark], closer: tuple[int, Mark], roles: Mapping[Role, int]
) -> list[Reading]:
    (first, opening), (last, closing) = opener, closer
    cost, length = _closing_cost(text, opening, closing, roles), closing.start - opening.stop
    return [Reading(r.cost + cost, r.length + length, (*r.spans, (first, last)), r.stray, r.unsure) for r in readings]


def _likeliest(readings: Sequence[Reading]) -> list[Reading]:
    ranked = sorted(readings)
    return [r for r in ranked if r.cost <= ranked[0].cost + _CLOSE_CALL][:_KEPT]


def _closes(text: str, opener: Mark, closer: Mark) -> bool:
    content = text[opener.stop : closer.start]
    return closer.text in _CLOSERS[opener.text] and bool(content.strip()) and "\n" not in content


def _closing_cost(text: str, opener: Mark, closer: Mark, roles: Mapping[Role, int]) -> int:
    """As much as a stray mark and an apostrophe, where 'OPEN and the dogs' bowl may lack the mark behind OPEN."""
    may_belong = "apostrophe" in roles and belongs_to_a_word(text, opener, closer)
    return _STRAY + 1 if may_belong else roles["closes"]


def belongs_to_a_word(text: str, opener: Mark, closer: Mark) -> bool:
    """Whether what closes a quotation looks like an apostrophe or a measure instead.

    So it does behind `... the dogs` and `... a 6`, where capitals have run into small letters, and between words in capitals.
    """
    content, following = text[opener.stop : closer.start].split(), text[closer.stop :].split(maxsplit=1)
    if not content or not followed_by_a_word(text, closer):
        return False
    if " ".join(content).isupper():
        return following[0].isupper() and len(following[0]) > 1
    in_capitals = content[0].isupper() and len(content[0]) > 1
    owned = len(content) > 1 and _OWNER.fullmatch(content[-2]) is not None
    return owned or (in_capitals and not content[-1].isupper())


def followed_by_a_word(text: str, mark: Mark) -> bool:
    """Whether a space and a word follow."""
    return _WORD_NEXT.match(text, mark.stop) is not None


def _roles(text: str, mark: Mark) -> Iterator[tuple[Role, int]]:
    """What a mark may be, by what stands beside it, each with its cost."""
    if mark.within_a_word:
        yield "apostrophe", 0
        return
    if _is_and(text, mark):
        yield "apostrophe", 0
        return
    if not is_letter(mark.before) and mark.after and not mark.after.isspace() and not mark.closes_a_word:
        yield from _opening_roles(text, mark)
    if mark.before and not mark.before.isspace() and not is_letter(mark.after) and not mark.opens_a_word:
        yield "closes", 0
        if mark.measured:
            yield "apostrophe", 1  # feet, minutes
        elif _ENDINGS.search(text[max(mark.start - _BEHIND, 0) : mark.start]):
            yield "apostrophe", 1 if followed_by_a_word(text, mark) else 2


def _opening_roles(text: str, mark: Mark) -> Iterator[tuple[Role, int]]:
    if mark.text in _QUOTES_ALONE:
        yield "opens", 0
        return
    if _DECADE.match(text, mark.stop):
        yield "apostrophe", 0
        return
    left_out = _LEFT_OUT.match(text, mark.stop)
    # A mark right behind it closes a quotation, as in 'S'.
    if left_out and text[left_out.end() : left_out.end() + 1] not in _CLOSERS:
        yield "opens", 1 if left_out.group()[0].isdigit() else 2
        yield "apostrophe", 0
    else:
        yield "opens", 1 if mark.text == "’" else 0


def _is_and(text: str, mark: Mark) -> bool:
    """Whether the mark is one of the two of `rock 'n' roll`, not of a letter that is asked for by name."""
    for start in (mark.start, mark.start - 2):
        word = _WORD_BEFORE.search(text, max(start - _BEHIND, 0), max(start, 0))
        match = _AND.match(text, word.start()) if word else None
        if match and match.end(1) + 1 == start:
            return _NAMES_A_LETTER.fullmatch(match.group(1)) is None
    return False
