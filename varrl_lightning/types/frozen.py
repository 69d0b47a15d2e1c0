"""JSON values that cannot be changed: what `Prompt.extra` is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    raise TypeError(f"cannot change the {type(self).__name__} of a prompt; change a copy, dict(...) or list(...), of it")


class FrozenDict(dict[str, Any]):
    """A JSON object that equals the plain `dict`, is written by `json`, and refuses to be changed."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)

    def __deepcopy__(self, memo: object) -> FrozenDict:
        return self


class FrozenList(list[Any]):
    """A JSON array that equals the plain `list`, is written by `json`, and refuses to be changed."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = pop = remove = clear = sort = reverse = _refuse

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self),)

    def __deepcopy__(self, memo: object) -> FrozenList:
        return self


def frozen_json(value: Any, name: str) -> Any:
    """A JSON value that cannot be changed; tuples become arrays, tensors and arrays of numbers their plain values.

    Args:
        name: of the value, for the error message.

    Raises:
        ValueError: for a value that JSON does not have, NaN and infinity among them; names it.
    """
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{name} has the key {key!r}, and keys in JSON are strings")
        return FrozenDict({key: frozen_json(part, f"{name}[{key!r}]") for key, part in value.items()})
    if isinstance(value, (list, tuple)):
        return FrozenList(frozen_json(part, f"{name}[{index}]") for index, part in enumerate(value))
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which JSON does not have; leave it out, or write null (None)")
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(
        f"{name} is a {type(value).__name__}, which JSON does not have; expected text, numbers, true, false, null, and lists and "
        "objects of these"
    )
