"""Conditions on rows, such as `advantage < -1 and read contains 'STONE'`: parsed by a grammar of their own, never run as code.

    condition  = all of {"or"}          all = part of {"and"}
    part       = "not" part | "(" condition ")" | comparison
    comparison = operand {sign operand} | operand ["not"] "in" choices | operand "is" ["not"] "missing"
    sign       = < | <= | > | >= | == | != | ["not"] in | ["not"] contains
    operand    = column | number | quoted text          choices = "(" value {"," value} ")"

A comparison with a missing value is false, whatever the sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from varrl_lightning.sample_tables.columns import Kind, UnknownColumnError, Value, column_named, value_of
from varrl_lightning.sample_tables.comparisons import SIGNS, Operand, compared, refused
from varrl_lightning.sample_tables.rows import SampleRow
from varrl_lightning.sample_tables.tokens import ConditionError, Token, tokens_of

Condition: TypeAlias = Callable[[SampleRow], bool]

DEEPEST = 50
"""Parentheses and `not` within each other; more would only serve to exhaust the parser."""


def parse_condition(text: str, columns: Mapping[str, Kind]) -> Condition:
    """Read a condition on rows that have these columns.

    Raises:
        ConditionError: where it does not follow the grammar, or compares values of different kinds; shows the place.
        UnknownColumnError: names the closest column, and all.
    """
    parser = _Parser(text, columns)
    condition = parser.either()
    if parser.next.kind != "end":
        raise parser.error("expected 'and', 'or' or the end")
    return condition


class _Parser:
    """Reads from left to right, one method for each rule."""

    def __init__(self, text: str, columns: Mapping[str, Kind]) -> None:
        self.text, self.columns = text, columns
        self.tokens = tokens_of(text)
        self.place = self.depth = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def error(self, reason: str, token: Token | None = None) -> ConditionError:
        token = token or self.next
        got = "" if token.kind == "end" else f", got {token.text!r}"
        return ConditionError.at(self.text, token.place, reason + got)

    def take(self, *texts: str) -> bool:
        """Go on if these are the next tokens, which are no quoted text."""
        ahead = self.tokens[self.place : self.place + len(texts)]
        if [t.text for t in ahead if t.kind in ("word", "sign")] != list(texts):
            return False
        self.place += len(texts)
        return True

    def either(self) -> Condition:
        parts = [self.every()]
        while self.take("or"):
            parts.append(self.every())
        return parts[0] if len(parts) == 1 else lambda row: any(part(row) for part in parts)

    def every(self) -> Condition:
        parts = [self.part()]
        while self.take("and"):
            parts.append(self.part())
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def part(self) -> Condition:
        self.depth += 1
        if self.depth > DEEPEST:
            raise self.error(f"more than {DEEPEST} parentheses and 'not' within each other")
        if self.take("not"):
            denied = self.part()
            found: Condition = lambda row: not denied(row)  # noqa: E731
        elif self.take("("):
            found = self.either()
            if not self.take(")"):
                raise self.error("expected ')'")
        else:
            found = self.comparison()
        self.depth -= 1
        return found

    def comparison(self) -> Condition:
        left, parts = self.operand(), []
        while (sign := self.sign()) is not None:
            if sign.startswith("is"):
                parts.append(_missing(left, wanted=sign == "is"))
                break
            if sign.endswith("in") and self.take("("):
                parts.append(self.among(left, denied=sign.startswith("not")))
                break
            right = self.operand()
            parts.append(self.checked(left, sign, right))
            left = right
        if not parts:
            raise self.error(f"expected a comparison: {' '.join(SIGNS)} in, contains, is missing")
        return lambda row: all(part(row) for part in parts)

    def sign(self) -> str | None:
        """The next sign of a comparison; `is` and `is not` go with `missing`."""
        for sign in (*SIGNS, "in", "contains"):
            if self.take(sign):
                return sign
        for sign in ("in", "contains"):
            if self.take("not", sign):
                return f"not {sign}"
        if self.take("is"):
            denied = self.take("not")
            if not self.take("missing"):
                raise self.error("expected 'missing'")
            return "is not" if denied else "is"
        return None

    def among(self, left: Operand, denied: bool) -> Condition:
        """Whether the left value is one of those in parentheses."""
        options = [self.checked(left, "==", self.operand())]
        while self.take(","):
            options.append(self.checked(left, "==", self.operand()))
        if not self.take(")"):
            raise self.error("expected ',' or ')'")
        return lambda row: left.value(row) is not None and any(option(row) for option in options) != denied

    def checked(self, left: Operand, sign: str, right: Operand) -> Condition:
        if reason := refused(left, sign, right):
            raise ConditionError.at(self.text, left.place, reason)
        return compared(left, sign, right)

    def operand(self) -> Operand:
        token = self.next
        if token.kind not in ("name", "number", "text"):
            raise self.error("expected a column, a number or quoted text")
        self.place += 1
        if token.kind == "number":
            return Operand("number", token.text, token.place, _constant(float(token.text)))
        if token.kind == "text":
            return Operand("text", token.text, token.place, _constant(token.text[1:-1]))
        try:
            column = column_named(token.text, list(self.columns))
        except UnknownColumnError as error:
            raise UnknownColumnError(f"{ConditionError.at(self.text, token.place, 'no such column')}\n{error}") from None
        return Operand(self.columns[column], column, token.place, lambda row: value_of(row, column))


def _constant(value: Value) -> Callable[[SampleRow], Value]:
    return lambda _: value


def _missing(operand: Operand, wanted: bool) -> Condition:
    return lambda row: (operand.value(row) is None) == wanted
