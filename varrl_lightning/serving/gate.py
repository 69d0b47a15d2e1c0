"""The gate before the reward service: it checks the key, the size and the form of a request before anything else sees it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from varrl_lightning.rewards.http_request import HEALTH, KEY_HEADER, PATH, Limits, RequestError, check_request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
BODY_TIMEOUT = 60.0
"""Seconds within which a whole body must arrive."""
DRAIN_FACTOR = 8
"""Times the limit up to which a rejected body is read and dropped: most clients read no answer before they have sent all."""


class Gate:
    """ASGI middleware that answers 401, 404, 405, 408, 411, 413, 415, 400 and 504 itself, as `{"detail": <why>}`.

    Args:
        app: the ASGI application behind the gate.
        limits: the largest request.
        api_key: key that every page but the health page requires; None requires none.
        timeout: seconds within which the application must answer; after that the gate answers 504.
    """

    def __init__(self, app: App, limits: Limits, api_key: str | None, timeout: float) -> None:
        self.app, self.limits, self.timeout = app, limits, timeout
        self.api_key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request, or the start and the end of the server."""
        if scope["type"] == "lifespan":
            end_with_the_parent()
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._pass(scope, receive, send)
            except RequestError as rejection:
                await _answer(send, rejection)

    async def _pass(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        path = scope["path"]
        if path != HEALTH:
            await self._check_key(headers, receive)
        if path != PATH:
            await self.app(scope, receive, send)
            return
        body = await self._read(scope, headers, receive)
        check_request(body, self.limits)
        try:
            await asyncio.wait_for(self.app(scope, _replay(body, receive), send), self.timeout)
        except asyncio.TimeoutError as error:
            raise RequestError(504, f"no answer within {self.timeout:g} seconds; the service is overloaded or hangs") from error

    async def _check_key(self, headers: MutableMapping[bytes, bytes], receive: Receive) -> None:
        given = headers.get(KEY_HEADER.lower().encode(), b"")
        if self.api_key is not None and not hmac.compare_digest(given, self.api_key):
            await self._drain(_chunks(receive))
            raise RequestError(401, f"the header {KEY_HEADER} is missing or does not hold this service's key")

    async def _read(self, scope: Message, headers: MutableMapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body.

        Raises:
            RequestError: when it is no POST of JSON, is too large or does not come.
        """
        if scope["method"] != "POST":
            raise RequestError(405, f"{PATH} takes POST, got {scope['method']}")
        # JSON alone: a page in a browser could send other types to 127.0.0.1 without asking first.
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            await self._drain(_chunks(receive))
            raise RequestError(415, "the header Content-Type must be application/json")
        chunks = _chunks(receive)
        body = bytearray()
        try:
            async for chunk in chunks:
                body += chunk
                if len(body) > self.limits.body:
                    break
            else:
                return bytes(body)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not come within {BODY_TIMEOUT:g} seconds") from error
        body.clear()
        await self._drain(chunks)
        raise RequestError(413, f"the body is larger than {self.limits.body} bytes; send fewer images in a request")

    async def _drain(self, chunks: AsyncIterator[bytes]) -> None:
        """Read and drop the body of a rejected request, within limits."""
        left = DRAIN_FACTOR * self.limits.body
        with contextlib.suppress(asyncio.TimeoutError, RequestError):
            async for chunk in chunks:
                left -= len(chunk)
                if left < 0:
                    return


async def _chunks(receive: Receive) -> AsyncIterator[bytes]:
    """The chunks of a body, within one time limit for all of them."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_TIMEOUT
    more = True
    while more:
        message = await asyncio.wait_for(receive(), end - loop.time())
        if message["type"] == "http.disconnect":
            raise RequestError(400, "the connection ended before the body did")
        yield message.get("body", b"")
        more = message.get("more_body", False)


def end_with_the_parent() -> None:
    """Exit when the process that started this one has been killed: otherwise the port and a GPU's memory would stay taken."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            if os.getpgrp() == parent.pid:  # a group of its own, as a shell starts it: LitServe's manager must go too
                os.killpg(parent.pid, signal.SIGKILL)
            os._exit(1)

        threading.Thread(target=wait, daemon=True, name="parent").start()


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body already read, then what follows: the message that the client has disconnected."""
    pending = [body]

    async def again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return again


async def _answer(send: Send, rejection: RequestError) -> None:
    body = json.dumps({"detail": str(rejection)}).encode("ascii")
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": rejection.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
