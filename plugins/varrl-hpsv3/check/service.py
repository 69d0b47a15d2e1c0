"""Serve the reward from this environment and ask it over HTTP, as a training run does from another; prints what it found."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch
from varrl_hpsv3 import HPSv3

import varrl_lightning.serving.api  # noqa: F401
from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.types import Prompt

PATIENCE = 180


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(service: subprocess.Popen[bytes], url: str) -> float:
    """Seconds until the health page answered."""
    start = time.monotonic()
    while time.monotonic() - start < PATIENCE:
        if service.poll() is not None:
            raise SystemExit(f"FAIL the service ended with status {service.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return time.monotonic() - start
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"FAIL the service was not ready after {PATIENCE} seconds")


def main(folder: Path) -> int:
    """Compare the service's answer with this process's own; the exit status."""
    heavy = {name.partition(".")[0] for name in sys.modules} & {"transformers", "peft", "lightning", "rapidocr", "hpsv3"}
    found_heavy = ", ".join(sorted(heavy)) or "no transformers, peft, lightning, rapidocr or hpsv3"
    print(f"{'FAIL' if heavy else 'ok  '} what the service imports: {found_heavy}", flush=True)
    files = {"config_path": str(folder / "float32.yaml"), "checkpoint_path": str(folder / "tiny.safetensors")}
    images, prompts = torch.rand(4, 3, 64, 64), [Prompt('a sign, "HELLO"')] * 4
    expected = HPSv3(**files, uncertainty=0.5)(images, prompts)

    port = free_port()
    init_args = json.dumps(files | {"uncertainty": 0.5})
    command = [sys.executable, "-m", "varrl_lightning", "serve", "hpsv3", "--init_args", init_args, "--port", str(port)]
    service = subprocess.Popen([*command, "--accelerator", "cpu"])
    try:
        url = f"http://127.0.0.1:{port}"
        seconds = wait_until_ready(service, url)
        start = time.monotonic()
        found = HttpReward(url)(images, prompts)
        first, start = time.monotonic() - start, time.monotonic()
        again = HttpReward(url)(images, prompts)
        later = time.monotonic() - start
    finally:
        service.terminate()
        status = service.wait(timeout=60)
    gap = max(
        (found.values - expected.values).abs().max().item(), (found.components["mu"] - expected.components["mu"]).abs().max().item()
    )
    well = gap < 1e-5 and torch.equal(again.values, found.values) and status == 0
    print(
        f"{'ok  ' if well else 'FAIL'} served: ready after {seconds:.1f} s, 4 images in {first:.1f} s, then {later:.1f} s; "
        f"largest difference to this process {gap:.1e}; ended with status {status}"
    )
    return 1 if heavy or not well else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
