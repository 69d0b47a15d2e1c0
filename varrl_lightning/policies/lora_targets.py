"""Which layers of a transformer an adapter is for, and whether an adapter from a file is for this transformer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from varrl_lightning.policies.peft_folder import AdapterFolder, base_mark
from varrl_lightning.weights.loading import differences

RANK, ALPHA = 16, 32.0
"""Of an adapter, unless others are given."""


def settings_of(start: AdapterFolder | None, rank: int | None, alpha: float | None) -> tuple[int, float]:
    """Rank and alpha of a new adapter: the given ones, else those of the adapter to begin with, else the defaults.

    Raises:
        ValueError: when the adapter to begin with has others than those given.
    """
    if start is None:
        return RANK if rank is None else rank, ALPHA if alpha is None else alpha
    for name, given, held in (("rank", rank, start.rank), ("alpha", alpha, start.alpha)):
        if given not in (None, held):
            raise ValueError(f"{name} is {given}, but the adapter in {start.label} has {name} {held:g}; leave {name} out")
    return start.rank, start.alpha


def layers_of(start: AdapterFolder, transformer: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """The layers of an adapter to begin with.

    Raises:
        ValueError: when they are not those of `targets`, or the transformer has other layers, shapes or weights.
    """
    kind = type(transformer).__name__
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    if absent := [name for name in start.layers if name not in linear]:
        listed = ", ".join(_patterns(absent))
        raise ValueError(
            f"the adapter in {start.label} is for another base: {listed} is no linear layer of {kind}, which has "
            f"{', '.join(_patterns(linear))}"
        )
    if targets is not None and (differing := set(targeted(transformer, targets)) ^ set(start.layers)):
        raise ValueError(
            f"the adapter in {start.label} has other targets than {list(targets)}: {', '.join(_patterns(sorted(differing)))}; "
            "leave targets out"
        )
    wanted = {}
    for name in start.layers:
        wanted[f"{name}.lora_A.weight"] = torch.empty(start.rank, linear[name].in_features, device="meta")
        wanted[f"{name}.lora_B.weight"] = torch.empty(linear[name].out_features, start.rank, device="meta")
    if problems := differences(start.tensors, wanted):
        raise ValueError(f"the adapter in {start.label} does not fit {kind} at rank {start.rank}:\n  " + "\n  ".join(problems))
    base = base_mark(transformer.state_dict())
    if start.base is None:
        warnings.warn(
            f"{start.label} does not say on which weights its adapter was trained: names and shapes fit this {kind}, its "
            "values could not be compared",
            stacklevel=3,
        )
    elif base not in (None, start.base):
        raise ValueError(
            f"the adapter in {start.label} was trained on other weights than those of this {kind} ({start.base} against {base}); "
            "give the base that it was trained on"
        )
    return start.layers


def targeted(transformer: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that the targets match."""
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in targets or ():
        if not any(_matches(name, target) for name in linear):
            kind = type(transformer).__name__
            raise ValueError(f"the target {target!r} is no linear layer of {kind}: {', '.join(_patterns(linear))}")
    chosen = [name for name in linear if targets is None or any(_matches(name, target) for target in targets)]
    if not chosen:
        raise ValueError(f"{type(transformer).__name__} has no linear layers to adapt; targets: {targets}")
    return chosen


def _patterns(names: Iterable[str]) -> list[str]:
    """Names of layers with `*` for their numbers, each once."""
    return list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in names))


def _matches(name: str, target: str) -> bool:
    return fnmatchcase(name, target) or fnmatchcase(name, f"*.{target}")
