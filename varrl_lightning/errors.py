"""What a user can mend: every error that is shown as one message, without a traceback, and how a close name is suggested."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable

USE, FAILED = 2, 1
"""Exit status of a wrong command line or configuration, and of everything else that goes wrong."""


class PluginError(Exception):
    """Something named in a config could not be found, imported or built."""


class ClassPathError(PluginError):
    """A dotted path leads to no class."""


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
    """What was asked for on the command line or in a configuration cannot be: nothing has been started."""


class StartError(Exception):
    """The configuration makes sense, but what it names does not fit together: prompts, weights, checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or holds something else than the model."""


class SaveError(OSError):
    """A checkpoint could not be written; the one before it is untouched. Raised on every process."""


class RewardError(Exception):
    """A reward raised, or answered in a form that fits no image."""


class RunStoppedError(RuntimeError):
    """Training cannot continue; the state before the failing step is intact and is saved."""


class RankError(RuntimeError):
    """A process failed where all of them were asked for a result; every process raises the same, none waits for another."""


class RanksDisagreeError(RuntimeError):
    """Processes that should hold the same hold different things; every process raises it, with the same message."""


class MemoryFullError(RuntimeError):
    """A device's memory does not hold what the configuration asks for; names the setting that decides it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def no_such_name(owner: str, name: str, names: Iterable[str]) -> str:
    """`owner has no 'name'. Did you mean 'nama'?`, and what it has."""
    listing = textwrap.fill(f"It has: {', '.join(names)}.", width=118, initial_indent="  ", subsequent_indent="  ")
    return f"{owner} has no {name!r}.{did_you_mean(name, names)}\n{listing}"
