"""The names under which a prompt's values stand in other people's files and batches."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from varrl_lightning.types import Prompt

TEXT = ("text", "prompt", "caption")
NEGATIVE = ("negative", "negative_prompt")
FIELDS = tuple(field.name for field in fields(Prompt))
_CLOSE = 0.8
"""Least similarity of a misspelt key, as difflib counts it: `txt` has .86 with `text`, `keywords` .77 with `words`."""


def prompt_values(
    line: Mapping[str, Any], text_names: Sequence[str] = TEXT, unread: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The values of a decoded JSON object under the names of `Prompt`'s fields, and what its writer should be told.

    The text stands under the first of `text_names` that is there, the negative prompt under `negative` or `negative_prompt`. Other
    names that are no field's go into `extra`.

    Args:
        unread: names that are known and mean something else: they are no misspelt ones.

    Raises:
        ValueError: when a name is both in `extra` and beside it; names it.
    """
    own = {name: line[name] for name in FIELDS if name in line}
    taken, remarks = set(own), []
    for field, names in (("text", text_names), ("negative", NEGATIVE)):
        given = [name for name in names if line.get(name) is not None]
        taken |= {name for name in names if name in line and line[name] is None}
        if given:
            own[field] = line[given[0]]
            taken.add(given[0])
            remarks += [_two_names(field, given[0], name) for name in given[1:] if line[name] != own[field]]
    beside = {name: value for name, value in line.items() if name not in taken}
    remarks += [_misspelt(name, close) for name in beside if name not in unread and (close := close_field(name, text_names))]
    if beside:
        own["extra"] = joined_extra(own.get("extra"), beside)
    if isinstance(own.get("id"), int) and not isinstance(own["id"], bool):
        own["id"] = str(own["id"])
    return own, remarks


def joined_extra(extra: Any, beside: Mapping[str, Any]) -> Any:
    """`extra` as it was given, with the values that stood beside it.

    Raises:
        ValueError: when both have a name; names it.
    """
    if extra is not None and not isinstance(extra, Mapping):
        return extra  # which `Prompt` refuses
    both = sorted(set(extra or ()) & set(beside))
    if both:
        raise ValueError(f"{both[0]!r} is given twice: in 'extra' and beside it")
    return {**(extra or {}), **beside}


def close_field(name: Any, text_names: Iterable[str] = TEXT) -> str | None:
    """The name of a field that a key may be meant to be; None for a key that is like none, and for `prompt_id` or `text_en`."""
    known = dict.fromkeys((*FIELDS, *text_names, *NEGATIVE))
    if not isinstance(name, str) or name in known:
        return None
    plain = name.strip().casefold().replace("-", "_").replace(" ", "_")
    if plain in known:
        return plain
    if any(plain.startswith(f"{field}_") for field in known):
        return None
    candidates = [field for field in known if len(field) > 2]  # two letters have too many neighbours: idx, uid, ids
    swapped = [field for field in candidates if sorted(field) == sorted(plain)]
    close = swapped or difflib.get_close_matches(plain, candidates, n=1, cutoff=_CLOSE)
    return close[0] if close else None


def _two_names(field: str, read: str, other: str) -> str:
    return f"{read!r} and {other!r} differ: {read!r} is read as the prompt's {field}, and {other!r} goes into 'extra'"


def _misspelt(name: str, close: str) -> str:
    return f"the key {name!r} is no key of a prompt and goes into 'extra'; did you mean {close!r}?"
