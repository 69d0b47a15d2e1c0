"""Takes what wrappers put before the names of tensors off again: `module.`, `_orig_mod.`, `model.`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

_OF_A_MODULE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names, wherever they are, that only wrappers give: torch.compile, Fabric, FSDP, checkpointed activations."""
OUTER = ("module.", "model.")
"""Parts that also a model's own names may have: they are a wrapper's where all names begin with them."""
COUNT = "n_averaged"
"""Beside the tensors of torch's `AveragedModel`."""


def without_wrappers(tensors: Mapping[str, Tensor], marks: Sequence[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by their model's own names, and the parts of names that were taken off for it.

    Args:
        marks: names that the model has, with `*` for any characters; what all names have before these is a wrapper's. Without
            marks, `module.` and `model.` are, where all names begin with them.

    Raises:
        ValueError: when two tensors would have one name.
    """
    names, parts = _own_names(tensors, marks)
    return {own: tensors[name] for name, own in names.items()}, parts


def under_names_of(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by a module's names, where wrappers alone make these differ from theirs, on either side."""
    if tensors.keys() & wanted.keys():
        return dict(tensors)
    theirs, _ = _own_names(tensors, ())
    own = {plain: name for name, plain in _own_names(wanted, ())[0].items()}
    if own.keys().isdisjoint(theirs.values()):
        return dict(tensors)
    return {own.get(plain, name): tensors[name] for name, plain in theirs.items()}


def _own_names(names: Iterable[str], marks: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The model's own name for each of the names, and the parts that were taken off."""
    parts: dict[str, None] = {}
    own: dict[str, str] = {}
    for name in names:
        parts |= dict.fromkeys(_OF_A_MODULE.findall(name))
        own[name] = plain_name(name)
    named = [short for short in own.values() if short != COUNT]
    if taken := _common(named, marks):
        own = {name: short.removeprefix(taken) for name, short in own.items() if short != COUNT}
        parts[taken] = None
    if twice := [short for short, count in Counter(own.values()).items() if count > 1]:
        raise ValueError(f"there are several tensors {twice[0]}, with and without a wrapper's {' and '.join(parts)}")
    return own, list(parts)


def plain_name(name: str) -> str:
    """A tensor's name without the parts that only wrappers give, wherever they are in it."""
    return _OF_A_MODULE.sub("", name)


def prefixes(names: Iterable[str], marks: Sequence[str]) -> set[str]:
    """What stands before the marks: prefixes, empty or with a dot at their end, that with each mark make one of the names."""
    names = [plain_name(name) for name in names]
    found: list[set[str]] = []
    for mark in marks:
        form = re.compile(r"((?:.+?\.)?)" + re.escape(mark).replace(r"\*", ".*"))
        found.append({match[1] for name in names if (match := form.fullmatch(name))})
    return set.intersection(*found) if found else set()


def _common(names: Sequence[str], marks: Sequence[str]) -> str:
    """The prefix of all names that is a wrapper's."""
    if marks:
        before = prefixes(names, marks)
        return next((prefix for prefix in before if "" not in before and all(name.startswith(prefix) for name in names)), "")
    taken = ""
    while names and (outer := next((part for part in OUTER if all(name.startswith(taken + part) for name in names)), "")):
        taken += outer
    return taken
