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

from varrl_lightning.callbacks.gradient_agreement import agreement_meter, described_variants
from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.gradient_agreement.meter import AgreementMeter, Measured, independent_batches
from varrl_lightning.gradient_agreement.variants import read_variants
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt

HELP = """usage: varrl agreement --config FILE [--variants FILE] [--ckpt_path FILE] [--batches N] [--prompts P] [--seed N]
                       [--per_scale] [--kl] [--parameters PATTERN] [--blocks N] [--device NAME] [--output FOLDER]
                       [--model.ARGUMENT VALUE ...]

Measures the mean cosine between the gradients of independent batches, as 'varrl fit' with the same arguments would compute them,
before clipping, without training:
  --variants    a YAML file that maps the name of each variant to its changes: a stage (prefix, suffix, all) and arguments of the
                model; 'agreement' comes with the package. Without it, the stages of the configuration are measured
  --ckpt_path   measure at this checkpoint of a run, not at the start
  --batches     number of independent batches, at least 3; 200 by default
  --prompts     prompts in a batch; data.batch_size by default. No prompt is repeated before all training prompts were used
  --seed        seed of the order of prompts and of the noise; 0 by default
  --per_scale   measure each scale's part of the loss as well, by a separate backward pass
  --kl          include the KL to the reference; without it, only the policy term is measured
  --parameters  pattern of the names of the parameters that count, as in 'blocks.*'; all trained parameters by default
  --blocks      number of blocks of batches that are left out in turn for the standard error; 20 by default
  --device      cpu, cuda, ...; by default cuda if there is a GPU, unless trainer.accelerator is cpu
  --output      a folder for agreement.json and agreement.csv, which are written after each tenth of the batches and at the end;
                files of an earlier measurement are overwritten
All variants see the same prompts and noise; differences are to the first one, with the standard error of paired differences.
One process measures, in the precision of the weights. Ctrl-C ends after the current batch and reports the results so far."""
RANKS = ("WORLD_SIZE", "SLURM_NTASKS")
ONE_PRESS = 1.0
"""Seconds within which signals count as one Ctrl-C: `timeout -s INT` and some shells signal a process and then its group."""


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    for name in ("--variants", "--parameters", "--device", "--output"):
        parser.add_argument(name)
    for name, value in (("--batches", 200), ("--prompts", None), ("--seed", 0), ("--blocks", 20)):
        parser.add_argument(name, type=int, default=value)
    for name in ("--per_scale", "--kl"):
        parser.add_argument(name, action="store_true")
    return run_with_config(arguments, HELP, parser, _measure)


def _measure(options: argparse.Namespace, config: ParsedConfig) -> int:
    _refuse_ranks()
    with reraise_as(ConfigError, ValueError, OSError):
        described = None if options.variants is None else read_variants(options.variants)
    model, data = config.build()
    with reraise_as(StartError, ValueError, OSError, RuntimeError):
        model.to(_device(options.device, config.get("trainer.accelerator")))
        if isinstance(model.reference, VARPolicy):
            model.reference.to(model.policy.device)
        data.setup("fit")
        data.train_dataloader()  # says what to set where there are no training prompts
        if checkpoint := config.checkpoint():
            load_checkpoint(checkpoint, model, model.saved_tensors())
    with reraise_as(ConfigError, ValueError):
        meter = _meter(model, described, options)
        size = data.batch_size if options.prompts is None else options.prompts
        batches = independent_batches(data.prompts["train"], options.batches, size, options.seed)
    with reraise_as(StartError, ValueError):
        model.check_prompts([prompt for batch in batches for prompt in batch])
        model.rewards.check_training_prompts(data.prompts["train"])
    folder = _output_folder(options.output)
    _say(f"{len(meter.variants)} variants, {meter.size} parameters; sums take up to {meter.bytes_held / 2**20:.0f} MiB")
    about = {name: getattr(options, name) for name in ("variants", "batches", "seed", "per_scale", "kl", "parameters", "blocks")}
    about |= {"prompts": size, "checkpoint": checkpoint}

    def keep() -> bool:
        return folder is None or _write_results(meter, about, folder)

    _run(meter, batches, keep)
    status = _report(meter)
    if not keep():
        return FAILED
    if folder is not None:
        print(f"\nagreement.json and agreement.csv are in {folder}")
    return status


def _refuse_ranks() -> None:
    for name in RANKS:
        if os.environ.get(name, "1") not in ("", "1"):
            raise ConfigError(f"agreement measures on one process, but {name} is {os.environ[name]}: start it without a launcher")


def _device(name: str | None, accelerator: object) -> torch.device:
    if name is not None:
        return torch.device(name)
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def _meter(model: VARGRPO, described: Mapping[str, Mapping[str, Any]] | None, options: argparse.Namespace) -> AgreementMeter:
    if options.kl and model.reference is None:
        raise ConfigError("--kl: the configuration has no KL, its model.kl_coef is 0")
    return agreement_meter(
        model,
        described_variants(model, described, options.kl),
        seed=options.seed,
        blocks=min(options.blocks, max(options.batches, 2)),
        per_scale=options.per_scale,
        parameters=options.parameters,
    )


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


def _write_results(meter: AgreementMeter, about: dict[str, Any], folder: Path) -> bool:
    try:
        write(meter.measured(), about | {"measured_batches": meter.batches}, folder)
    except OSError as error:
        _say(f"could not write to {folder} what has been measured ({error})")
        return False
    return True


def _run(meter: AgreementMeter, batches: Sequence[list[Prompt]], keep: Callable[[], bool]) -> None:
    """Measure all batches, and write the results so far after each tenth of them."""
    start, tenth = time.monotonic(), -(-len(batches) // 10)
    with _interruptible() as interrupted:
        for done, prompts in enumerate(batches, start=1):
            meter.add(prompts)
            each = (time.monotonic() - start) / done
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
    head = ("variant", "scales", "A", "K", "cosine", "less the first", "signal", "batches")
    lines = [head]
    for row in rows:
        scales = f"{row.stage.start + 1}-{row.stage.stop}" if row.scale is None else f"{row.scale + 1}"
        first = row is rows[0] or (row.variant == rows[0].variant)
        lines.append(
            (
                row.variant if row.scale is None else "",
                scales,
                str(row.stage.branches),
                str(row.stage.continuations),
                _pm(row.cosine, row.standard_error),
                "" if first else _pm(row.difference, row.difference_standard_error),
                f"{row.signal:.4f}",
                f"{row.batches}" + (f" ({row.left_out} without gradient)" if row.left_out else ""),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _pm(value: float, error: float) -> str:
    return "" if math.isnan(value) else f"{value:+.4f} ± {error:.4f}"


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
