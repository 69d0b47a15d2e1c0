"""Writes the results of a comparison: tables and the figure."""

from __future__ import annotations

from varrl_lightning.comparison.phases import Comparison


def write_report(comparison: Comparison) -> None:
    """Print the number of rows."""
    print(len(comparison.table.rows()), "rows")
