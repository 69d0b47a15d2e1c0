"""Checks that the values of a comparison's YAML file have the types of its dataclasses, before any rule reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from varrl_lightning.errors import ConfigError

_NAMES: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}
"""What a value of a type is called, alone and in a list."""


def check_types(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Check values, by name of the field, against the annotations of a dataclass; only numbers, texts, lists and mappings.

    Args:
        where: the place of the mapping in the file; empty for the whole of it.

    Raises:
        ConfigError: names the key, what was given and what was expected.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        expected, fits = _expected(hints[name])
        if not fits(value):
            raise ConfigError(f"{where + '.' if where else ''}{name} must be {expected}, got {value!r:.80}{_advice(value)}")


def _expected(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    """What values of an annotation are called, and whether a value is one of them."""
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (part for part in get_args(hint) if part is not NoneType)
        expected, fits = _expected(inner)
        return f"{expected} or null", lambda value: value is None or fits(value)
    if hint in _NAMES:
        return _NAMES[hint][0], lambda value: _is(value, hint)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        of = f" of {_NAMES[item][1]}" if item in _NAMES else ""
        return (
            f"a list{of}",
            lambda value: isinstance(value, (list, tuple)) and all(item not in _NAMES or _is(part, item) for part in value),
        )
    if get_origin(hint) is not None and issubclass(get_origin(hint), Mapping):
        return "a mapping", lambda value: isinstance(value, Mapping)
    return "", lambda value: True  # noqa: ARG005  a part that was built from its own mapping


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)


def _advice(value: Any) -> str:
    """What to do about numbers that YAML reads as texts, for which they need a dot or no quotes."""
    parts: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    for part in parts:
        try:
            number = float(part) if isinstance(part, str) else None
        except ValueError:
            number = None
        if number is not None:
            return f"; {part!r} is a text to YAML: write {number if '.' in part or 'e' in part.lower() else int(number)!r}"
    return ""
