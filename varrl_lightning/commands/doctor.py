"""`varrl doctor`: checks, on a real rollout and before any training, what otherwise goes wrong silently."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from varrl_lightning.commands.doctor_checklist import CHECKS, NEED, WITHIN, checklist, made, not_checked
from varrl_lightning.commands.doctor_checks import Finding, plugins_load, weights_are_strict
from varrl_lightning.commands.doctor_memory import report_memory
from varrl_lightning.commands.doctor_patient import Patient
from varrl_lightning.commands.doctor_prompts import prompts_are_fit
from varrl_lightning.commands.early_checks import check_devices
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as
from varrl_lightning.errors import FAILED, ConfigError
from varrl_lightning.policies.known_picture import KnownPicture
from varrl_lightning.types import Prompt

HELP = """usage: varrl doctor --config FILE [--json] [--ckpt_path FILE] [--picture FILE --caption TEXT]
                    [--memory [--memory-limit GIB]] [--model.ARGUMENT VALUE ...]

Checks what 'varrl fit' with the same arguments would train, without training, on a GPU where the run would have one:
  plugins    rewards and mask source load
  weights    every tensor of the policy comes from a file
  prompts    policy and rewards can do with all prompts, none is there twice, and training shares none with validation and test
  disk       the run folder can be written to, and its disk has room for checkpoints, pictures and logs
  optimizer  the learning rate is not 0, and the optimizer holds every trained parameter
  tokens     the policy predicts the tokens of a known picture, as it would not with another VAE than it was trained with
  channels   the decoder gives that picture back with its channels in order
  ratio      before the first step the probability ratio is 1
  sampler    the sampler and teacher forcing agree, scale by scale
  dropout    the policy computes nothing at random
  reference  before the first step the reference of the KL is the policy
  adapter    an adapter begins as zero, is off when it is off, and trains alone
  reader     a reward that reads text reads words of the training prompts, drawn plainly
  reward     the reward scores a real rollout, and how long it takes
  rewards    each reward and judge by itself: its time, its range, and whether it scores an image alike twice
  variance   the branches of a group differ in their reward
  gradients  in each stage the gradient is finite at every scale and not 0, and reaches every trained parameter
  duration   seconds of a step by stage, and hours to the end of the run
  draft      with num_continuations 0: drafts rank the branches of a prompt as whole images do
  continuations  with several continuations of a branch: whether they are worth their cost; never a failure
It takes at most about two minutes beside loading the weights: few prompts are sampled, and the last two checks take what is left.
The known picture is a photograph of a cat, for the embedded model a sign. Where your model knows no such picture, give one that it
knows by --picture and --caption (for VAR the name of a class).
With --json, each check has its name, its level (pass, warn or FAIL), figure, advice and the seconds that it took.
With --memory, it predicts instead how much of a device's memory each phase of a training step needs, without a GPU and, for public
models, without their weights; and names the setting to change if it does not fit this machine's GPU, or --memory-limit GiB.
The exit status is 0 when all checks pass, warnings or not, 1 when one fails, 2 when the configuration is wrong."""


def examine(config: ParsedConfig, picture: KnownPicture | None = None) -> Iterator[Finding]:
    """The findings of all checks, in order; those that an earlier failure makes impossible are reported as not checked.

    Policy and rewards are built more than once, since the first two checks are about building them.

    Args:
        picture: one that the policy should know; that of its family when None.
    """
    yield (plugins := made("plugins", lambda: plugins_load(config.get("model.reward"), config.get("model.mask_source"))))
    yield (weights := made("weights", lambda: weights_are_strict(config.build_policy)))
    if not plugins.passed or weights.figure == "it failed":
        yield from map(not_checked, CHECKS[2:])
        return
    begun = time.monotonic()
    patient = Patient.of(config)
    yield made("prompts", lambda: prompts_are_fit(patient.model, patient.data))
    if not patient.has_batches:
        yield from map(not_checked, CHECKS[3:])
        return
    patient.load_checkpoint(config)
    failed: set[str] = set()
    for name, check in checklist(patient, picture, lambda: WITHIN - (time.monotonic() - begun)):
        with torch.no_grad():
            finding = not_checked(name) if failed & NEED.get(name, set()) else made(name, check)
        failed |= set() if finding.passed else {name}
        yield finding


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    parser.add_argument("--json", action="store_true")
    for name in ("--picture", "--caption"):
        parser.add_argument(name)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-limit", type=float)
    return run_with_config(arguments, HELP, parser, _diagnose)


def _diagnose(options: argparse.Namespace, config: ParsedConfig) -> int:
    if options.memory or options.memory_limit is not None:
        return report_memory(config, options.memory_limit, options.json)
    with reraise_as(ConfigError, *BUILD_ERRORS):
        check_devices(config.config.fit.trainer)
    return _report(examine(config, _given_picture(options.picture, options.caption)), as_json=options.json)


def _given_picture(path: str | None, caption: str | None) -> KnownPicture | None:
    if path is None and caption is None:
        return None
    if path is None or caption is None:
        raise ConfigError("give --picture and --caption together: the policy is asked how likely the picture is, given its caption")
    picture = KnownPicture(Path(path), Prompt(caption))
    with reraise_as(ConfigError, OSError):
        picture.pixels((1, 1))
    return picture


def _report(findings: Iterator[Finding], as_json: bool) -> int:
    reported = []
    for finding in findings:
        reported.append(finding)
        if not as_json:
            print(f"{finding.level}  {finding.check:<8} {finding.figure}", flush=True)
            if finding.advice:
                print("\n".join(f"      {line}" for line in finding.advice.splitlines()), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) | {"level": finding.level} for finding in reported], indent=2))
    return 0 if all(finding.passed for finding in reported) else FAILED
