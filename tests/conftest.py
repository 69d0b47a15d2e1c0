"""What holds for all tests: one thread a process, type checks, and the dearest files first."""

from __future__ import annotations

import os

# Two workers, and the processes that they start, share two cores; the rewards' onnxruntime takes torch's number.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import typechecking

torch.set_num_threads(1)
# Before anything imports the package: modules that are already loaded are not checked.
typechecking.install("varrl_lightning")

DEAREST: tuple[str, ...] = ()
"""Files whose tests take longest, by their names: a worker that begins one of them last would run on alone."""


def pytest_runtest_setup() -> None:
    typechecking.next_test()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
