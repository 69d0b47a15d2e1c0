"""Comparisons of the values of a row: which kinds go together, and whether one holds."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from varrl_lightning.sample_tables.columns import Kind, Value
from varrl_lightning.sample_tables.rows import SampleRow

SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_WITHIN = ("in", "not in", "contains", "not contains")
_KINDS = {"number": "a number", "text": "text", "words": "a list of words"}


@dataclass(frozen=True)
class Operand:
    """One side of a comparison.

    Args:
        kind: of its values.
        text: as it was written, a column by its whole name.
        place: of its first character in the condition, from 0.
        value: its value in a row; None where it is missing.
    """

    kind: Kind
    text: str
    place: int
    value: Callable[[SampleRow], Value]


def refused(left: Operand, sign: str, right: Operand) -> str:
    """Why two operands cannot be compared by a sign; empty where they can."""
    if sign in _WITHIN:
        part, whole = (left, right) if sign.endswith("in") else (right, left)
        if part.kind == "text" and whole.kind != "number":
            return ""
        return f"{sign!r} looks for text in text or in a list of words, got {_said(left)} and {_said(right)}"
    if left.kind != right.kind:
        return f"{sign!r} compares values of one kind, got {_said(left)} and {_said(right)}"
    if left.kind != "number" and sign not in ("==", "!="):
        return f"{sign!r} compares numbers, got {_said(left)} and {_said(right)}"
    return ""


def compared(left: Operand, sign: str, right: Operand) -> Callable[[SampleRow], bool]:
    """The comparison as a function of a row; false where a value is missing."""

    def holds(row: SampleRow) -> bool:
        a, b = left.value(row), right.value(row)
        if a is None or b is None:
            return False
        if sign not in _WITHIN:
            return SIGNS[sign](a, b)
        part, whole = (a, b) if sign.endswith("in") else (b, a)
        return (part in whole) != sign.startswith("not")  # type: ignore[operator]  # `refused` has seen the kinds

    return holds


def _said(operand: Operand) -> str:
    return f"{operand.text} ({_KINDS[operand.kind]})"
