"""A reward service that answers by a script, and a client that is quick to give up."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.types import Prompt

KEY = "the-key-of-these-tests"
IMAGES = torch.arange(5)[:, None, None, None].expand(5, 3, 4, 6) * 51 / 255
PROMPTS = [Prompt(text) for text in ("a", "a", "b", "b", "b")]
Reply = tuple[int, bytes]


class Scripted:
    """Answers each request by the next reply of a script, and the last one for ever; remembers what it was sent."""

    def __init__(self, *script: Callable[[list[Any]], Reply]) -> None:
        self.script, self.bodies, self.headers = list(script), [], []  # type: ignore[var-annotated]
        self.lock = threading.Lock()
        script_of = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, b"ok")

            def do_POST(self) -> None:
                images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"]
                with script_of.lock:
                    script_of.bodies.append(images)
                    script_of.headers.append(dict(self.headers))
                    reply = script_of.script.pop(0) if len(script_of.script) > 1 else script_of.script[0]
                self._send(*reply(images))

            def _send(self, status: int, body: bytes) -> None:
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


def good(images: list[Any]) -> Reply:
    """The number of images as the value of each."""
    return 200, json.dumps({"values": [len(images)] * len(images)}).encode()


def bad(status: int, body: bytes = b"") -> Callable[[list[Any]], Reply]:
    return lambda images: (status, body)


def slow(images: list[Any]) -> Reply:
    time.sleep(0.5)
    return good(images)


def client(*urls: str, **options: Any) -> HttpReward:
    return HttpReward(list(urls), **{"backoff": 0.01, "timeout": 5.0, "patience": 0.5, "retries": 2} | options)
