"""`varrl report RUN_FOLDER ...`: draw a run's figures again, and write the page of one run or of several, from their files."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from varrl_lightning.figures.draw import draw_figures

NAME = "report.html"
INSTALL = "pip install 'varrl-lightning[report]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Redraw `figures` of each run and write the page; 0 when something was, 1 when nothing could be, 2 for a wrong folder."""
    parser = argparse.ArgumentParser(prog="varrl report", description=__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_FOLDER", help="a folder with metrics.csv, samples/ and summary.json"
    )
    where = f"the page; by default {NAME} in the run folder, or in the folder that holds all runs"
    parser.add_argument("--output", type=Path, metavar="FILE", help=where)
    options = parser.parse_args(argv)
    wrong = [run for run in options.runs if not run.is_dir()]
    if wrong:
        names = ", ".join(map(str, wrong))
        return _say(f"{names} is not a folder; give the folder of a run (trainer.default_root_dir)", 2)
    figures = [_figures(run) for run in options.runs]
    written = _page(options.runs, options.output)
    return 0 if written or (any(figures) and options.output is None) else 1


def _figures(run: Path) -> bool:
    """Redraw the figures of a run; whether there was anything to draw."""
    try:
        written = draw_figures(run)
    except (ValueError, OverflowError, OSError) as error:
        return bool(_say(f"the figures of {run} were not drawn: {error}", 0))
    for path in written:
        print(path)
    if not written:
        _say(f"{run} has neither metrics.csv with numbers nor two sample files in samples/raw", 0)
    return bool(written)


def _page(folders: Sequence[Path], output: Path | None) -> bool:
    """Write the page; whether that was possible."""
    if importlib.util.find_spec("vl_convert") is None:
        _say(f"the page needs Vega-Lite, which is not installed: {INSTALL}", 0)
        return False
    from varrl_lightning.run_page.page import write_page
    from varrl_lightning.run_page.record import read_runs

    runs = read_runs(folders)
    path = output or _beside(folders) / NAME
    written = any(run.begun for run in runs)
    try:
        if written:
            write_page(path, runs)
            print(path)
    except OSError as error:
        written = bool(_say(f"{path} could not be written: {error.strerror or error}; give another place as --output", 0))
    for problem in (problem for run in runs for problem in run.problems):
        _say(problem, 0)
    return written


def _beside(folders: Sequence[Path]) -> Path:
    """The run folder of one run; of several the nearest folder that holds all."""
    if len(folders) == 1:
        return folders[0]
    return Path(os.path.relpath(os.path.commonpath([folder.absolute() for folder in folders])))


def _say(message: str, status: int) -> int:
    print(f"varrl report: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
