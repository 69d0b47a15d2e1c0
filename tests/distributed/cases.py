"""The whole matrix of a test, of which a normal run takes some cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def usually(chosen: Collection[Any], of: Iterable[Any]) -> list[Any]:
    """Cases for `pytest.mark.parametrize`: those that are not `chosen` are slow tests."""
    cases = list(of)
    assert not (unknown := [case for case in chosen if case not in cases]), unknown
    marks = [() if case in chosen else pytest.mark.slow for case in cases]
    return [pytest.param(*case, marks=mark) for case, mark in zip(cases, marks, strict=True)]
