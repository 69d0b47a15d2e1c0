"""The command line, started by torchrun on two nodes, by SLURM, or by itself, comes to the weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.distributed.jobs import furthest
from tests.distributed.workers import ROOT, Workers, free_port
from tests.tiny import M

PROMPTS = [{"text": f'"{word}"'} for word in ("STONE", "RIVER", "BREAD", "CLOUD")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    config = {
        "model": {
            "policy": {"class_path": "tests.tiny.tiny_policy"},
            "reward": {
                "light": {"reward": "tests.tiny.LeftBright"},
                "text": {"reward": {"class_path": "tests.tiny.Reader", "init_args": {"file": "asked.txt"}}, "weight": 0},
            },
            "mask_source": "full",
            "m": M,
            "group_size": 2,
            "kl_coef": 0.01,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        },
        "data": {"train": "prompts.jsonl", "batch_size": 2},
        "trainer": {"accelerator": "cpu", "max_steps": 4, "default_root_dir": "run", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def slurm(rank: int, world_size: int, port: int) -> Mapping[str, object]:
    """What srun sets for each of its tasks, on as many nodes."""
    job = {"SLURM_JOB_ID": 7, "SLURM_JOB_NAME": "varrl", "SLURM_NTASKS": 2, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": 2}
    job |= {"SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_NODELIST": "127.0.0.1", "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    return job | {"SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_NODEID": rank}


def run(folder: Path, *commands: Sequence[str]) -> list[str]:
    """Start all at the same time, wait for all, and give what each has printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        printed = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n---\n".join(printed)
    return printed


def weights(run: Path) -> dict[str, Tensor]:
    held: dict[str, Tensor] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return held


def times_asked(folder: Path) -> int:
    """How often the reward that reads text was asked to read drawn words: once for these few words."""
    return len((folder / "asked.txt").read_text().splitlines())


@pytest.mark.slow
def test_every_way_to_start_comes_to_the_same(workers: Callable[[int], Workers], folder: Path) -> None:
    python, fit = [sys.executable, "-m"], ["fit", "--config", "config.yaml"]
    workers(1)("tests.distributed.jobs:command", folder=str(folder), arguments=fit)
    alone = weights(folder / "run")
    assert times_asked(folder) == 1
    ddp = ["--trainer.strategy", "ddp"]

    itself = [*fit, *ddp, "--trainer.devices", "2", "--trainer.default_root_dir", "itself"]
    printed = run(folder, [*python, "varrl_lightning", *itself])[0]
    assert times_asked(folder) == 2, "the first process alone tries the reader"
    assert printed.count("reader: the reward 'text' reads 4 of 4 drawn words right") == 1
    assert "prefix: 4 branches over 2 ranks: 2 branches, 4 images on each (1 whole groups)." in " ".join(printed.split())

    nodes = ["--trainer.num_nodes", "2", "--trainer.devices", "1"]
    rendezvous = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
    rendezvous.append(f"--master-port={free_port()}")
    torchrun = ["-m", "varrl_lightning", *fit, *ddp, *nodes, "--trainer.default_root_dir", "torchrun"]
    run(folder, *([*python, *rendezvous, f"--node-rank={node}", *torchrun] for node in range(2)))

    assert times_asked(folder) == 3
    tasks = Workers(2, environment=slurm)
    try:
        options = [*ddp, *nodes, "--trainer.default_root_dir", "slurm"]
        tasks("tests.distributed.jobs:command", folder=str(folder), arguments=[*fit, *options])
    finally:
        tasks.stop()

    assert times_asked(folder) == 4
    for way in ("itself", "torchrun", "slurm"):
        assert furthest(weights(folder / way), alone) <= 1e-6, way
