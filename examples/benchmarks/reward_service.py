"""The gain from dynamic batching in the reward service: requests per second with and without it, in one run.

The reward takes 50 ms per call for any number of images, like a model on a GPU with room for more. Eight clients send one group
after the other, of one image each. Needs the extra `serve`; run it alone on a quiet machine:

    python examples/benchmarks/reward_service.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.types import Prompt


class FiftyMilliseconds:
    """A reward that takes 50 ms per call; the service imports it from this file."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        time.sleep(0.05)
        return images.mean(dim=(1, 2, 3))


@contextlib.contextmanager
def service(max_batch_size: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    name = f"reward_service.{FiftyMilliseconds.__name__}"
    command = [sys.executable, "-m", "varrl_lightning", "serve", name, "--port", str(port), "--accelerator", "cpu"]
    command += ["--max_batch_size", str(max_batch_size)]
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        url = f"http://127.0.0.1:{port}"
        while not is_healthy(url):
            if process.poll() is not None:
                sys.exit("the service did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def is_healthy(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def rate(url: str, clients: int, images: int, seconds: float) -> float:
    """Requests per second that all clients together get answered."""

    def work(number: int) -> int:
        reward, prompts = HttpReward(url), [Prompt(f"prompt {number}")] * images
        picture = torch.rand(images, 3, 64, 64)
        reward(picture, prompts)  # warm-up
        answered, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            assert bool(reward(picture, prompts).usable.all())
            answered += 1
        return answered

    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(work, range(clients))) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--images", type=int, default=1, help="images of a group")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    rates = {}
    for size in (1, 8):
        with service(size) as url:
            rates[size] = rate(url, options.clients, options.images, options.seconds)
    print(
        f"{options.clients} clients, groups of {options.images}, a reward of 50 ms a call | unbatched {rates[1]:.1f} requests/s, "
        f"batched {rates[8]:.1f} requests/s | {rates[8] / rates[1]:.2f} times"
    )


if __name__ == "__main__":
    main()
