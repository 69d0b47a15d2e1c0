"""Errors that a user can fix, which are shown as one message without a traceback, and suggestions of close names."""

from __future__ import annotations

import difflib
import sysconfig
import textwrap
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

USE = 2
"""Exit status after a wrong command line or configuration."""
FAILED = 1
"""Exit status after any other error."""


class PluginError(Exception):
    """A plugin or class named in a configuration could not be found, imported or built."""


class ClassPathError(PluginError):
    """A dotted path does not lead to a class."""


class InitArgsError(PluginError):
    """A constructor was given arguments that it does not take, or too few."""


class PluginNotFoundError(PluginError):
    """No installed distribution registers the name."""


class DuplicatePluginError(PluginError):
    """Two distributions register the same name."""


class BrokenPluginError(PluginError):
    """A plugin is registered but cannot be imported."""


class SpecError(PluginError, ValueError):
    """A plain spec cannot be built, or a checkpoint does not hold an argument that is needed."""


class ConfigError(Exception):
    """The command line or the configuration is wrong; nothing has been started."""


class StartError(Exception):
    """The configuration is valid, but prompts, weights or checkpoint that it names do not fit together."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model."""


class SaveError(OSError):
    """A checkpoint could not be written; the former one is untouched. Raised on every process."""


class RewardError(Exception):
    """A reward raised an error, or returned scores that do not fit the images."""


class MaskSourceError(Exception):
    """A mask source raised an error, or returned a mask that does not fit the images."""


class RunStoppedError(RuntimeError):
    """Training cannot continue; the state before the failing step is intact and is saved."""


class RankError(RuntimeError):
    """A process failed where all had to give a result; every process raises the same error, so that none waits for another."""


class RanksDisagreeError(RuntimeError):
    """Processes hold different values where they must be equal; every process raises this error with the same message."""


class MemoryFullError(RuntimeError):
    """A device's memory is too small for the configuration; the message names the setting to change."""


SELF_EXPLAINING = (ConfigError, StartError, PluginError, RewardError, MaskSourceError, RunStoppedError, SaveError, MemoryFullError)
"""Errors whose message tells a user all: they are shown without a traceback, and without the line of code that raised them."""

_PACKAGE = str(Path(__file__).parent)
_INSTALLED = (_PACKAGE, "<frozen", *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def raised_at(error: BaseException) -> str:
    """` (File "mine.py", line 3, in __call__)`: the line of a user's code that an error came through last; nothing without a line.

    Where no such code took part, it is the last line of this package below the function that caught the error, or else the first
    line that this function called.
    """
    called = traceback.extract_tb(error.__traceback__)[1:]
    theirs = [frame for frame in called if not frame.filename.startswith(_INSTALLED)]
    ours = [frame for frame in called if frame.filename.startswith(_PACKAGE) and not frame.filename.endswith("registry.py")]
    place = next(iter(theirs[-1:] or ours[-1:] or called[:1]), None)
    return "" if place is None else f' (File "{place.filename}", line {place.lineno}, in {place.name})'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def listed(names: Sequence[str], most: int = 50) -> str:
    """`'a', 'b', ...`: the first names, as many as a user can look through."""
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def no_such_name(owner: str, name: str, names: Iterable[str]) -> str:
    """`owner has no 'name'. Did you mean 'nama'?`, followed by the known names, if there are any."""
    names = list(names)
    if not names:
        return f"{owner} has no {name!r}; it has none at all."
    listing = textwrap.fill(f"It has: {', '.join(names)}.", width=118, initial_indent="  ", subsequent_indent="  ")
    return f"{owner} has no {name!r}.{did_you_mean(name, names)}\n{listing}"
