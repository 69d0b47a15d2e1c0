"""`varrl report RUN_FOLDER`: draw a run's figures again, from the files in its folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from varrl_lightning.figures.draw import draw_figures


def main(argv: Sequence[str] | None = None) -> int:
    """Redraw `RUN_FOLDER/figures`; 0 when something was drawn, 1 when there was nothing to draw, 2 for a wrong folder."""
    parser = argparse.ArgumentParser(prog="varrl report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a folder with metrics.csv, samples/ and summary.json")
    run = parser.parse_args(argv).run
    if not run.is_dir():
        print(f"varrl report: {run} is not a folder; give the folder of a run (trainer.default_root_dir)", file=sys.stderr)
        return 2
    try:
        written = draw_figures(run)
    except ValueError as error:
        print(f"varrl report: {error}", file=sys.stderr)
        return 1
    for path in written:
        print(path)
    if not written:
        print(f"varrl report: {run} has neither metrics.csv with numbers nor two sample files in samples/raw", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
