"""Names the rewards of `evaluate_with`, which score the images of evaluations, before any of them is built."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from varrl_lightning.errors import SpecError, listed

AUTOMATIC = "auto"
FORMS = "a name, a class path, {class_path: ..., init_args: ...} or an object"


def judge_specs(given: Any) -> dict[str, Any]:
    """The spec of each reward of `evaluate_with` by its name; nothing is built.

    One reward, or one of a list, has the name of its plugin or class. In a mapping the names are the user's.

    Args:
        given: one reward, a list of rewards, or a mapping of names to rewards; None or an empty one for none.

    Raises:
        SpecError: for a weight or anything else that is no reward, or a name that occurs twice or holds a slash.
    """
    given = _as_mapping(given)
    if given is None:
        return {}
    if isinstance(given, Mapping) and "class_path" not in given:
        specs = {name: _as_mapping(spec) for name, spec in given.items()}
        for name, spec in specs.items():
            _check(spec, f" for {name!r}")
    else:
        several = [_as_mapping(spec) for spec in given] if isinstance(given, (list, tuple)) else [given]
        for spec in several:
            _check(spec)
        specs = _named(several)
    for name in specs:
        if not isinstance(name, str) or not name or "/" in name:
            raise SpecError(f"evaluate_with: the name {name!r} becomes part of metrics' names: expected a text without '/'")
    return specs


def _named(specs: list[Any]) -> dict[str, Any]:
    """Specs by the names of their plugins or classes."""
    names = [_name(spec) for spec in specs]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SpecError(
            f"evaluate_with has more than one reward named {listed(twice)}. Give them names of your own, as in "
            f"{{{twice[0]}: {twice[0]}, {twice[0]}_2: ...}}"
        )
    return dict(zip(names, specs, strict=True))


def _name(spec: Any) -> str:
    path = spec["class_path"] if isinstance(spec, Mapping) else spec
    if isinstance(path, str):
        return path.rpartition(".")[2]
    return str(getattr(path, "__name__", type(path).__name__))


def _check(spec: Any, of: str = "") -> None:
    if isinstance(spec, str) and spec == AUTOMATIC:
        raise SpecError(
            "evaluate_with: auto stands alone, and is Tesseract where that can read. Beside others write tesseract, as in "
            "[tesseract, pickscore]"
        )
    number = spec is None or isinstance(spec, (bool, int, float))
    if number or isinstance(spec, (list, tuple)) or (isinstance(spec, Mapping) and "class_path" not in spec):
        raise SpecError(
            f"evaluate_with: expected a reward{of} ({FORMS}), got {spec!r}. Rewards of evaluation have no weights: write a list, "
            "[tesseract, pickscore], or give each a name, {mine: pickscore}"
        )


def _as_mapping(value: Any) -> Any:
    """The parser hands an untyped mapping over as a Namespace."""
    return vars(value) if isinstance(value, argparse.Namespace) else value
