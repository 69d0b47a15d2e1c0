"""The command line, started by torchrun on two nodes, by SLURM, or by itself, comes to the weights of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.distributed.workers import ROOT

PROMPTS = [{"text": f'"{word}"'} for word in ("STONE", "RIVER", "BREAD", "CLOUD")]
FIT = ("varrl_lightning", "fit", "--config", "config.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    config = {
        "model": {
            "policy": {"class_path": "tiny.tiny_policy"},
            "reward": "tiny.LeftBright",
            "mask_source": "full",
            "m": 4,
            "group_size": 2,
            "kl_coef": 0.01,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        },
        "data": {"train": "prompts.jsonl", "batch_size": 2},
        "trainer": {"accelerator": "cpu", "max_steps": 4, "default_root_dir": "run", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def environment(more: Mapping[str, object] = {}) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | {name: str(value) for name, value in more.items()}


def run(folder: Path, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> list[str]:
    """Start all at the same time, wait for all, and give what each has printed."""
    started = [
        subprocess.Popen(command, cwd=folder, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command, env in zip(commands, environments, strict=True)
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n---\n".join(printed)
    return printed


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
    return found


def weights(run: Path) -> dict[str, Tensor]:
    held: dict[str, Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return held


def test_every_way_to_start_comes_to_the_same(folder: Path) -> None:
    fit = [sys.executable, "-m", *FIT]
    run(folder, [fit], [environment()])
    alone = weights(folder / "run")
    ddp = ["--trainer.strategy", "ddp"]

    itself = [*fit, *ddp, "--trainer.devices", "2", "--trainer.default_root_dir", "itself"]
    printed = run(folder, [itself], [environment()])[0]
    assert "prefix: 4 branches over 2 ranks: 2 branches, 4 images on each (1 whole groups)." in " ".join(printed.split())

    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "1"]
    rendezvous = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    common = f"--master-port={port()}"
    torchrun = [
        [*rendezvous, common, f"--node-rank={node}", "-m", *FIT, *ddp, *nodes, "--trainer.default_root_dir", "torchrun"]
        for node in range(2)
    ]
    run(folder, torchrun, [environment()] * 2)

    # What srun sets for each of its tasks.
    job = {"SLURM_JOB_ID": 7, "SLURM_JOB_NAME": "varrl", "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2}
    job |= {"SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port(), "MASTER_ADDR": "127.0.0.1"}
    tasks = [environment(job | {"SLURM_PROCID": task, "SLURM_LOCALID": 0, "SLURM_NODEID": task}) for task in range(2)]
    run(folder, [[*fit, *ddp, *nodes, "--trainer.default_root_dir", "slurm"]] * 2, tasks)

    for way in ("itself", "torchrun", "slurm"):
        found = weights(folder / way)
        furthest = max(float((found[name] - alone[name]).abs().max()) for name in alone)
        assert furthest <= 1e-6, way
