"""The help of a function or class method that builds an object, as `--model.policy.help CLASS.from_pretrained` asks for it."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from jsonargparse import ArgumentParser

_HELP = re.compile(r"--(?P<key>[\w.]+)\.help(?:=(?P<name>.+))?")
_MANY_CLASSES = re.compile(r",\s+known\s+subclasses:[^)]{300,}\)")
"""All of torch's modules, where an argument may be any of them."""


def function_help(arguments: Sequence[str], known: Callable[[], Iterable[str]]) -> str | None:
    """The help that a command line asks for of a function or a method; None where it asks for none.

    jsonargparse has the help of classes alone, although it also builds objects by functions and class methods.

    Args:
        arguments: of the command.
        known: gives the keys that it takes, dotted.
    """
    for key, name in _asked(arguments):
        target = _located(name)
        if _builds(target) and key in set(known()):
            parser = ArgumentParser(prog="varrl fit", add_help=False)
            _add(parser, target, key)
            return f"Help for --{key}.help={name}\n\n{_MANY_CLASSES.sub(')', parser.format_help())}"
    return None


def _asked(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Keys whose help is asked for, with the name after each."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := _HELP.fullmatch(argument):
            yield match["key"], match["name"] or following


def _located(name: str) -> Any:
    """What a dotted path names, also without the package in front; None where it names nothing."""
    try:
        return pydoc.locate(name) or pydoc.locate(f"varrl_lightning.{name}")
    except pydoc.ErrorDuringImport:
        return None


def _builds(target: Any) -> bool:
    """Whether it is a function that says what it builds, so that a configuration may name it as a class path."""
    return inspect.isroutine(target) and "return" in getattr(inspect.unwrap(target), "__annotations__", {})


def _add(parser: ArgumentParser, target: Any, key: str) -> None:
    owner = getattr(target, "__self__", None)
    if inspect.isclass(owner):
        parser.add_method_arguments(owner, target.__name__, key)
    else:
        parser.add_function_arguments(target, key)
