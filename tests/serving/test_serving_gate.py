"""What the gate does with clients that take their time, and with an application that does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from varrl_lightning.rewards.http_request import Limits
from varrl_lightning.serving import gate as serving_gate
from varrl_lightning.serving.gate import Gate

GOOD = b'{"images": ["a"], "prompts": ["b"]}'


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """Sends these messages, then nothing for ever; keeps what it is answered."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages, self.answer = list(messages), []  # type: ignore[var-annotated]

    async def receive(self) -> dict[str, Any]:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.answer.append(message)

    @property
    def status(self) -> int:
        status: int = self.answer[0]["status"]
        return status

    @property
    def detail(self) -> str:
        detail: str = json.loads(self.answer[1]["body"])["detail"]
        return detail


def through(client: Client, app: Any, limits: Limits | None = None, timeout: float = 5.0) -> None:
    headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", b"application/json; charset=utf-8")]
    scope = {"type": "http", "path": "/predict", "method": "POST", "headers": headers}
    asyncio.run(Gate(app, limits or Limits(), None, timeout)(scope, client.receive, client.send))


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the application was reached")


def test_the_application_reads_what_came_in_pieces() -> None:
    read = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        read.append(await receive())

    through(Client(part(GOOD[:5], True), part(b"", True), part(GOOD[5:])), app)
    assert read == [part(GOOD)]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_gate, "BODY_TIMEOUT", 0.1)
    through(client := Client(part(GOOD[:5], True)), refuse)
    assert (client.status, client.detail) == (408, "the body did not come within 0.1 seconds")


def test_a_large_body_is_read_to_its_end_but_not_for_ever() -> None:
    pieces = [part(bytes(10), True)] * 200
    through(client := Client(*pieces), refuse, Limits(body=20))
    assert client.status == 413
    left = len(client.messages)
    assert left == 200 - 3 - 17  # two fit, a third does not; eight times the limit is dropped, and one more
    through(client := Client(*pieces[:10], part(b"")), refuse, Limits(body=20))
    assert (client.status, client.messages) == (413, [])


def test_a_client_that_goes_away_reaches_nothing() -> None:
    through(client := Client(part(GOOD[:5], True), {"type": "http.disconnect"}), refuse)
    assert client.status == 400


def test_an_application_that_hangs_is_given_up() -> None:
    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    through(client := Client(part(GOOD)), hang, timeout=0.1)
    assert (client.status, client.detail) == (504, "no answer within 0.1 seconds; the service is overloaded or hangs")
