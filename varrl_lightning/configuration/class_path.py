"""Import a class by its dotted path, and check the arguments that it is to be called with."""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from varrl_lightning.configuration.explain import explain
from varrl_lightning.errors import ClassPathError, InitArgsError, did_you_mean

PLAIN = (str, int, float, bool, NoneType)
"""Types of the values that a configuration spells out."""
DATA = (*PLAIN, Path)
"""Types that such a value can become without a class being named."""


def import_class(path: str) -> Any:
    """Import `package.module.Class`.

    Raises:
        ClassPathError: when the module does not exist, raises on import, or has no such class; lists those it has.
    """
    module_name, _, class_name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything when imported
        raise ClassPathError(
            f"cannot import {path!r}: {type(error).__name__}: {error}. "
            "Expected module.Class, of a module in the current folder, installed, or on PYTHONPATH."
        ) from error
    cls = getattr(module, class_name, None)
    if not callable(cls):
        classes = sorted(name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name)
        raise ClassPathError(
            f"the module {module_name!r} has no class {class_name!r}.{did_you_mean(class_name, classes)} "
            f"It has: {', '.join(classes) or 'none'}."
        )
    return cls


def checked_arguments(cls: Any, name: str, init_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a constructor, each as the type that its annotation asks for.

    Its own TypeError would not list what it takes. What stays as it is: a value without an annotation, an object, a string where
    a string is allowed, and a spec (a mapping with a `class_path`) where an object is allowed.

    Args:
        cls: a class, or a function that returns an object.
        name: how the user called it, for messages.

    Raises:
        InitArgsError: on an argument that it does not take, with the closest name; on one that is missing; on a value of another
            type, with the type that is expected.
    """
    _check_names(cls, name, init_args)
    kinds = _annotations(cls)
    return {key: _converted(name, key, kinds[key], value) if key in kinds else value for key, value in init_args.items()}


def is_spec(value: Any) -> bool:
    """Whether a value names a class and its arguments."""
    return isinstance(value, Mapping) and "class_path" in value


def _check_names(cls: Any, name: str, init_args: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    accepted = [p.name for p in named]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    listing = f"It takes: {', '.join(accepted) or 'no arguments'}."
    for key in init_args:
        if key not in accepted and not takes_any:
            raise InitArgsError(f"{name!r} has no init_arg {key!r}.{did_you_mean(key, accepted)} {listing}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in init_args]
    if missing:
        is_reward = " A function that is itself a reward takes images and prompts." if "images" in missing else ""
        raise InitArgsError(f"{name!r} needs the init_args {', '.join(missing)}. {listing}{is_reward}")


def _annotations(cls: Any) -> dict[str, Any]:
    """Types of the arguments; without those that cannot be evaluated, since a module may import them for type checkers alone."""
    function = inspect.unwrap(cls.__init__ if inspect.isclass(cls) else cls)
    known = getattr(function, "__globals__", {})
    kinds: dict[str, Any] = {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.annotation is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            with suppress(Exception):  # evaluating somebody's annotation may raise anything
                kind = get_type_hints(SimpleNamespace(__annotations__={"it": parameter.annotation}), known)["it"]
                kinds[parameter.name] = kind | None if parameter.default is None else kind  # `x: int = None` takes None too
    return kinds


def _converted(name: str, key: str, kind: Any, value: Any) -> Any:
    """One value as the type that an annotation asks for.

    Raises:
        InitArgsError: when it cannot be.
    """
    if _passes_unchecked(kind, value):
        return value
    message = f"the init_arg {key!r} of {name!r} must be of type {_written(kind)}, got {value!r}"
    if value is None:  # jsonargparse takes it for a value that is not set
        if NoneType in _alternatives(kind):
            return None
        raise InitArgsError(message)
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=kind)
    except ValueError:  # a type that it does not know
        return value
    try:
        # It puts what it has converted into the mapping that it is given.
        parsed = parser.parse_object({"value": copy.deepcopy(value)})
    except argparse.ArgumentError as error:
        raise InitArgsError(message if _is_data(kind) else f"{message}\n{_reason(error)}") from error
    return parser.instantiate(parsed)["value"]


def _passes_unchecked(kind: Any, value: Any) -> bool:
    if not _is_plain(value) or any(leaf in (Any, object) or isinstance(leaf, TypeVar) for leaf in _leaves(kind)):
        return True
    if isinstance(value, str):
        return str in _alternatives(kind)
    return is_spec(value) and not _is_data(kind)


def _is_plain(value: Any) -> bool:
    """Whether a configuration file can hold the value."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, (list, tuple)) else isinstance(value, PLAIN)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """A type, or those of a union."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _leaves(kind: Any) -> Iterator[Any]:
    """The types that a type is made of."""
    parts = () if get_origin(kind) in (Literal, Callable) else [part for part in get_args(kind) if part is not Ellipsis]
    for part in parts:
        yield from _leaves(part)
    if not parts:
        yield kind


def _is_data(kind: Any) -> bool:
    """Whether a type allows nothing but what a configuration spells out."""
    return all(leaf in DATA or get_origin(leaf) is Literal for leaf in _leaves(kind))


def _written(kind: Any) -> str:
    """A type as one would annotate it, without the names of modules."""
    return re.sub(r"'[^']*'|[\w.]+\.(\w+)", lambda match: match[1] or match[0], inspect.formatannotation(kind))


def _reason(error: argparse.ArgumentError) -> str:
    """Why a class path names nothing that fits, without the name that the value has in the parser."""
    return "\n".join(line for line in explain(str(error), ()).splitlines() if not line.startswith("Parser key"))
