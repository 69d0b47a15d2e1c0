"""`varrl doctor`: six things that otherwise go wrong silently, checked on a real rollout before any training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

import torch

from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.doctor_checks import (
    Finding,
    dropout_is_off,
    plugins_load,
    ratio_is_one,
    reward_runs,
    sample_stages,
    sampler_is_teacher_forcing,
    weights_are_strict,
)
from varrl_lightning.commands.doctor_memory import report_memory
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.errors import FAILED, StartError

CHECKS = ("plugins", "weights", "ratio", "sampler", "dropout", "reward")
PROMPTS = 2
HELP = """usage: varrl doctor --config FILE [--json] [--ckpt_path FILE] [--memory [--memory-limit GIB]] [--model.ARGUMENT VALUE ...]

Checks what 'varrl fit' with the same arguments would train, without training:
  plugins  rewards and mask source load
  weights  every tensor of the policy comes from a file
  ratio    before the first step the probability ratio is 1
  sampler  the sampler and teacher forcing agree, scale by scale
  dropout  nothing random is left in the policy
  reward   the reward scores a real rollout, and how long it takes
With --memory, instead: what each phase of a training step takes of a device's memory, predicted without a GPU and for public models
without their weights; and which setting to change when it does not fit the GPU found here, or --memory-limit GiB.
Exit status 0 when all pass, 1 when one fails, 2 when the configuration is wrong."""


def examine(config: ParsedConfig) -> Iterator[Finding]:
    """The six checks in order; after one that makes the rest impossible, the rest is reported as not checked.

    Policy and rewards are built more than once: the first two checks are about building them.
    """
    yield (plugins := _made("plugins", lambda: plugins_load(config.get("model.reward"), config.get("model.mask_source"))))
    yield (weights := _made("weights", lambda: weights_are_strict(config.build_policy)))
    if not plugins.passed or weights.figure == "it failed":
        yield from (Finding(name, False, "not checked", "Mend what is above first.") for name in CHECKS[2:])
        return
    model, data = config.build()
    with reraise_as(StartError, ValueError, OSError):
        data.setup("fit")
        prompts = next(iter(data.train_dataloader()))[:PROMPTS]
        model.check_prompts(prompts)
        if checkpoint := config.get("ckpt_path"):
            load_checkpoint(checkpoint, model, model.saved_tensors())
    with torch.no_grad():
        rollouts = sample_stages(model.policy, model.grpo, prompts, model.seed, model.images_at_once)
        yield ratio_is_one(model.policy, model.grpo, rollouts, model.micro_batches.number)
        yield sampler_is_teacher_forcing(model.policy, model.grpo, rollouts)
        yield dropout_is_off(model.policy, model.grpo, rollouts[0])
        yield reward_runs(model.rewards, rollouts[0])


def _made(name: str, check: Callable[[], Finding]) -> Finding:
    """A check of what a user brings, which may raise anything."""
    try:
        return check()
    except Exception as error:
        return Finding(name, False, "it failed", f"{type(error).__name__}: {error}")


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    own = options_parser()
    own.add_argument("--json", action="store_true")
    own.add_argument("--memory", action="store_true")
    own.add_argument("--memory-limit", type=float)
    return run_with_config(arguments, HELP, own, _diagnose)


def _diagnose(asked: argparse.Namespace, config: ParsedConfig) -> int:
    if asked.memory or asked.memory_limit is not None:
        return report_memory(config, asked.memory_limit, asked.json)
    return _report(examine(config), as_json=asked.json)


def _report(findings: Iterator[Finding], as_json: bool) -> int:
    reported = []
    for finding in findings:
        reported.append(finding)
        if not as_json:
            print(f"{'pass' if finding.passed else 'FAIL'}  {finding.check:<8} {finding.figure}", flush=True)
            if finding.advice:
                print("\n".join(f"      {line}" for line in finding.advice.splitlines()), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in reported], indent=2))
    return 0 if all(finding.passed for finding in reported) else FAILED
