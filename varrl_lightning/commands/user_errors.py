"""Shows a user's mistakes as one message; errors of the program keep their traceback."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from varrl_lightning.configuration.explain import plain
from varrl_lightning.errors import (
    FAILED,
    USE,
    ConfigError,
    MaskSourceError,
    MemoryFullError,
    PluginError,
    RankError,
    RanksDisagreeError,
    RewardError,
    RunStoppedError,
    SaveError,
    StartError,
)

BUILD_ERRORS = (ValueError, TypeError, ImportError, OSError, PluginError, MisconfigurationException)
"""Errors that constructors raise on a wrong configuration."""


NOISE = (
    r"\s*Dump of a value that does not round-trip",  # of an option that is refused a moment later, with a message of ours
    ".*does not have many workers",  # to read a list that is in memory
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Be aware that when using `ckpt_path`, callbacks",  # callbacks of fit, which validate, test and predict do not need
)
ADVERTS = ("💡 Tip", "`weights_only` was not set")


SHOWN_PLAINLY = (
    *(ConfigError, StartError, PluginError, MisconfigurationException),
    *(RewardError, MaskSourceError, RunStoppedError, RankError, RanksDisagreeError, SaveError, MemoryFullError),
)
"""Errors that are shown as one message, without a traceback."""


@contextmanager
def reraise_as(kind: type[Exception], *errors: type[Exception]) -> Iterator[None]:
    """Turn errors that a user can fix into one that `run_command` shows without a traceback."""
    try:
        yield
    except errors as error:
        raise kind(plain(str(error))) from error


def run_command(run: Callable[[], int]) -> int:
    """Run a command and return its exit status; with VARRL_DEBUG=1, every error keeps its traceback."""
    silence_lightning()
    try:
        return run()
    except SHOWN_PLAINLY as error:
        if _debugging():
            raise
        print(f"varrl: {error}", file=sys.stderr)
        return USE if isinstance(error, ConfigError) else FAILED


def _debugging() -> bool:
    return os.environ.get("VARRL_DEBUG", "").strip().lower() not in ("", "0", "false", "no", "off")


def silence_lightning() -> None:
    """Silence Lightning's advertisements, and warnings that a user can do nothing about."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI uses renamed functions
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_worth_logging)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return not any(record.getMessage().startswith(advert) for advert in ADVERTS)
