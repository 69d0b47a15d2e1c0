"""`varrl conflict`: whether the gradients of a recipe's scales pull against each other, and where to split them."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from varrl_lightning.algorithms.gradient_cosine import Estimate
from varrl_lightning.algorithms.scale_conflict import ScaleConflict, Suggestion, suggest_m
from varrl_lightning.callbacks.scale_conflict import conflict_meter
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.one_process import built_for_measuring, refuse_ranks, writable_file, write_json
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.gradient_agreement.conflict import ConflictMeter, over_all_scales
from varrl_lightning.gradient_agreement.meter import LEAST, independent_batches
from varrl_lightning.module import VARGRPO

HELP = """usage: varrl conflict --config FILE [--suggest_m] [--ckpt_path FILE] [--batches N] [--prompts P] [--blocks N] [--seed N]
                      [--kl] [--parameters PATTERN] [--json FILE] [--device NAME] [--model.ARGUMENT VALUE ...]

Measures, without training, how the gradients of the scales relate, as 'varrl fit' with the same arguments would compute them:
  --suggest_m   measure plain GRPO over all scales instead of the configuration's stages, and name the m in 2 .. T - 1 whose prefix
                and suffix pull against each other most; none where the intervals of two standard errors overlap
  --ckpt_path   measure at this checkpoint of a run, not at the start
  --batches     number of independent batches, at least 3; 40 by default. Each is a rollout, and a backward pass for each scale
  --prompts     prompts in a batch; data.batch_size by default
  --blocks      number of blocks of batches that are left out in turn for the standard error; 10 by default. Memory holds as many
                gradients for each scale
  --seed        seed of the order of prompts and of the noise; 0 by default
  --kl          include the KL to the reference; without it, only the policy term is measured
  --parameters  pattern of the names of the parameters that count, as in 'blocks.*'; all trained parameters by default
  --json        a file for the numbers with all digits
  --device      cpu, cuda, ...; by default cuda if there is a GPU, unless trainer.accelerator is cpu
The columns and the table below:
  norm       length of the gradient of the scale's share of the loss in one batch, noise included
  agreement  the share of its square that all batches have in common
  cosine     of the expected gradients of two scales, from products of different batches, so that noise does not hide it; below 0
             they pull against each other. A blank: it cannot be told from so few batches"""


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    for name in ("--parameters", "--device", "--json"):
        parser.add_argument(name)
    for name, value in (("--batches", 40), ("--prompts", None), ("--seed", 0), ("--blocks", 10)):
        parser.add_argument(name, type=int, default=value)
    parser.add_argument("--suggest_m", "--suggest-m", action="store_true", dest="suggest_m")
    parser.add_argument("--kl", action="store_true")
    return run_with_config(arguments, HELP, parser, _measure)


def _measure(options: argparse.Namespace, config: ParsedConfig) -> int:
    refuse_ranks("conflict")
    if options.batches < LEAST:
        raise ConfigError(f"--batches must be at least {LEAST}, to have a standard error, got {options.batches}")
    target = writable_file("--json", options.json)
    model, data, checkpoint = built_for_measuring(config, options.device)
    if options.kl and model.reference is None:
        raise ConfigError("--kl: the configuration has no KL, its model.kl_coef is 0")
    size = data.batch_size if options.prompts is None else options.prompts
    with reraise_as(ConfigError, ValueError):
        full = over_all_scales(model.grpo, model.policy, config.get("model.first_scale")) if options.suggest_m else None
        blocks = min(options.blocks, options.batches)
        meter = conflict_meter(model, full, blocks=blocks, kl=options.kl, seed=options.seed, parameters=options.parameters)
        batches = independent_batches(data.prompts["train"], options.batches, size, options.seed)
    with reraise_as(StartError, ValueError):
        model.check_prompts([prompt for batch in batches for prompt in batch])
        model.rewards.check_training_prompts(data.prompts["train"])
        model.rewards.prepare()
    _say(f"{meter.meter.size} parameters; sums take up to {meter.bytes_held / 2**20:.0f} MiB")
    began = time.monotonic()
    for done, prompts in enumerate(batches, start=1):
        meter.add(prompts)
        left = (time.monotonic() - began) / done * (len(batches) - done)
        _say(f"batch {done} of {len(batches)}, {left:.0f} s left")
    return _report(model, meter, options, {"prompts": size, "checkpoint": checkpoint}, target)


def _report(model: VARGRPO, meter: ConflictMeter, options: argparse.Namespace, about: dict[str, Any], target: Any) -> int:
    conflict = meter.measured()
    if sum(conflict.counts) < LEAST:
        print("varrl: too few batches had a gradient: groups without variance teach nothing. See varrl doctor.", file=sys.stderr)
        return FAILED
    lengths = model.policy.schedule().lengths
    print("\n".join(scale_table(conflict, meter.trained, lengths)))
    suggestion = suggest_m(conflict) if options.suggest_m else None
    m = model.grpo.cycle[0].stop
    if suggestion is not None:
        print("\n" + "\n".join(suggestion_lines(suggestion)))
    elif m < conflict.scales and any(t >= m for t in meter.trained):
        print(f"\nprefix and suffix (m = {m}): {shown(conflict.split(m)) or 'cannot be told'}")
    if target is None:
        return 0
    about |= {name: getattr(options, name) for name in ("batches", "seed", "kl", "parameters", "suggest_m")}
    return write_json(target, about | results(conflict, meter.trained, suggestion))


def scale_table(conflict: ScaleConflict, trained: Sequence[int], lengths: Sequence[int]) -> list[str]:
    """The lines of the table: a row for each trained scale, with its cosines to those before it; scales count from 1."""
    rows = [["scale", "tokens", "norm", "agreement", *(f"cos {t + 1}" for t in trained[:-1])]]
    for place, t in enumerate(trained):
        cosines = [shown(conflict.cosine([s], [t])) for s in trained[:place]]
        numbers = [f"{conflict.norm(t):.4g}", shown(conflict.agreement(t))]
        rows.append([str(t + 1), str(lengths[t]), *numbers, *cosines, *[""] * (len(trained) - 1 - len(cosines))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def suggestion_lines(suggestion: Suggestion) -> list[str]:
    """The cosine of prefix and suffix for each m, and what follows from them."""
    lines = [f"m = {m}: cosine of prefix and suffix {shown(split) or 'cannot be told'}" for m, split in suggestion.splits.items()]
    if suggestion.m is not None:
        return [*lines, f"suggested: m = {suggestion.m}, where the two pull against each other most"]
    lowest = "" if suggestion.lowest is None else f"; the lowest is that of m = {suggestion.lowest}"
    return [*lines, f"cannot be told: intervals of two standard errors overlap{lowest}. More --batches make them shorter"]


def results(conflict: ScaleConflict, trained: Sequence[int], suggestion: Suggestion | None) -> dict[str, Any]:
    """The numbers for a file; scales count from 1, and what cannot be told is null."""
    scales = [{"scale": t + 1, "norm": conflict.norm(t), "agreement": _plain(conflict.agreement(t))} for t in trained]
    pairs = [
        {"scales": [s + 1, t + 1], "cosine": _plain(conflict.cosine([s], [t])), "batch_cosine": float(conflict.batch_cosine[s, t])}
        for s in trained
        for t in trained
        if s < t
    ]
    held = {"measured_batches": sum(conflict.counts), "scales": scales, "pairs": pairs}
    if suggestion is not None:
        held["splits"] = [{"m": m, "cosine": _plain(split)} for m, split in suggestion.splits.items()]
        held |= {"suggested_m": suggestion.m, "lowest_m": suggestion.lowest}
    return held


def shown(estimate: Estimate) -> str:
    """A value ± one standard error; empty where it cannot be told."""
    return "" if math.isnan(estimate.value) else f"{estimate.value:+.2f} ± {estimate.standard_error:.2f}"


def _plain(estimate: Estimate) -> dict[str, float | None]:
    pair = {"value": estimate.value, "standard_error": estimate.standard_error}
    return {name: None if math.isnan(value) else value for name, value in pair.items()}


def _say(line: str) -> None:
    print(f"varrl conflict: {line}", file=sys.stderr, flush=True)
