from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.workers import Workers


class Pool:
    """Workers of a world size: some for DeepSpeed, which changes a process for good, and others for all else."""

    def __init__(self, world_size: int) -> None:
        self._kinds = {deepspeed: Workers(world_size) for deepspeed in (False, True)}

    def __call__(self, job: str, **arguments: Any) -> list[Any]:
        """See `Workers`."""
        return self._of(job, arguments)(job, **arguments)

    def outcomes(self, job: str, **arguments: Any) -> list[tuple[Any, str | None]]:
        """See `Workers`."""
        return self._of(job, arguments).outcomes(job, **arguments)

    def stop(self) -> None:
        """End all of them."""
        for workers in self._kinds.values():
            workers.stop()

    def _of(self, job: str, arguments: dict[str, Any]) -> Workers:
        of_deepspeed = "jobs_deepspeed" in f"{job} {arguments.get('by')}"
        return self._kinds[of_deepspeed or str(arguments.get("strategy")).startswith("zero")]


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], Pool]]:
    """Workers of a world size; started once for all files of tests, on their first job."""
    started: dict[int, Pool] = {}
    yield lambda world_size: started.setdefault(world_size, Pool(world_size))
    for pool in started.values():
        pool.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs on several processes; the hook is called with the tests of all folders."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("distributed")
