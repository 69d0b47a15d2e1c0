"""The words of a condition: names, numbers, quoted text and signs, each with its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

LONGEST = 2000
"""Characters of a condition; nobody types a longer one."""
WORDS = frozenset({"and", "or", "not", "in", "contains", "is", "missing"})
"""Words that are no columns."""
_FORMS = {
    "number": r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])",
    "text": r"'[^']*'|\"[^\"]*\"",
    "sign": r"<=|>=|==|!=|[<>(),]",
    "name": r"[A-Za-z_]\w*(?:\.[^\s<>=!(),'\"]+)?",
}
_TOKEN = re.compile("|".join(f"(?P<{kind}>{form})" for kind, form in _FORMS.items()))


class ConditionError(ValueError):
    """A condition cannot be read; the message shows the place."""

    @classmethod
    def at(cls, text: str, place: int, reason: str) -> ConditionError:
        """An error with a mark under the place."""
        return cls(f"the condition cannot be read at character {place + 1}: {reason}\n  {text}\n  {' ' * place}^")


@dataclass(frozen=True)
class Token:
    """One word of a condition.

    Args:
        kind: `word` is one of `WORDS`; `end` comes after the last.
        text: as it was written.
        place: of its first character, from 0.
    """

    kind: Literal["number", "text", "sign", "name", "word", "end"]
    text: str
    place: int


def tokens_of(text: str) -> list[Token]:
    """Cut a condition into tokens; the last is the end.

    Raises:
        ConditionError: for a character that none begins with, or a condition longer than `LONGEST`.
    """
    if len(text) > LONGEST:
        raise ConditionError(f"the condition has {len(text)} characters; at most {LONGEST} are read")
    tokens: list[Token] = []
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise ConditionError.at(text, place, _reason(text[place]))
        kind: str = "word" if found[0] in WORDS else str(found.lastgroup)
        tokens.append(Token(kind, found[0], place))  # type: ignore[arg-type]
        place = found.end()
    return [*tokens, Token("end", "", len(text))]


def _reason(character: str) -> str:
    if character == "=":
        return "write == for 'equals'"
    if character in "'\"":
        return f"the text that begins with {character} has no end"
    return (
        f"{character!r} has no meaning here. A condition compares columns, numbers and quoted text by < <= > >= == != in contains, "
        "joined by and, or, not and parentheses"
    )
