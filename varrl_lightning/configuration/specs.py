"""Turns arguments into plain values for a checkpoint, and builds the objects that plain values specify."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from varrl_lightning.configuration.explain import explain
from varrl_lightning.errors import SpecError, no_such_name
from varrl_lightning.types import Sampling, SamplingChanges, Score, Stage

T = TypeVar("T")
if TYPE_CHECKING:
    Specified: TypeAlias = T | str | Mapping[str, Any]
else:

    class Specified:
        """`Specified[Kind]`: a `Kind`, or a plain spec of one; `Kind` alone to a command line, which builds specs itself."""

        def __class_getitem__(cls, kind: Any) -> Any:
            return kind


@dataclass(frozen=True)
class OptionGroup:
    """Base of the dataclasses that group options of `VARGRPO`: a checkpoint holds their fields."""


LEFT_OUT = "not_saved"
"""Key in saved arguments that marks an object which a checkpoint cannot hold."""


class _NotPlainError(Exception):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.name = _name_of(value)


def built(name: str, kind: Any, value: Any) -> Any:
    """Build what a plain spec means in a configuration: a class path, `{class_path, init_args}`, or the fields of a dataclass.

    Any other value, such as an object, is returned unchanged.

    Args:
        kind: the annotation of the argument: what the spec may name.

    Raises:
        SpecError: names the argument and the mistake.
    """
    if isinstance(kind, type) and issubclass(kind, OptionGroup) and not isinstance(value, (Mapping, argparse.Namespace, kind)):
        raise SpecError(f"{name} must be a {kind.__name__} or a mapping of its fields, got {value!r}")
    if not isinstance(value, Mapping) and (is_dataclass(kind) or not isinstance(value, str)):
        return value
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    for key in value if names else ():
        if key not in names:
            raise SpecError(no_such_name(name, key, names))
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    try:
        return parser.instantiate(parser.parse_object({name: value}))[name]
    except (argparse.ArgumentError, TypeError) as error:
        raise SpecError(explain(str(error), [name])) from error


def saved_arguments(arguments: Mapping[str, Any], required: Iterable[str]) -> dict[str, Any]:
    """Arguments as plain values; an object among the `required` ones leaves a note of its class, any other is left out."""
    saved, required = {}, set(required)
    for name, value in arguments.items():
        try:
            saved[name] = _plain(value)
        except _NotPlainError as error:
            if name in required:
                saved[name] = {LEFT_OUT: error.name}
    return saved


def refuse_left_out(owner: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that a checkpoint does not hold.

    Raises:
        SpecError: when there are any; names all of them and their classes.
    """
    missing = {name: value[LEFT_OUT] for name, value in arguments.items() if isinstance(value, Mapping) and LEFT_OUT in value}
    if missing:
        was = ", ".join(f"{name} (a {kind})" for name, kind in missing.items())
        again = ", ".join(f"{name}=..." for name in missing)
        raise SpecError(
            f"the checkpoint does not hold {was}: objects of the program that wrote it. Give them again, as in "
            f"{owner}.load_from_checkpoint(path, {again}); plain specs, {{'class_path': ..., 'init_args': ...}}, are held"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, (Stage, Sampling, SamplingChanges, Score, OptionGroup)):
        value = asdict(value)
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if value is None or isinstance(value, bool):
        return value
    kinds: dict[type, Any] = {str: str, Path: str, Integral: int, Real: float}  # numpy's numbers become plain ones too
    for kind, simple in kinds.items():
        if isinstance(value, kind):
            return simple(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type) and _is_importable(value):
        return _name_of(value)
    raise _NotPlainError(value)


def _is_importable(cls: type) -> bool:
    return cls.__module__ != "__main__" and getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls


def _name_of(value: Any) -> str:
    """`package.module.Name` of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
