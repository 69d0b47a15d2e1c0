"""Import a class by its dotted path and call it with checked arguments."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from varrl_lightning.errors import ClassPathError, InitArgsError, did_you_mean


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
            "Expected package.module.Class, installed or on PYTHONPATH; `python -m` adds the current folder."
        ) from error
    found = getattr(module, class_name, None)
    if not callable(found):
        classes = sorted(name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module_name)
        raise ClassPathError(
            f"the module {module_name!r} has no class {class_name!r}.{did_you_mean(class_name, classes)} "
            f"It has: {', '.join(classes) or 'none'}."
        )
    return found


def instantiate(cls: Any, name: str, init_args: Mapping[str, Any]) -> Any:
    """Call a constructor after checking the names of its arguments: its own TypeError would not list them.

    Raises:
        InitArgsError: on an argument that it does not take, with the closest name, or one that is missing.
    """
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
        raise InitArgsError(f"{name!r} needs the init_args {', '.join(missing)}. {listing}")
    return cls(**init_args)
