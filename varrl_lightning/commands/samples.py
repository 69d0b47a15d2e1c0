"""`varrl samples RUN`: list the images that a run was trained on, with their rewards and credit; filter, sort and show them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from varrl_lightning.errors import FAILED, USE
from varrl_lightning.sample_tables.columns import UnknownColumnError, column_named, columns_of, plain_table, value_of
from varrl_lightning.sample_tables.conditions import parse_condition
from varrl_lightning.sample_tables.parquet import INSTALL, can_write, read_sample_tables, table_files
from varrl_lightning.sample_tables.rows import SampleRow
from varrl_lightning.sample_tables.tokens import ConditionError

SHOWN = 20
"""Rows of a table or a sheet, unless `--limit` says otherwise."""
EPILOG = """A CONDITION compares columns, numbers and quoted text by < <= > >= == != in, contains and is missing, joined by and, or,
not and parentheses: 'advantage < -1 and not read contains "STONE"'. A missing value fulfils no comparison. Columns are those that
the table shows with --columns all."""


class RefusedError(Exception):
    """The command cannot do what it was asked; the exit status is its second argument."""


def main(arguments: Sequence[str]) -> int:
    """Show the rows that were asked for; 1 when there are none, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    try:
        rows = _chosen(options)
        _show(rows, options)
    except RefusedError as refused:
        message, status = refused.args
    except (ConditionError, UnknownColumnError) as error:
        message, status = str(error), USE
    except (ValueError, OSError, ModuleNotFoundError) as error:  # a damaged table, a full disk, no pyarrow
        message, status = str(error), FAILED
    else:
        return 0
    print(f"varrl samples: {message}", file=sys.stderr)
    return int(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="varrl samples", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a folder with samples/tables")
    parser.add_argument("--where", metavar="CONDITION", help="the rows that fulfil it, such as 'advantage < -1'")
    parser.add_argument("--sort", metavar="COLUMN", help="lowest first; rows without a value last")
    parser.add_argument("--descending", action="store_true", help="highest first")
    parser.add_argument("--limit", type=_count, metavar="N", help=f"at most N rows; {SHOWN} in the table and on a sheet, else all")
    parser.add_argument("--step", metavar="N|last", help="the rows of one training step")
    parser.add_argument("--columns", metavar="A,B", help="the columns to show; all for all")
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write each image, and the masks of its scales over it")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="write one picture of all: numbers, images, masks over them")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of rows is at least 1, got {text!r}")
    return int(text)


def _chosen(options: argparse.Namespace) -> list[SampleRow]:
    """The rows that were asked for, in their order."""
    run: Path = options.run
    if not run.is_dir():
        raise RefusedError(f"{run} is not a folder; give the folder of a run (trainer.default_root_dir)", USE)
    files = table_files(run)
    if not files:
        installed = "" if can_write() else f", which needs pyarrow: {INSTALL}"
        raise RefusedError(
            f"{run} has no tables of samples in samples/tables. The callback SampleTables writes one at each validation of "
            f"'varrl fit', or every so many steps{installed}",
            FAILED,
        )
    rows = read_sample_tables(run, _step(options.step, list(files)), pictures=bool(options.save or options.sheet))
    columns = columns_of(rows)
    if options.where is not None:
        condition = parse_condition(options.where, columns)
        found = [row for row in rows if condition(row)]
        if not found:
            raise RefusedError(f"none of {len(rows)} rows fulfils {options.where!r}", FAILED)
        rows = found
    return rows if options.sort is None else _sorted(rows, column_named(options.sort, list(columns)), options.descending)


def _step(asked: str | None, steps: list[int]) -> int | None:
    if asked is None:
        return None
    if asked == "last":
        return steps[-1]
    if not asked.isdecimal() or int(asked) not in steps:
        raise RefusedError(f"no table of step {asked!r}; there are tables of step {', '.join(map(str, steps))}, or 'last'", USE)
    return int(asked)


def _sorted(rows: Sequence[SampleRow], column: str, descending: bool) -> list[SampleRow]:
    """Sorted by a column; rows without a value come last either way."""
    known = [row for row in rows if value_of(row, column) is not None]
    unknown = [row for row in rows if value_of(row, column) is None]
    return sorted(known, key=lambda row: value_of(row, column), reverse=descending) + unknown  # type: ignore[return-value,arg-type]


def _show(rows: list[SampleRow], options: argparse.Namespace) -> None:
    columns, few = _columns(rows, options), rows[: options.limit or SHOWN]
    many = rows[: options.limit] if options.limit else rows
    if options.save or options.sheet:
        from varrl_lightning.figures.sample_sheet import save_pictures, save_sheet  # matplotlib takes a second

        if options.save:
            print(f"{len(save_pictures(many, options.save))} pictures of {len(many)} rows in {options.save}", file=sys.stderr)
        if options.sheet:
            save_sheet(few, options.sheet)
            print(f"{len(few)} rows on {options.sheet}", file=sys.stderr)
    if options.json:
        print(json.dumps([{name: value_of(row, name) for name in columns} for row in many], indent=2, ensure_ascii=False))
        return
    _print(few, columns)
    if len(few) < len(rows):
        print(f"{len(few)} of {len(rows)} rows; --limit {len(rows)} shows all")


def _columns(rows: Sequence[SampleRow], options: argparse.Namespace) -> list[str]:
    """The columns to show: by default those that a reader wants first, and those that were asked for otherwise."""
    every = columns_of(rows)
    if options.columns == "all" or (options.json and options.columns is None):
        return list(every)
    if options.columns is not None:
        return [column_named(name.strip(), list(every)) for name in options.columns.split(",")]
    names = ["step", "stage", "group", "branch", "continuation", "prompt", "read", "reward", "return", "advantage"]
    if options.sort is not None:
        names.append(column_named(options.sort, list(every)))
    return [name for name in dict.fromkeys(names) if any(value_of(row, name) is not None for row in rows)]


def _print(rows: Sequence[SampleRow], columns: Sequence[str]) -> None:
    names, cells = plain_table(rows, columns)
    table = Table(box=None, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if columns_of(rows)[name] != "number" else "right", overflow="fold")
    for row in cells:
        table.add_row(*(_cell(value) for value in row))
    # A pipe has no width: nothing is folded for it.
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, markup=False, highlight=False, emoji=False).print(table, soft_wrap=width is not None)


def _cell(value: float | str | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
