"""Has the real parsers of the package read a command or a configuration that a page shows."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from varrl_lightning.__main__ import COMMANDS
from varrl_lightning.commands.early_checks import check_model
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.list import main as varrl_list
from varrl_lightning.configuration.files import forget_former, resolve_configs, shipped_configs
from varrl_lightning.configuration.plugin_options import PLUGINS, replacing, split_plugin_options

ROOT = Path(__file__).parent.parent.parent
LIKE_FIT = ("fit", "validate", "test", "predict")


class _Read(BaseException):
    """Raised once a command line was read, in place of running the command."""


@functools.cache
def _cli() -> ParsedConfig:
    return ParsedConfig(["fit", "--config", "quickstart.yaml"])


def read_fit(arguments: Sequence[str]) -> None:
    """Parse a command line of fit, validate, test or predict, on one parser for all of them.

    Raises:
        ConfigError, ValueError: as the command would.
    """
    cli = _cli()
    resolved, cli.config_files = resolve_configs(arguments)
    resolved, cli._plugin_options = split_plugin_options(forget_former(resolved, PLUGINS, replacing))
    cli.parse_arguments(cli.parser, resolved)
    check_model(cli.config[arguments[0]].model)


def _config_of(value: str) -> str:
    """A configuration that exists, in place of one that only a reader has: that of a run."""
    path = Path(value)
    if path.parts[0] == "runs" and path.name == "config.yaml":
        name = f"{path.parts[1]}.yaml"
        return name if name in shipped_configs() or Path(name).is_file() else "quickstart.yaml"
    if value.isupper():  # FILE
        return "quickstart.yaml"
    return str(ROOT / value) if (ROOT / value).is_file() else value


def with_known_files(arguments: Sequence[str]) -> list[str]:
    """The arguments, with a file that exists behind each `--config`."""
    return [
        _config_of(value) if before == "--config" else value for before, value in zip(["", *arguments], arguments, strict=False)
    ]


def _read_with_config(arguments: Sequence[str], help_text: str, parser: argparse.ArgumentParser, run: Callable[..., int]) -> int:
    _, rest = parser.parse_known_args(arguments)
    read_fit(["fit", *rest])
    raise _Read


def _read_alone(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None, *rest: Any) -> Any:
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise ValueError(f"unknown arguments: {unknown}")
    raise _Read


def read_command(arguments: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Parse a command line of `varrl`, by the command's own parser; nothing is run.

    Raises:
        Exception: what the command would show as a mistake.
    """
    command, *rest = with_known_files(arguments)
    if command in ("--help", "-h", "--version") or {"--help", "-h"} & set(rest):
        assert command.startswith("-") or command in COMMANDS, f"there is no command {command!r}"
        return
    assert command in COMMANDS, f"there is no command {command!r}"
    if command == "list":  # it needs no time, and looks at its argument after parsing
        assert varrl_list(rest) == 0, f"varrl list {rest}"
    elif command in LIKE_FIT:
        read_fit([command, *(argument for argument in rest if argument != "--print_config")])
    else:
        read_main(importlib.import_module(f"varrl_lightning.{COMMANDS[command][0]}"), rest, patch)


def read_main(module: Any, arguments: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    """Parse the command line of a module's `main`; nothing is run."""
    with patch.context() as patched:
        if hasattr(module, "run_with_config"):
            patched.setattr(module, "run_with_config", _read_with_config)
        else:
            patched.setattr(argparse.ArgumentParser, "parse_args", _read_alone)
            patched.setattr(argparse.ArgumentParser, "error", _raise)
        with pytest.raises(_Read):
            module.main(arguments)


def _raise(parser: argparse.ArgumentParser, message: str) -> None:
    raise ValueError(message)
