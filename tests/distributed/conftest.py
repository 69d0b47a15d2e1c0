from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.workers import Workers


@pytest.fixture(scope="session")
def workers() -> Iterator[Callable[[int], Workers]]:
    """Workers of a world size; started once, on their first job."""
    started: dict[int, Workers] = {}
    yield lambda world_size: started.setdefault(world_size, Workers(world_size))
    for group in started.values():
        group.stop()
