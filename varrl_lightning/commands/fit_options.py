"""Runs commands that take the arguments of `fit` and further options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.user_errors import reraise_as, run_command
from varrl_lightning.errors import ConfigError


def options_parser() -> argparse.ArgumentParser:
    """A parser for a command's further options: it raises errors, and leaves `--help` and unknown arguments to others."""
    return argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)


def run_with_config(
    arguments: Sequence[str],
    help_text: str,
    parser: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace, ParsedConfig], int],
) -> int:
    """Print a command's help if it is requested, else run the command; returns the exit status.

    Args:
        arguments: the arguments of `parser`, among those of `fit`.
        run: the command, called with its options and the configuration.
    """
    if {"-h", "--help"} & set(arguments):
        print(help_text)
        return 0

    def parsed() -> int:
        with reraise_as(ConfigError, argparse.ArgumentError):
            options, rest = parser.parse_known_args(arguments)
        return run(options, ParsedConfig(["fit", *rest]))

    return run_command(parsed)
