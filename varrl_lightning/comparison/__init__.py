"""`varrl compare SPEC.yaml`: several recipes over seeds, at equal time, images or updates, tuned on one grid."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from varrl_lightning.commands.user_errors import reraise_as, run_command
from varrl_lightning.comparison.phases import Comparison
from varrl_lightning.comparison.report import write_report
from varrl_lightning.comparison.spec import read_spec
from varrl_lightning.comparison.workers import quiet
from varrl_lightning.errors import ConfigError

PHASES = ("time", "tune", "final", "report")
DESCRIPTION = """Compare recipes over seeds, at equal training time, at equal numbers of images and at equal numbers of updates.

  time    seconds per update of each recipe and number of prompts, in turns, on a machine that does nothing else: timing.json.
          Budgets become numbers of updates by this, so that the runs may share a machine
  tune    every recipe at every learning rate and number of prompts; choices.json has the best point of each by validation
  final   the best points over the seeds, with schedules that end with the run: one run for each axis, or for several whose
          lengths are equal. The test prompts are read here alone
  report  results.md, results.json and comparison.png, from the files alone

Without --phase all four, in this order. Each run adds its rows to results.csv when it ends, and rows that exist are not made
again: a command that was stopped goes on with the next run, on another machine too.
Exit status 0, 2 when the spec or a configuration is wrong, 1 otherwise."""


def main(arguments: Sequence[str]) -> int:
    """Run the requested phases."""
    parser = argparse.ArgumentParser(
        prog="varrl compare", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, exit_on_error=False
    )
    parser.add_argument("spec", metavar="SPEC.yaml", help="what to compare; a first one: configs/comparison.yaml")
    parser.add_argument("--phase", choices=PHASES, help="only this one")
    parser.add_argument("--output", metavar="FOLDER", help="in place of the spec's")

    def run() -> int:
        with reraise_as(ConfigError, argparse.ArgumentError):
            options = parser.parse_args(arguments)
        quiet()
        comparison = Comparison(read_spec(options.spec, options.output))
        phases = PHASES if options.phase is None else (options.phase,)
        if phases != ("report",):
            comparison.check()
        steps = {"time": comparison.time, "tune": comparison.tune, "final": comparison.final}
        for phase in phases:
            print(f"--- {phase}", flush=True)
            if phase == "report":
                write_report(comparison)
            else:
                steps[phase]()
        return 0

    return run_command(run)
