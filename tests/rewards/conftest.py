"""Services of the tests of rewards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.rewards.chat_servers import ChatServer, chat_server
from tests.rewards.judges import spoken
from tests.rewards.scripted_service import Reply, Scripted


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    running: list[Scripted] = []

    def start(*script: Callable[[list[Any]], Reply]) -> Scripted:
        running.append(Scripted(*script))
        threading.Thread(target=running[-1].server.serve_forever, args=(0.01,), daemon=True).start()
        return running[-1]

    yield start
    for one in running:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def bright() -> Iterator[ChatServer]:
    """A judge of brightness."""
    with chat_server(spoken) as server:
        yield server
