"""The type checks of the tests: beartype, with an int allowed where a float is expected, as PEP 484 has it.

A check of every call takes as long as a step of the tiny model itself, and finds what the first calls of each test find. So of each
function the first `CALLS` calls in each test are checked, and its checker is built when it is first called.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

UNCHECKED = ("VARGRPO.__init__",)
"""Takes plain specs too, which its annotations do not say where the command line reads them."""
CALLS = 3
_strict = beartype(conf=BeartypeConf(is_pep484_tower=True))
_every_call = jaxtyping.jaxtyped
_test = [0]


def checker(x: Any) -> Any:
    """The function or class with checks."""
    return x if getattr(x, "__qualname__", "") in UNCHECKED else _strict(x)


def install(package: str) -> None:
    """Check the calls of all functions of a package that is not yet imported."""
    jaxtyping.jaxtyped = _first_calls
    jaxtyping.install_import_hook(package, f"{__name__}.checker")


def next_test() -> None:
    """Check the first calls of every function again."""
    _test[0] += 1


def _first_calls(fn: Any = None, *, typechecker: Any = None) -> Any:
    """What the import hook decorates with, in place of `jaxtyping.jaxtyped`."""
    if fn is None:
        return functools.partial(_first_calls, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return _every_call(fn, typechecker=typechecker)
    checked: Any = None
    test, left = -1, 0

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked, test, left
        if test != _test[0]:
            test, left = _test[0], CALLS
        if left == 0:
            return fn(*args, **kwargs)
        left -= 1
        checked = checked or _every_call(fn, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call
