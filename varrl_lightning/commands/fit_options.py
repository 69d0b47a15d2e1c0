"""Command lines of commands that take the arguments of `fit` and options of their own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.user_errors import reraise_as, run_command
from varrl_lightning.errors import ConfigError


def options_parser() -> argparse.ArgumentParser:
    """A parser for a command's own options: it raises errors, and leaves `--help` and unknown arguments to others."""
    return argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)


def run_with_config(
    arguments: Sequence[str], help_text: str, own: argparse.ArgumentParser, run: Callable[[argparse.Namespace, ParsedConfig], int]
) -> int:
    """Print the help that is asked for, or run a command with its own options and the configuration; returns the exit status.

    Args:
        arguments: those of `own`; all others are arguments of `fit`.
        run: the command.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text)
        return 0

    def parsed() -> int:
        with reraise_as(ConfigError, argparse.ArgumentError):
            asked, rest = own.parse_known_args(arguments)
        return run(asked, ParsedConfig(["fit", *rest]))

    return run_command(parsed)
