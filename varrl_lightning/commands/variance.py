"""`varrl variance`: of what the variance of a return comes at each middle step m, and what K and the suffix are worth there."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from varrl_lightning.algorithms.stages import prefix_stage
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.fit_options import options_parser, run_with_config
from varrl_lightning.commands.one_process import built_for_measuring, refuse_ranks, writable_file, write_json
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.commands.variance_rows import Measurement, Row, table
from varrl_lightning.data import EvaluationBatches
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt

HELP = """usage: varrl variance --config FILE [--m 2,3,4] [--prompts P] [--continuations K] [--seed N] [--json FILE]
                      [--ckpt_path FILE] [--device NAME] [--model.ARGUMENT VALUE ...]

Measures, without training, of what the variance of a return comes at each middle step m:
  --m              middle steps, with commas between; numbers of scales or resolutions such as 256px. By default all from 2 to T - 1
  --prompts        training prompts of which a group is sampled, the same ones at each m; 40 by default
  --continuations  continuations of each of the group_size branches, at least 2; 4 by default
  --seed           seed of the choice of prompts and of the noise; 0 by default
  --json           a file for the table with all digits
  --ckpt_path      measure at this checkpoint of a run, not at the start
  --device         cpu, cuda, ...; by default cuda if there is a GPU, unless trainer.accelerator is cpu
The columns, of groups of A = model.group_size branches:
  tokens      that a prefix of m scales has
  within      variance of R between continuations of one branch: what the tokens after m decide
  between     variance between branches of the mean of R: what the tokens up to m decide. ratio is within / between
  V of K      share of signal, between / (between + within / K), in the variance of the mean of K continuations
  draft       correlation within groups of the reward of the first m scales, decoded (K = 0), with the mean of the continuations
  suffix std  mean standard deviation of R over A completions of one s_m; also as a share of that of A whole images, and the share
              of such groups under .02, where the reward's own noise would be normalised to advantages
  ms          what a branch costs: its sampling and update, and for each continuation its sampling, decoding and scoring
  K*          sqrt(ratio * cost of a branch / cost of a continuation), with which a budget buys the least noisy gradient; K: as a
              whole number, at least 1"""


def main(arguments: Sequence[str]) -> int:
    """Run with the arguments of `fit` and those of `HELP`."""
    parser = options_parser()
    for name in ("--m", "--json", "--device"):
        parser.add_argument(name)
    for name, value in (("--prompts", 40), ("--continuations", 4), ("--seed", 0)):
        parser.add_argument(name, type=int, default=value)
    return run_with_config(arguments, HELP, parser, _measure)


def _measure(options: argparse.Namespace, config: ParsedConfig) -> int:
    refuse_ranks("variance")
    if options.continuations < 2:
        raise ConfigError(f"--continuations must be at least 2, to compare those of a branch, got {options.continuations}")
    target = writable_file("--json", options.json)
    model, data, checkpoint = built_for_measuring(config, options.device)
    first_scale = config.get("model.first_scale")
    with reraise_as(ConfigError, ValueError):
        steps = middle_steps(options.m, model.policy, first_scale)
        prompts = chosen(data.prompts["train"], options.prompts, options.seed)
    with reraise_as(StartError, ValueError):
        model.check_prompts(prompts, evaluated=())
        model.rewards.check_training_prompts(prompts)
        model.rewards.prepare()
    batches = EvaluationBatches(prompts, data.batch_size).batches
    branches = model.cycle[0].branches
    measurement = Measurement(model, branches, options.continuations, first_scale, batches, options.seed)
    rows = _rows(measurement, steps, len(prompts))
    print("\n".join(table(rows)))
    if target is not None:
        about = {"prompts": len(prompts), "branches": branches, "continuations": options.continuations, "seed": options.seed}
        return write_json(target, {**about, "checkpoint": checkpoint, "rows": [row.flat() for row in rows]})
    return 0


def middle_steps(given: str | None, policy: VARPolicy, first_scale: str) -> list[int]:
    """The middle steps that were asked for, in ascending order, as numbers of scales.

    Raises:
        ValueError: on one that is no number of scales or resolution, or leaves no prefix or no suffix.
    """
    schedule = policy.schedule()
    T = len(schedule)
    if given is None:
        return list(range(2, T))
    steps = []
    for part in given.split(","):
        m = schedule.resolve_m(int(part) if part.strip().isdecimal() else part.strip())
        prefix_stage(T, m, A=2, K=2, first_scale=first_scale)  # type: ignore[arg-type]
        steps.append(m)
    return sorted(set(steps))


def chosen(prompts: Sequence[Prompt], number: int, seed: int) -> list[Prompt]:
    """Some of the prompts, none twice, by the seed.

    Raises:
        ValueError: when there are not as many.
    """
    if not 1 <= number <= len(prompts):
        raise ValueError(f"--prompts must be between 1 and {len(prompts)}, the number of training prompts, got {number}")
    return random.Random(seed).sample(list(prompts), number)


def _rows(measurement: Measurement, steps: Sequence[int], prompts: int) -> list[Row]:
    """All rows, with a line about the progress after each batch."""
    rows, start = [], time.monotonic()
    for m in steps:

        def say(done: int, m: int = m) -> None:
            print(
                f"varrl variance: m = {m}: {done} of {prompts} prompts, {time.monotonic() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )

        rows.append(measurement.row(m, say))
    return rows
