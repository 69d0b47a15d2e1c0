"""Chat endpoints of the tests: one that answers by a function, also slowly, wrongly or not at all."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

Reply: TypeAlias = "str | dict[str, Any] | bytes | int | None"
"""A text, a whole answer, a raw body, a status code, or None: the connection is cut."""
Answer: TypeAlias = Callable[[dict[str, Any]], Reply]


class ChatServer:
    """A running endpoint: its address, and what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.at_once = 0
        self.most_at_once = 0


@contextlib.contextmanager
def chat_server(answer: Answer, models: tuple[str, ...] = ("judge",)) -> Iterator[ChatServer]:
    """Serve `answer`, which is given each request's body; the text "drip" is sent a byte at a time, for ever."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, json.dumps({"object": "list", "data": [{"id": name} for name in models]}).encode())

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                server.headers.append(dict(self.headers))
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            try:
                reply = answer(request)
            finally:
                with lock:
                    server.at_once -= 1
            if reply is None:
                self.connection.shutdown(socket.SHUT_RDWR)
            elif reply == "drip":
                self._drip()
            elif isinstance(reply, int):
                self._send(reply, b'{"error": {"message": "no"}}')
            else:
                self._send(200, reply if isinstance(reply, bytes) else json.dumps(completion(reply)).encode())

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status == 429:
                self.send_header("Retry-After", "0.2")
            self.end_headers()
            self.wfile.write(body)

        def _drip(self) -> None:
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)

        def log_message(self, *_: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # a connection that was cut
                super().handle()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{httpd.server_address[1]}/v1")
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def completion(reply: str | dict[str, Any]) -> dict[str, Any]:
    """A text as a whole answer; a whole answer as it is."""
    if isinstance(reply, dict):
        return reply
    choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 7}}


def pictures_of(request: Mapping[str, Any]) -> list[Any]:
    """The pictures of a request, as arrays of bytes."""
    parts = request["messages"][-1]["content"]
    files = [part["image_url"]["url"].partition(";base64,")[2] for part in parts if part["type"] == "image_url"]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]


def text_of(request: Mapping[str, Any]) -> str:
    """The texts of a request."""
    return "\n".join(part["text"] for part in request["messages"][-1]["content"] if part["type"] == "text")


def brightness(request: Mapping[str, Any], image: int = 0) -> float:
    """The mean of a picture, in [0, 1]."""
    return float(pictures_of(request)[image].mean()) / 255
