"""Turns jsonargparse's errors into one sentence with the closest name and the known names."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Iterable

from varrl_lightning.configuration.renamed import ARGUMENTS, said_of
from varrl_lightning.errors import did_you_mean, no_such_name

_UNRECOGNISED = re.compile(r"unrecognized arguments: --([^\s=]+)")
_LOOSE_WORDS = re.compile(r"unrecognized arguments: (?!-)(.+)")
_NOT_ACCEPTED = re.compile(r"does not accept option '([^']+)'|Option '([^']+)' is not accepted")
_CLASS_PATH = re.compile(r"class_path[= ]'([^']+)'")
_PARSER_KEY = re.compile(r'Parser key "([^"]+)"')
_NOISE = re.compile(r"^\s*(- )?(Does not validate against|Subtypes: |Errors:|Expected a <class .*>$|Given value)|^\s*$")
_TYPE = re.compile(r"Expected an? <class '(?:\w+\.)*(\w+)'>\.?")
_CHOICE = re.compile(r"Expected an? typing\.Literal\[([^\]]*)\]\. Got value: (\S+)")


def explain(message: str, known: Iterable[str]) -> str:
    """Name an unknown key, the closest one and the known ones; other errors only lose their noise.

    Args:
        message: jsonargparse's error message.
        known: every key that the command takes, dotted: `model.alpha`.
    """
    unrecognised = _UNRECOGNISED.search(message)
    if unrecognised:
        return _unknown_key(unrecognised[1], set(known)) or message
    if loose := _LOOSE_WORDS.search(message):
        return f"no option takes {loose[1]!r}. Put a value with spaces in quotes: --prompt 'a sign that says \"OPEN\"'"
    refused = _NOT_ACCEPTED.search(message)
    if refused:
        key = refused[1] or refused[2]
        owner = _PARSER_KEY.search(message)
        classes = _CLASS_PATH.findall(message)
        if classes:
            return _unknown_argument(key, classes[-1], owner[1] if owner else "")
        return _unknown_key(f"{owner[1]}.{key}" if owner else key, set(known)) or message
    if "arguments are required" in message:
        message += "\nGive a configuration: --config configs/quickstart.yaml, or the config.yaml of a run's folder."
    return plain(message)


def plain(message: str) -> str:
    """jsonargparse's message of a value of the wrong type, without its noise and in a user's words."""
    message = "\n".join(line for line in message.splitlines() if not _NOISE.match(line)).strip() or message
    message = _CHOICE.sub(_one_of, message)
    return _TYPE.sub(r"Expected \1.", message)


def _one_of(found: re.Match[str]) -> str:
    names = [name.strip(" '\"") for name in found[1].split(",")]
    return f"Expected one of {', '.join(names)}. Got: {found[2]}.{did_you_mean(found[2], names)}"


def _unknown_key(key: str, known: set[str]) -> str | None:
    """Follow a dotted key down to the first part that does not exist; None when all of it does."""
    parts = key.split(".")
    paths = [k.split(".") for k in sorted(known)]
    for depth, part in enumerate(parts):
        above = parts[:depth]
        names = list(dict.fromkeys(k[depth] for k in paths if k[:depth] == above and len(k) > depth))
        if part not in names:
            owner = ".".join(above) or "the configuration"
            if above == ["model"] and part in ARGUMENTS:
                return said_of(part, "model.")
            elsewhere = sorted(k for k in known if k.endswith(f".{part}"))
            if elsewhere and not above:
                return f"{owner} has no {part!r} at its top level. Did you mean {elsewhere[0]!r}?"
            return no_such_name(owner, part, names)
    return None


def _unknown_argument(name: str, class_path: str, key: str) -> str:
    """Name an unknown argument of a class or function, given by its class_path, and the known ones."""
    target = pydoc.locate(class_path)
    names = [] if target is None else list(inspect.signature(target).parameters)  # type: ignore[arg-type]
    return no_such_name(f"{key}: {class_path}" if key else class_path, name, names)
