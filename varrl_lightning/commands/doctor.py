"""`varrl doctor`: checks, on a real rollout and before any training, what otherwise goes wrong silently."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.doctor_checks import (
    Finding,
    dropout_is_off,
    plugins_load,
    ratio_is_one,
    reader_reads,
    reward_runs,
    sample_stages,
    sampler_is_teacher_forcing,
    weights_are_strict,
)
from varrl_lightning.commands.doctor_continuations import continuations_pay, stages_with_continuations
from varrl_lightning.commands.doctor_drafts import draft_stages, drafts_rank_branches
from varrl_lightning.commands.doctor_memory import report_memory
from varrl_lightning.commands.doctor_tokens import loads_weights, tokens_are_predicted
from varrl_lightning.commands.early_checks import check_devices
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.policies.known_picture import KnownPicture
from varrl_lightning.types import Prompt

CHECKS = ("plugins", "weights", "tokens", "ratio", "sampler", "dropout", "reader", "reward")
PROMPTS = 2
HELP = """usage: varrl doctor --config FILE [--json] [--ckpt_path FILE] [--picture FILE --caption TEXT]
                    [--memory [--memory-limit GIB]] [--model.ARGUMENT VALUE ...]

Checks what 'varrl fit' with the same arguments would train, without training:
  plugins  rewards and mask source load
  weights  every tensor of the policy comes from a file
  tokens   the policy predicts the tokens of a known picture, as it would not with another VAE than it was trained with
  ratio    before the first step the probability ratio is 1
  sampler  the sampler and teacher forcing agree, scale by scale
  dropout  the policy computes nothing at random
  reader   a reward that reads text reads words of the training prompts, drawn plainly
  reward   the reward scores a real rollout, and how long it takes
  draft    with num_continuations 0: drafts rank the branches of a prompt as whole images do
  continuations  with several continuations of a branch: whether they are worth their cost; never a failure
The known picture is a photograph of a cat, for the embedded model a sign. Where your model knows no such picture, give one that it
knows by --picture and --caption (for VAR the name of a class).
With --memory, it predicts instead how much of a device's memory each phase of a training step needs, without a GPU and, for public
models, without their weights; and names the setting to change if it does not fit this machine's GPU, or --memory-limit GiB.
The exit status is 0 when all checks pass, 1 when one fails, 2 when the configuration is wrong."""


def examine(config: ParsedConfig, picture: KnownPicture | None = None) -> Iterator[Finding]:
    """The findings of all checks, in order; those that an earlier failure makes impossible are reported as not checked.

    Policy and rewards are built more than once, since the first two checks are about building them.

    Args:
        picture: one that the policy should know; that of its family when None.
    """
    yield (plugins := _finding("plugins", lambda: plugins_load(config.get("model.reward"), config.get("model.mask_source"))))
    yield (weights := _finding("weights", lambda: weights_are_strict(config.build_policy)))
    if not plugins.passed or weights.figure == "it failed":
        yield from (Finding(name, False, "not checked", "Mend what is above first.") for name in CHECKS[2:])
        return
    model, data = config.build()
    with reraise_as(StartError, ValueError, OSError):
        data.setup("fit")
        prompts = next(iter(data.train_dataloader()))[:PROMPTS]
        model.check_prompts([prompt for of_file in data.prompts.values() for prompt in of_file], data.evaluated)
        model.rewards.check_training_prompts(data.prompts["train"])
        if checkpoint := config.checkpoint():
            load_checkpoint(checkpoint, model, model.saved_tensors())
    with torch.no_grad():
        known, trained = picture or model.policy.known_picture, loads_weights(config.get("model.policy"))
        yield _finding("tokens", lambda: tokens_are_predicted(model.policy, known, prompts, trained))
        rollouts = sample_stages(model.policy, model.grpo, prompts, model.seed, model.images_at_once)
        yield ratio_is_one(model.policy, model.grpo, rollouts, model.micro_batches.number)
        yield sampler_is_teacher_forcing(model.policy, model.grpo, rollouts)
        yield dropout_is_off(model.policy, model.grpo, rollouts[0])
        yield _finding("reader", lambda: reader_reads(model.rewards, model.judges, data.prompts["train"], model.guards))
        yield (reward := reward_runs(model.rewards, rollouts[0]))
        for stage in draft_stages(model.cycle):
            options = (data.prompts["train"], stage, model.seed, model.images_at_once)
            yield _finding("draft", partial(drafts_rank_branches, model.policy, model.grpo, *options))
        for stage in stages_with_continuations(model.cycle) if reward.passed else ():
            yield _finding("continuations", partial(continuations_pay, model, stage, data.prompts["train"]))


def _finding(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check; a failed one for any error, since a user's code may raise anything."""
    try:
        return check()
    except Exception as error:
        return Finding(name, False, "it failed", f"{type(error).__name__}: {error}")


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


def _level(finding: Finding) -> str:
    """`pass`, `FAIL`, or `warn` for a check that passed with advice."""
    return ("warn" if finding.advice else "pass") if finding.passed else "FAIL"


def _report(findings: Iterator[Finding], as_json: bool) -> int:
    reported = []
    for finding in findings:
        reported.append(finding)
        if not as_json:
            print(f"{_level(finding)}  {finding.check:<8} {finding.figure}", flush=True)
            if finding.advice:
                print("\n".join(f"      {line}" for line in finding.advice.splitlines()), flush=True)
    if as_json:
        print(json.dumps([asdict(finding) for finding in reported], indent=2))
    return 0 if all(finding.passed for finding in reported) else FAILED
