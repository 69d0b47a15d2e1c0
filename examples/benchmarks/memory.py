"""Predicted and measured memory of a rollout and an update, for models of growing size with random weights.

    python examples/benchmarks/memory.py                                  # on the CPU
    python examples/benchmarks/memory.py --device cuda:0                  # also torch.cuda.max_memory_allocated
    python examples/benchmarks/memory.py --models infinity --widths 256 512

Each size runs in a separate process. `predicted` is the memory that `varrl doctor --memory` predicts for the same phases, `tensors`
counts the bytes of real tensors that are alive, `resident` is the growth of the process's peak resident memory, and `allocated` is
the GPU allocator's peak. On a CPU, convolutions keep workspaces that no tensor holds: where decoding is the peak, the prediction
lacks these.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varrl_lightning import VARPolicy
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.objective import Objective
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.memory import LiveBytes, Simulation
from varrl_lightning.memory.tracking import frozen_parts, tensors_of
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.infinity_sizes import Sizes
from varrl_lightning.policies.infinity_transformer import InfinityTransformer
from varrl_lightning.policies.lettering import LetteringPolicy, LetteringTransformer
from varrl_lightning.policies.published import StandIn
from varrl_lightning.policies.var import ImageNetVARPolicy, VARTransformer
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.schedule import VAR_256
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Rollout, Score, Stage

MIB = 2**20
PROMPT = Prompt('"STONE"', label=1)


def lettering(width: int) -> VARPolicy:
    return LetteringPolicy(LetteringTransformer(width=width, depth=3, heads=4))


def var(width: int) -> VARPolicy:
    depth = max(width // 64, 2)
    transformer = VARTransformer(width=width, depth=depth, heads=width // 32, hidden=4 * width)
    return ImageNetVARPolicy(transformer, VQVAE(width=32), [side for side, _ in VAR_256.grids])


def infinity(width: int) -> VARPolicy:
    sizes = Sizes(
        width=width,
        bits=32,
        chunks=(4,),
        depth=4,
        heads=width // 64,
        text_width=64,
        text_length=64,
        pool_heads=1,
        levels=15,
        hidden=4 * width,
        scale_shape=(1, width // 64, 1, 1),
        gated=False,
        rms=False,
        input_norm=False,
        shared_aln=True,
        cross_scale=False,
        head_aln=True,
        head_depth=1,
    )
    tokenizer = BSQTokenizer(32, 16, (16, 16, 16, 16, 16), (16, 16, 16, 16, 16))
    return InfinityPolicy(InfinityTransformer(sizes), tokenizer, StandIn(0, 64), "0.06M")


MODELS: dict[str, Callable[[int], VARPolicy]] = {"lettering": lettering, "var": var, "infinity": infinity}


def reset_resident() -> int:
    """Reset the peak of resident memory; returns the resident bytes now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


class Meter:
    """Peaks of one phase, by each way of measuring."""

    def __init__(self, device: torch.device, known: list[Tensor], tracked: bool) -> None:
        self.device, self.tracker = device, LiveBytes(known) if tracked else None

    def __enter__(self) -> Meter:
        if self.tracker:
            self.tracker.__enter__()
        elif self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.before = reset_resident()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.tracker:
            self.tracker.__exit__(*error)
            self.peak = self.tracker.peak
        elif self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self.before
        else:
            self.peak = _status("VmHWM") - self.before


def sample(policy: VARPolicy, stage: Stage, branches: int, images_at_once: int) -> Rollout:
    keys = prompt_keys(0, 0, [PROMPT], policy.device)
    return sample_tree(policy, [PROMPT], stage, policy.default_sampling, keys, images_at_once, branches=range(branches))


def train(policy: VARPolicy, stage: Stage, rows: int, rollout: Rollout, objective: Objective) -> None:
    cond = policy.encode_prompts([PROMPT]).repeat(rows)
    new = policy([t[:rows] for t in rollout.tokens], cond, stage.start, stage.stop, score=objective.score)
    torch.cat(new.log_prob, dim=1).sum().backward()


def measure(options: argparse.Namespace) -> dict[str, float]:
    """The predicted and the measured memory of one model, in bytes."""
    device, K = torch.device(options.device), 2
    policy = MODELS[options.model](options.width).to(device)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    stage = Stage(0, len(policy.schedule()) - 1, options.branches, K)
    objective = Objective(Score("model", policy.default_sampling))
    rewards = WeightedRewards({"brightness": WeightedReward(lambda images, _: images.mean((1, 2, 3)))})  # never called
    grpo = GRPO((stage,), rewards, Full(), policy.default_sampling, objective=objective)
    simulation = Simulation(policy, grpo, device=device)
    simulation.read(PROMPT)
    rollout_bytes = simulation.rollout(stage, options.branches, options.images_at_once)
    results: dict[str, float] = {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "rollout predicted": max(rollout_bytes.sampling, rollout_bytes.decoding),
        "update predicted": simulation.update(stage, options.branches),
    }
    rollout = sample(policy, stage, options.branches, options.images_at_once)
    train(policy, stage, options.branches, rollout, objective)  # so that gradients exist, and libraries are warm
    known = [*tensors_of(policy.transformer, *frozen_parts(policy).values()), *rollout.tokens]
    known += [p.grad for p in policy.parameters() if p.grad is not None]
    for name, tracked in (("tensors", True), ("allocated" if device.type == "cuda" else "resident", False)):
        with Meter(device, known, tracked) as meter:
            again = sample(policy, stage, options.branches, options.images_at_once)
        results[f"rollout {name}"] = meter.peak
        del again
        with Meter(device, known, tracked) as meter:
            train(policy, stage, options.branches, rollout, objective)
        results[f"update {name}"] = meter.peak
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--images_at_once", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model:
        print(json.dumps(measure(options)))
        return
    # Freed memory is returned to the system at once, so that resident memory follows the tensors.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    second = "allocated" if options.device.startswith("cuda") else "resident"
    print(f"| model | M parameters | phase | predicted MiB | tensors | {second} | ratio to tensors | to {second} |")
    print("|---|---|---|---|---|---|---|---|")
    for model in options.models:
        for width in options.widths:
            size = ["--model", model, "--width", str(width), "--branches", str(options.branches), "--device", options.device]
            command = [sys.executable, __file__, *size, "--images_at_once", str(options.images_at_once)]
            results = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
            for phase in ("rollout", "update"):
                predicted, tensors, other = (results[f"{phase} {name}"] for name in ("predicted", "tensors", second))
                ratios = [f"{predicted / x:.2f}" if x else math.nan for x in (tensors, other)]
                figures = [f"{x / MIB:.1f}" for x in (predicted, tensors, other)]
                print(
                    "|",
                    " | ".join(map(str, [f"{model} {width}", f"{results['parameters'] / 1e6:.1f}", phase, *figures, *ratios])),
                    "|",
                )


if __name__ == "__main__":
    main()
