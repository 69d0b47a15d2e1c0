"""What a batch holds beside its prompts, as plain values for `Prompt.extra`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from varrl_lightning.types.frozen import frozen_json

LARGEST = 1024
"""Numbers in an array above which it counts as large: a score, a box or an embedding has fewer, a picture or a mask has more."""


def is_large(value: Any) -> bool:
    """Whether a value of one row is a picture or a large array, which no reward wants a copy of in its prompt.

    A picture is an object with a `size` and a `mode`, as Pillow's are, or an array of three or more dimensions.
    """
    shape = getattr(value, "shape", None)
    if shape is not None:
        return len(shape) >= 3 or math.prod(shape) > LARGEST
    return hasattr(value, "mode") and hasattr(value, "size")


def extra_column(name: str, column: Any, rows: int) -> list[Any] | None:
    """One value of a column for each row; None, with a warning, for a column that has other rows than the batch.

    A single text, number or truth value is that of each row. torch's default collate makes columns of the parts of lists and
    objects: of objects these are read, of lists they cannot be told from rows.
    """
    if column is None or isinstance(column, (str, int, float)) or getattr(column, "shape", None) == ():
        return [column] * rows
    if isinstance(column, Mapping):
        parts = {key: extra_column(f"{name}[{key!r}]", part, rows) for key, part in column.items()}
        return [{key: part[row] for key, part in parts.items() if part is not None} for row in range(rows)]
    if getattr(column, "shape", None) is not None:
        fits = column.shape[0] == rows
    else:
        fits = isinstance(column, Sequence) and len(column) == rows and not all(_is_turned(part, rows) for part in column)
    if fits:
        return list(column)
    if _holds_large(column):
        return None
    warnings.warn(
        f"the column {name!r} does not have one value for each of {rows} rows, and is left out of Prompt.extra; torch's default "
        "collate transposes columns of lists: use collate_fn=list",
        stacklevel=2,
    )
    return None


def _is_turned(part: Any, rows: int) -> bool:
    """Whether an entry of a column is a column itself: the default collate makes tuples of texts, and tensors of numbers.

    Of objects it makes one with a column under each key, which numbers show; a list of texts may be a row's own.
    """
    if isinstance(part, Mapping):
        return any(_is_turned(value, rows) for value in part.values())
    if isinstance(part, tuple):
        return len(part) == rows and all(isinstance(text, str) for text in part)
    shape: Sequence[int] = getattr(part, "shape", ())
    return len(shape) in (1, 2) and shape[0] == rows


def extra_values(item: Mapping[Any, Any]) -> dict[str, Any]:
    """The plain values of a row; those that JSON does not have are left out with a warning that names them."""
    values = {}
    for name, value in item.items():
        if _holds_large(value):
            continue
        try:
            values[name] = frozen_json({name: value}, "the row")[name]
        except ValueError as error:
            warnings.warn(f"left out of Prompt.extra: {error}", stacklevel=2)
    return values


def _holds_large(value: Any) -> bool:
    return is_large(value) or (isinstance(value, (list, tuple)) and any(map(is_large, value)))
