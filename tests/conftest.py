"""What holds for all tests: one thread a process, type checks, and the dearest files first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Two workers, and the processes that they start, share two cores; the rewards' onnxruntime takes torch's number.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import typechecking
from fresh import Fresh

torch.set_num_threads(1)
# Before anything imports the package: modules that are already loaded are not checked.
typechecking.install("varrl_lightning")

DEAREST: tuple[str, ...] = ()
"""Files whose tests take longest, by their names: a worker that begins one of them last would run on alone."""


@pytest.fixture(scope="session")
def weights_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tests.families` writes each model's files once; nobody changes them."""
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="session")
def fresh() -> Iterator[Fresh]:
    """Runs code in an interpreter that has imported torch alone."""
    process = Fresh()
    yield process
    process.close()


def pytest_runtest_setup() -> None:
    typechecking.next_test()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(DEAREST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
