"""`varrl compare SPEC.yaml`: several recipes over seeds, at equal time and at equal images, tuned on one grid."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from varrl_lightning.commands.user_errors import reraise_as, run_command
from varrl_lightning.comparison.phases import Comparison
from varrl_lightning.comparison.report import write_report
from varrl_lightning.comparison.spec import read_spec
from varrl_lightning.comparison.workers import quiet
from varrl_lightning.errors import ConfigError

PHASES = ("time", "grid", "final", "figure")
DESCRIPTION = """Compare recipes over seeds, at equal training time and at equal numbers of images.

  time    seconds per update of each recipe and number of prompts, alone on the machine: timing.json; a run's number of updates at
          equal time is the budget divided by this, so that a busy machine changes nothing
  grid    every recipe at every learning rate and number of prompts: grid/, grid.json with the best point of each recipe
  final   the best points over the final seeds, on the test prompts: final/
  figure  comparison.png, results.json and results.md

Without --phase all four, in this order. Existing results are kept: a command that was stopped resumes with the next run.
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
        steps = {"time": comparison.time, "grid": comparison.grid, "final": comparison.final}
        for phase in PHASES if options.phase is None else (options.phase,):
            print(f"--- {phase}", flush=True)
            if phase == "figure":
                write_report(comparison)
            else:
                steps[phase]()
        return 0

    return run_command(run)
