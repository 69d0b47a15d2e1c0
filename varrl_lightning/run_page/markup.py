"""Text as HTML, without anything in it that a browser would take for markup."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_VOID = ("img", "input")


def escaped(text: object) -> str:
    """Text that stands in an element or in an attribute; characters that no page may hold become a replacement character."""
    kept = "".join(
        c if c in "\t\n\r" or (ord(c) >= 0x20 and not 0xD800 <= ord(c) <= 0xDFFF) else "\N{REPLACEMENT CHARACTER}"
        for c in str(text)
    )
    return html.escape(kept, quote=True)


def tag(name: str, content: str | None, attributes: Mapping[str, object] | None = None) -> str:
    """An element.

    Args:
        content: HTML; escaped by the caller.
        attributes: escaped here; one that is None is left out, and one that is True has no value.
    """
    given = "".join(
        f" {key}" if value is True else f' {key}="{escaped(value)}"'
        for key, value in (attributes or {}).items()
        if value is not None
    )
    return f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{content or ''}</{name}>"


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = False) -> str:
    """A table of text, in a frame of its own that scrolls where the screen is narrow.

    Args:
        numbers: whether all columns but the first are numbers, which stand to the right.
    """
    head = tag("tr", "".join(tag("th", escaped(head), {"scope": "col"}) for head in heads))
    body = "".join(
        tag("tr", tag("th", escaped(first), {"scope": "row"}) + "".join(tag("td", escaped(cell)) for cell in rest))
        for first, *rest in rows
    )
    whole = tag("caption", escaped(caption)) + tag("thead", head) + tag("tbody", body)
    return frame(tag("table", whole, {"class": "numbers" if numbers else None}), caption)


def frame(content: str, label: str, *, tall: bool = False) -> str:
    """A region that scrolls by itself, by keyboard too; a tall one also up and down."""
    return tag(
        "div", content, {"class": "scrolls tall" if tall else "scrolls", "role": "region", "aria-label": label, "tabindex": "0"}
    )


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: no `<` ends the element, or begins a comment.

    Raises:
        ValueError: on a number that is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def number(value: float | None) -> str:
    """Four digits; a dash where there is no number."""
    return "–" if value is None else f"{value:.4g}"
