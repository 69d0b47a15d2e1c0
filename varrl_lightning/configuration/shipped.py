"""What the shipped configurations are for, and how far each has been seen: read from the comment at their top."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from varrl_lightning.configuration.files import configs_folder
from varrl_lightning.errors import ConfigError

RUN, STEPS, PARSED = "run to its result", "steps on tiny weights of the published layout", "parsed"
LEVELS = (RUN, STEPS, PARSED)
"""How far a configuration has been seen, the furthest first; there are no others."""
_LEVEL = re.compile(r"# Seen: (.+)\.")
_SENTENCE = re.compile(r"(?s).*?(?:\.(?=\s)|:(?=\n)|\Z)")
"""Up to a full stop, or a colon that ends a line, as before a command."""


@dataclass(frozen=True)
class Shipped:
    """A configuration that comes with the package.

    Args:
        name: its path below `configs`, such as `variants/noise.yaml`.
        seen: one of `LEVELS`.
        about: the first sentence of its comment.
    """

    name: str
    seen: str
    about: str


def shipped() -> list[Shipped]:
    """All of them, those of `configs` before those of its folders; nothing but their comments is read."""
    root = configs_folder()
    files = [*sorted(root.glob("*.yaml")), *sorted(root.glob("*/*.yaml"))]
    return [described(path, path.relative_to(root).as_posix()) for path in files]


def described(path: Path, name: str) -> Shipped:
    """What the comment at the top of a configuration says.

    Raises:
        ConfigError: when its first line is no level.
    """
    first, *rest = path.read_text(encoding="utf-8").splitlines() or [""]
    level = _LEVEL.fullmatch(first)
    if level is None or level[1] not in LEVELS:
        forms = ", ".join(repr(f"# Seen: {known}.") for known in LEVELS)
        raise ConfigError(f"{name}: the first line says how far a configuration has been seen: one of {forms}; got {first!r}")
    comment = []
    for line in rest:
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    sentence = _SENTENCE.match("\n".join(comment))
    return Shipped(name, level[1], " ".join(sentence[0].split()).rstrip(":.") if sentence else "")
