"""A reward service in processes of its own, as users start it, and rewards for it to serve."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.tiny import LeftBright
from varrl_lightning.types import Box, Prompt, Scores

ROOT = Path(__file__).parents[1]
SERVE = (sys.executable, "-m", "varrl_lightning", "serve")
STARTING = 240.0


class Mean:
    """The mean of an image, the process that found it, and what the prompt asks for; it refuses what is almost white."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = images.mean((1, 2, 3))
        if bool((values > 0.9).any()):
            raise ValueError("too bright to look at")
        return Scores(
            values,
            components={"process": values * 0 + os.getpid(), "batch": values * 0 + len(values)},
            regions=[[Box(0, 0, 1, images.shape[-2])] for _ in prompts],
            texts=[list(p.words) for p in prompts],
        )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.category == "none":
                raise ValueError(f"{prompt.id!r} is of no category")


class LeftBrightOf8Bits:
    """`LeftBright` of images rounded to 8 bits, as they travel: a whole number, so that ties are ties wherever it is found."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels, third = (images * 255).round().long(), images.shape[-1] // 3
        return (pixels[..., :third].sum((1, 2, 3)) - pixels[..., -third:].sum((1, 2, 3))).float()


class Hangs(LeftBright):
    """`LeftBright`, which hangs once when the file `armed` is there, and says so in the file `hung`."""

    def __init__(self, folder: str) -> None:
        self.armed, self.hung = Path(folder, "armed"), Path(folder, "hung")

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if self.armed.exists():
            self.armed.rename(self.hung)
            time.sleep(60)
        return super().__call__(images, prompts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A running service; it may be killed and started again on the same port."""

    def __init__(self, reward: str, *options: str, folder: Path, key: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = (*SERVE, reward, "--port", str(self.port), "--accelerator", "cpu", *options)
        self.log = folder / f"service-{self.port}.log"
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.environment.pop("VARRL_API_KEY", None)
        if key is not None:
            self.environment["VARRL_API_KEY"] = key
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        with self.log.open("a") as log:
            # A session of its own, so that killing the group kills its workers too.
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        end = time.monotonic() + STARTING
        while not self.well():
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, f"the service did not start: {self.log.read_text()}"
            time.sleep(0.1)

    def well(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def service(reward: str, *options: str, folder: Path, key: str | None = None) -> Iterator[Service]:
    running = Service(reward, *options, folder=folder, key=key)
    try:
        running.start()
        running.wait()
        yield running
    finally:
        running.kill()
