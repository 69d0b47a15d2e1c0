"""What holds for all tests: one thread a process, type checks, and who runs which files when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Two workers, and the processes that they start, share two cores; the rewards' onnxruntime takes torch's number.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
import typechecking
from fresh import Fresh
from xdist.scheduler import LoadFileScheduling

torch.set_num_threads(1)
# Before anything imports the package: modules that are already loaded are not checked.
typechecking.install("varrl_lightning")

DISTRIBUTED = "tests/distributed"
DEAREST = (
    *("test_recipes", "test_choices", "test_cli_runs", "test_drop_in", "test_cache", "test_comparison", "test_serving"),
    *("test_memory", "test_switti", "test_infinity", "test_var", "test_module", "test_averaging", "test_adapter_runs"),
    "test_gradient_agreement",
)
"""Files whose tests take longest, the longest first: a worker that begins one of them last would run on alone."""


class Files(LoadFileScheduling):  # type: ignore[misc]
    """Whole files, and those of `DISTRIBUTED` to one worker: its tests start two processes each, so that two would be four."""

    def _split_scope(self, nodeid: str) -> str:
        return DISTRIBUTED if nodeid.startswith(DISTRIBUTED) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Files | None:
    return Files(config, log) if config.getoption("dist") == "loadfile" else None


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
    items.sort(key=lambda item: -1 if item.nodeid.startswith(DISTRIBUTED) else rank.get(item.path.stem, len(rank)))
