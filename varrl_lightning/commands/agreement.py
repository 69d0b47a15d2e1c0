"""`varrl agreement`: how far gradients of independent batches agree, for each variant of the method, with standard errors."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from varrl_lightning.callbacks.gradient_agreement import agreement_meter, described_variants
from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.deciding_options import deciding_options
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.one_process import device_of, refuse_ranks
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.gradient_agreement.kept import keep_sums, kept_sums
from varrl_lightning.gradient_agreement.measured import Measured
from varrl_lightning.gradient_agreement.meter import AgreementMeter, independent_batches, warmed_metric
from varrl_lightning.gradient_agreement.variants import Variant, read_variants
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt

HELP = """usage: varrl agreement --config FILE [--variants FILE] [--ckpt_path FILE] [--batches N] [--prompts P] [--seed N]
                       [--adam_batches N] [--per_scale] [--kl] [--parameters PATTERN] [--blocks N] [--device NAME]
                       [--output FOLDER] [--resume] [--model.ARGUMENT VALUE ...]

Measures the mean cosine between the gradients of independent batches, as 'varrl fit' with the same arguments would compute them,
before clipping, without training:
  --variants    a YAML file that maps the name of each variant to its changes: a stage (prefix, suffix, all) and arguments of the
                model; 'agreement' comes with the package. Without it, the stages of the configuration are measured
  --ckpt_path   measure at this checkpoint of a run, not at the start
  --batches     number of independent batches, at least 3; 200 by default
  --prompts     prompts in a batch; data.batch_size by default. No prompt is repeated before all training prompts were used
  --seed        seed of the order of prompts and of the noise; 0 by default
  --adam_batches  number of batches of the first variant that warm an AdamW state, before anything is measured, at these weights,
                with beta2 and eps of model.optimizer. Gains are taken in its metric, without the weights that this variant does
                not train: name plain GRPO first. 40 by default, 0 leaves gains out
  --per_scale   measure each scale's part of the loss as well, by a separate backward pass
  --kl          include the KL to the reference; without it, only the policy term is measured
  --parameters  pattern of the names of the parameters that count, as in 'blocks.*'; all trained parameters by default
  --blocks      number of blocks of batches that are left out in turn for the standard error; 20 by default
  --device      cpu, cuda, ...; by default cuda if there is a GPU, unless trainer.accelerator is cpu
  --output      a folder for agreement.json and agreement.csv, which are written after each tenth of the batches and at the end;
                files of an earlier measurement are overwritten
  --resume      keep the sums in agreement.pt of that folder too (as large as they are in memory), as often; if they are there
                already, of the same measurement, go on from them, to as many batches as --batches says. Sums of other weights,
                model options, variants or training prompts are refused
The gain is <g, G> / (|g| |G|), g the mean gradient of the variant and G the gradient of the expected reward, estimated without bias
from other batches (REINFORCE over all scales, leave-one-out baseline), in the inner product x P^-1 y, P = sqrt(v) + eps of AdamW:
how much a small step along g of a given length raises the expected reward, of what is possible. The batch gain has sqrt(E |g|^2) of
single batches for |g|, so that noise counts as well. Each stands also as a multiple of the first variant's, which is better known.
All variants see the same prompts and noise; differences are to the first one, with the standard error of paired differences.
One process measures, in the precision of the weights. Ctrl-C ends after the current batch and reports the results so far."""
ABOUT = ("variants", "seed", "adam_batches", "per_scale", "kl", "parameters", "blocks")
"""Options that must be the same for a measurement to go on."""
GAINS = ("gain", "times the first's", "batch gain", "times the first's")
ONE_PRESS = 1.0
"""Seconds within which signals count as one Ctrl-C: `timeout -s INT` and some shells signal a process and then its group."""


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    for name in ("--variants", "--parameters", "--device", "--output"):
        parser.add_argument(name)
    for name, value in (("--batches", 200), ("--prompts", None), ("--seed", 0), ("--blocks", 20), ("--adam_batches", 40)):
        parser.add_argument(name, type=int, default=value)
    for name in ("--per_scale", "--kl", "--resume"):
        parser.add_argument(name, action="store_true")
    return run_with_config(arguments, HELP, parser, _measure)


def _measure(options: argparse.Namespace, config: ParsedConfig) -> int:
    refuse_ranks("agreement")
    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output FOLDER, where the sums are kept")
    if options.adam_batches < 0:
        raise ConfigError(f"--adam_batches must be 0, for no gains, or more, got {options.adam_batches}")
    with reraise_as(ConfigError, ValueError, OSError):
        described = None if options.variants is None else read_variants(options.variants)
    model, data = config.build()
    with reraise_as(StartError, ValueError, OSError, RuntimeError):
        model.to(device_of(options.device, config.get("trainer.accelerator")))
        if isinstance(model.reference, VARPolicy):
            model.reference.to(model.policy.device)
        data.setup("fit")
        data.train_dataloader()  # says what to set where there are no training prompts
        if checkpoint := config.checkpoint():
            load_checkpoint(checkpoint, model, model.saved_tensors())
    with reraise_as(ConfigError, ValueError):
        variants = _variants(model, described, options.kl)
        meter = _meter(model, variants, options)
        size = data.batch_size if options.prompts is None else options.prompts
        batches = independent_batches(data.prompts["train"], options.batches, size, options.seed)
        warming = independent_batches(data.prompts["train"], options.adam_batches, size, options.seed + 1, least=0)
    with reraise_as(StartError, ValueError):
        model.check_prompts([prompt for batch in (*batches, *warming) for prompt in batch], evaluated=())
        model.rewards.check_training_prompts(data.prompts["train"])
    folder = _output_folder(options.output)
    about = {name: getattr(options, name) for name in ABOUT} | {"prompts": size, "checkpoint": checkpoint}
    same = about | {"decided by": deciding_options(config.get("model"), described, data.prompts["train"])}
    sums = folder / "agreement.pt" if folder is not None and options.resume else None
    metric, before = None, None
    if sums is not None and sums.exists():
        with reraise_as(ConfigError, ValueError):
            metric, before = kept_sums(meter, same, sums)
    elif warming:
        metric = _metric(model, variants, options, warming)
    meter = _meter(model, variants, options, metric)
    if before is not None:
        meter.load_state_dict(before)
        _say(f"{meter.batches} batches have been measured before")
    _say(f"{len(meter.variants)} variants, {meter.size} parameters; sums take up to {meter.bytes_held / 2**20:.0f} MiB")

    def keep() -> bool:
        if folder is None:
            return True
        return _write_results(meter, about | {"batches": options.batches}, same, folder, metric, sums)

    _run(meter, batches, keep)
    status = _report(meter)
    if not keep():
        return FAILED
    if folder is not None:
        print(f"\nagreement.json and agreement.csv are in {folder}")
    return status


def _variants(model: VARGRPO, described: Mapping[str, Mapping[str, Any]] | None, kl: bool) -> list[Variant]:
    if kl and model.reference is None:
        raise ConfigError("--kl: the configuration has no KL, its model.kl_coef is 0")
    return described_variants(model, described, kl)


def _meter(
    model: VARGRPO, variants: Sequence[Variant], options: argparse.Namespace, metric: Tensor | None = None
) -> AgreementMeter:
    return agreement_meter(
        model,
        variants,
        seed=options.seed,
        blocks=min(options.blocks, max(options.batches, 2)),
        per_scale=options.per_scale,
        parameters=options.parameters,
        metric=metric,
    )


def _metric(
    model: VARGRPO, variants: Sequence[Variant], options: argparse.Namespace, batches: Sequence[list[Prompt]]
) -> Tensor | None:
    """The metric of gains, of an AdamW with the beta2 and eps of the configured optimizer, or its defaults where that has none."""
    _say(f"{len(batches)} batches of {variants[0].name!r} warm the AdamW state in whose metric gains are taken")
    group = model.optimizer_factory([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    beta2, eps = group.get("betas", (0.9, 0.999))[1], group.get("eps", 1e-8)
    meter = agreement_meter(model, variants[:1], seed=options.seed, parameters=options.parameters)
    try:
        return warmed_metric(meter, batches, beta2, eps)
    except ValueError as error:
        _say(f"{error}: gains are left out")
        return None


def _output_folder(output: str | None) -> Path | None:
    """The folder of `--output`, created and checked before the measurement, which may take hours."""
    if output is None:
        return None
    folder = Path(output)
    if folder.is_file():
        raise ConfigError(f"--output {output} is a file; expected a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--output {output} cannot be written to; give another folder")
    return folder


def _write_results(
    meter: AgreementMeter, about: dict[str, Any], same: dict[str, Any], folder: Path, metric: Tensor | None, sums: Path | None
) -> bool:
    """Write the results so far, and the sums with what must be the same for these to go on; say where that is not possible."""
    try:
        write(meter.measured(), about | {"measured_batches": meter.batches}, folder)
        if sums is not None:
            keep_sums(meter, same, metric, sums)
    except OSError as error:
        _say(f"could not write to {folder} what has been measured ({error})")
        return False
    return True


def _run(meter: AgreementMeter, batches: Sequence[list[Prompt]], keep: Callable[[], bool]) -> None:
    """Measure all batches that have not been, and write the results so far after each tenth of them."""
    start, tenth, before = time.monotonic(), -(-len(batches) // 10), meter.batches
    with _interruptible() as interrupted:
        for done, prompts in enumerate(batches[before:], start=before + 1):
            meter.add(prompts)
            each = (time.monotonic() - start) / (done - before)
            _say(f"batch {done} of {len(batches)}: {each:.1f} s a batch, {_span(each * (len(batches) - done))} left")
            if done % tenth == 0 and done < len(batches):
                keep()
            if interrupted():
                return


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, the first Ctrl-C is only noted, so that every variant has the same batches; a later one ends the program."""
    requests: list[float] = []

    def remember(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not requests:
            requests.append(time.monotonic())
            _say("ending with this batch; Ctrl-C again to give up")
        elif time.monotonic() - requests[0] > ONE_PRESS:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(requests)
    finally:
        signal.signal(signal.SIGINT, before)


def _span(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _say(line: str) -> None:
    print(f"varrl agreement: {line}", file=sys.stderr, flush=True)


def _report(meter: AgreementMeter) -> int:
    rows = meter.measured()
    print("\n".join(table(rows)))
    if all(math.isnan(row.standard_error) for row in rows):
        print("varrl: too few batches had a gradient: groups without variance teach nothing. See varrl doctor.", file=sys.stderr)
        return FAILED
    return 0


def table(rows: Sequence[Measured]) -> list[str]:
    """The lines of the table, with ± one standard error; scales count from 1."""
    gains = any(not math.isnan(row.relative_batch_gain) for row in rows)
    head = ["variant", "scales", "A", "K", "cosine", "less the first", "signal"]
    lines = [[*head, *(GAINS if gains else ()), "batches"]]
    for row in rows:
        scales = f"{row.stage.start + 1}-{row.stage.stop}" if row.scale is None else f"{row.scale + 1}"
        first = row is rows[0] or (row.variant == rows[0].variant)
        line = [
            row.variant if row.scale is None else "",
            scales,
            str(row.stage.branches),
            str(row.stage.continuations),
            _pm(row.cosine, row.standard_error),
            "" if first else _pm(row.difference, row.difference_standard_error),
            f"{row.signal:.4f}",
        ]
        if gains:
            line += [
                _pm(row.gain, row.gain_standard_error, 2),
                "" if first else _pm(row.relative_gain, row.relative_gain_standard_error, 2),
                _pm(row.batch_gain, row.batch_gain_standard_error),
                "" if first else _pm(row.relative_batch_gain, row.relative_batch_gain_standard_error, 2),
            ]
        lines.append([*line, f"{row.batches}" + (f" ({row.left_out} without gradient)" if row.left_out else "")])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _pm(value: float, error: float, digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:+.{digits}f} ± {error:.{digits}f}"


def write(rows: Sequence[Measured], about: dict[str, Any], folder: Path) -> None:
    """Write `agreement.json`, with the options of the measurement, and `agreement.csv`; scales count from 1.

    NaN becomes null in the JSON file and an empty cell in the CSV file.
    """
    plain = [{key: None if isinstance(x, float) and math.isnan(x) else x for key, x in row.flat().items()} for row in rows]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(plain[0]))
    writer.writeheader()
    writer.writerows(plain)
    for name, text in (("json", json.dumps(about | {"rows": plain}, indent=2) + "\n"), ("csv", lines.getvalue())):
        replace_text(folder / f"agreement.{name}", text)
