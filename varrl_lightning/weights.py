"""Says in which way two sets of named tensors do not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that is missing, unexpected or of another shape; empty when all fit."""
    problems = [f"missing {name} {list(wanted[name].shape)}" for name in wanted.keys() - found.keys()]
    problems += [f"unexpected {name} {list(found[name].shape)}" for name in found.keys() - wanted.keys()]
    problems += [
        f"misshaped {name}: {list(found[name].shape)} in the file, {list(wanted[name].shape)} in the model"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    return sorted(problems)
