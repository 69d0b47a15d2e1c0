"""The columns of sample tables that hold no pictures: their names, and the value of each in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from varrl_lightning.errors import no_such_name
from varrl_lightning.sample_tables.rows import SampleRow

Kind: TypeAlias = Literal["number", "text", "words"]
Value: TypeAlias = float | str | tuple[str, ...] | None

KINDS: dict[str, Kind] = {
    "step": "number",
    "stage": "text",
    "prompt": "text",
    "words": "words",
    "group": "number",
    "branch": "number",
    "continuation": "number",
    "read": "words",
    "reward": "number",
    "return": "number",
    "advantage": "number",
}
MAPS = ("rewards", "parts")


class UnknownColumnError(ValueError):
    """Tables have no such column; the message names the closest one, and all."""


def columns_of(rows: Sequence[SampleRow]) -> dict[str, Kind]:
    """All columns without pictures by name, with the kind of their values; `rewards.NAME` and `parts.REWARD.PART` for each one."""
    found: dict[str, Kind] = {}
    for name, kind in KINDS.items():
        found[name] = kind
        if name == "reward":
            found |= {f"{group}.{key}": "number" for group in MAPS for row in rows for key in getattr(row, group)}
    return found


def column_named(name: str, columns: Sequence[str]) -> str:
    """The column that a user means; `parts.PART` will do where one reward alone has that part.

    Raises:
        UnknownColumnError: where there is none, or several.
    """
    if name in columns:
        return name
    group, _, part = name.partition(".")
    short = [
        column for column in columns if group == "parts" and part and column.endswith(f".{part}") and column.startswith("parts.")
    ]
    if len(short) == 1:
        return short[0]
    if short:
        raise UnknownColumnError(f"several rewards have the part {part!r}: write {' or '.join(short)}")
    raise UnknownColumnError(no_such_name("the table", name, columns))


def value_of(row: SampleRow, column: str) -> Value:
    """The value of a row; None where it is missing."""
    group, _, key = column.partition(".")
    if key:
        number: float | None = getattr(row, group).get(key)
        return number
    value: Value = getattr(row, "return_" if column == "return" else column)
    return value


def plain_table(
    rows: Sequence[SampleRow], columns: Sequence[str] | None = None
) -> tuple[list[str], list[list[float | str | None]]]:
    """Names and rows of a table for a console or a logger, words joined by spaces.

    Args:
        columns: which ones; all when None.
    """
    names = list(columns_of(rows) if columns is None else columns)
    return names, [[" ".join(v) if isinstance(v, tuple) else v for v in (value_of(row, name) for name in names)] for row in rows]
