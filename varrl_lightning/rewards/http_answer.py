"""The answer of a reward service: one row per image, as examples/reward_service/PROTOCOL.md defines it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.http_request import RequestError, corners, kind_of, read_json, shortened
from varrl_lightning.types import Box, Scores

T = TypeVar("T")
_LARGEST = torch.finfo(torch.float32).max  # of a score: beyond it a number would be infinite


@dataclass(frozen=True)
class Row:
    """The answer about one image.

    Args:
        value: the return; None where there is none.
        components: named parts of the value.
        regions: boxes in pixels; None when the reward gives none for any image.
        texts: words that were read; None when the reward does not read.
        error: why there is no value, when a reason is known; beside a value, what else could not be read.
    """

    value: float | None = None
    components: Mapping[str, float | None] = field(default_factory=dict)
    regions: Sequence[Box] | None = None
    texts: Sequence[str] | None = None
    error: str | None = None


def encode_answer(rows: Sequence[Row], whole_groups: bool = False) -> dict[str, Any]:
    """The object that answers a request; all lists in it have one entry per image, and all numbers are finite.

    Args:
        whole_groups: whether the reward compares the images of a request.
    """
    rows = [_with_finite_regions(row) for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.components)
    return {
        **({"whole_groups": True} if whole_groups else {}),
        "values": [_number(row.value) for row in rows],
        "components": {_unicode(name): [_number(row.components.get(name)) for row in rows] for name in names},
        "regions": _or_none(rows, lambda row: None if row.regions is None else [corners(box) for box in row.regions]),
        "texts": _or_none(rows, lambda row: None if row.texts is None else [_unicode(str(text)) for text in row.texts]),
        "errors": [None if row.error is None else _unicode(shortened(row.error)) for row in rows],
    }


def _or_none(rows: Sequence[Row], part: Callable[[Row], list[Any] | None]) -> list[list[Any]] | None:
    """One list per image, or null when no image has the part."""
    parts = [part(row) for row in rows]
    return None if all(p is None for p in parts) else [p or [] for p in parts]


def _with_finite_regions(row: Row) -> Row:
    if row.regions is None or all(math.isfinite(corner) for box in row.regions for corner in corners(box)):
        return row
    return replace(row, value=None, regions=(), error=row.error or "the reward's regions are not finite")


def decode_answer(body: bytes, n: int) -> list[Row]:
    """One row per image from the body of an answer about n images; see `read_rows`.

    Raises:
        ValueError: when the body is not an answer as the protocol defines it, in particular not one entry per image.
    """
    return read_rows(read_answer(body), n)


def read_answer(body: bytes) -> Mapping[str, Any]:
    """The object that the body of an answer holds.

    Raises:
        ValueError: when it is not JSON, or no object with a mapping of components. NaN and Infinity are read, as many services
            write them.
    """
    try:
        answer = read_json(body, constants=True)
    except RequestError as error:
        raise ValueError(str(error)) from error
    if not isinstance(answer, dict) or not isinstance(answer.get("components") or {}, dict):
        raise ValueError("the answer must be an object with 'values' and, if any, 'components' by name")
    return answer


def read_rows(answer: Mapping[str, Any], n: int) -> list[Row]:
    """One row per image of an answer about n images.

    An entry that cannot be read costs its image alone: the value is None, and the error names the entry. Of a component it costs
    that component of the image, and the error says so beside the value.

    Raises:
        ValueError: when there is not one entry per image.
    """
    problems: list[list[str]] = [[] for _ in range(n)]
    values = _column(answer.get("values"), n, "values", _read_number, problems)
    regions = _optional(answer, "regions", n, _read_boxes, problems)
    texts = _optional(answer, "texts", n, _read_texts, problems)
    unscored = [bool(of_image) for of_image in problems]
    components = {
        name: _column(column, n, f"the component {name!r}", _read_number, problems)
        for name, column in (answer.get("components") or {}).items()
    }
    errors = _optional(answer, "errors", n, _read_error, problems)
    return [
        Row(
            None if unscored[i] else values[i],
            {name: column[i] for name, column in components.items()},
            regions[i],
            texts[i],
            errors[i] or ("; ".join(problems[i]) or None),
        )
        for i in range(n)
    ]


def _column(column: Any, n: int, what: str, read: Callable[[Any], T], problems: list[list[str]]) -> list[T | None]:
    """The entries of a column; None for those that cannot be read, whose image is told so in `problems`."""
    if not isinstance(column, list) or len(column) != n:
        got = f"{len(column)} entries" if isinstance(column, list) else kind_of(column)
        raise ValueError(f"{what} must be a list of {n}, one entry per image, got {got}")
    entries: list[T | None] = []
    for i, (entry, of_image) in enumerate(zip(column, problems, strict=True)):
        try:
            entries.append(None if entry is None else read(entry))
        except (ValueError, TypeError, OverflowError) as error:
            of_image.append(shortened(f"{what}[{i}]: {error}"))
            entries.append(None)
    return entries


def _optional(answer: Mapping[str, Any], key: str, n: int, read: Callable[[Any], T], problems: list[list[str]]) -> list[T | None]:
    return [None] * n if answer.get(key) is None else _column(answer[key], n, key, read, problems)


def _read_number(entry: Any) -> float:
    """A number that is finite in float32; it may stand in a string."""
    if isinstance(entry, bool) or not isinstance(entry, (int, float, str)):
        raise ValueError(f"expected a number or null, got {entry!r}")
    try:
        number = float(entry)
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise ValueError(f"expected a finite number or null, got {entry!r}")
    return number


def _read_boxes(entry: Any) -> list[Box]:
    if not isinstance(entry, list) or not all(isinstance(box, list) and len(box) == 4 for box in entry):
        raise ValueError(f"expected a list of [x0, y0, x1, y1], got {entry!r}")
    return [Box(*map(_read_number, box)) for box in entry]


def _read_texts(entry: Any) -> list[str]:
    if not isinstance(entry, list) or not all(isinstance(text, str) for text in entry):
        raise ValueError(f"expected a list of strings, got {entry!r}")
    return entry


def _read_error(entry: Any) -> str | None:
    return shortened(entry if isinstance(entry, str) else json.dumps(entry)) or None


def rows_of(scores: Scores) -> list[Row]:
    """One row per image of the scores."""
    usable = scores.usable.tolist()
    values = scores.values.tolist()
    parts = {name: column.tolist() for name, column in scores.components.items()}
    return [
        Row(
            values[i] if ok else None,
            {name: column[i] for name, column in parts.items()},
            None if scores.regions is None else scores.regions[i],
            None if scores.texts is None else scores.texts[i],
        )
        for i, ok in enumerate(usable)
    ]


def scores_of(rows: Sequence[Row]) -> Scores:
    """The scores of rows, one per image; NaN where there is no value."""
    names = dict.fromkeys(name for row in rows for name in row.components)
    return Scores(
        values=_tensor([row.value for row in rows]),
        components={name: _tensor([row.components.get(name) for row in rows]) for name in names},
        regions=None if all(row.regions is None for row in rows) else [list(row.regions or ()) for row in rows],
        valid=torch.tensor([_number(row.value) is not None for row in rows], dtype=torch.bool),
        texts=None if all(row.texts is None for row in rows) else [list(row.texts or ()) for row in rows],
    )


def _tensor(column: Sequence[float | None]) -> Float[Tensor, " N"]:
    return torch.tensor([math.nan if x is None else x for x in column], dtype=torch.float32)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _unicode(text: str) -> str:
    """A text that UTF-8 can encode: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")
