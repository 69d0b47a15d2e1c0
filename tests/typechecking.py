"""The type checker of the tests: beartype, with an int allowed where a float is expected, as PEP 484 has it."""

from typing import Any

from beartype import BeartypeConf, beartype

UNCHECKED = ("VARGRPO.__init__",)
"""Takes plain specs too, which its annotations do not say where the command line reads them."""
_strict = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checker(x: Any) -> Any:
    """The function or class with checks."""
    return x if getattr(x, "__qualname__", "") in UNCHECKED else _strict(x)
