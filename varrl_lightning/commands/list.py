"""`varrl list`: what is installed, one line each: rewards, mask sources, model families and configurations."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version

from varrl_lightning.configuration.docstrings import Definition, UnreadableSourceError, definition, first_sentence, imported_from
from varrl_lightning.configuration.shipped import shipped
from varrl_lightning.errors import FAILED, USE, PluginError, did_you_mean
from varrl_lightning.registry import MASK_SOURCES, REWARDS, Registration, load, registered

PACKAGE = "varrl_lightning"
NO_DOCSTRING = "(no docstring)"
Row = tuple[str, ...]


def rewards() -> Iterator[Row]:
    """Rewards that distributions register: name, distribution, first sentence."""
    return _plugins(REWARDS)


def masks() -> Iterator[Row]:
    """Mask sources, in the same form."""
    return _plugins(MASK_SOURCES)


def policies() -> Iterator[Row]:
    """Class paths that build a policy: those of the families, and the adapter around any of them."""
    owner = f"{PACKAGE} {version('varrl-lightning')}"
    for name, module in sorted(imported_from(PACKAGE, f"{PACKAGE}.policies").items()):
        for path in _builders(name, definition(module, name)):
            # What a family is, its class says; how else it may begin, the method does.
            described = name if path.endswith(".from_pretrained") else path
            yield f"{PACKAGE}.{path}", owner, _documented(definition(module, described))


def configs() -> Iterator[Row]:
    """Shipped configurations: name, how far it was seen, what it is for."""
    return ((x.name, x.seen, x.about) for x in shipped())


KINDS: dict[str, tuple[Callable[[], Iterable[Row]], str]] = {
    "rewards": (rewards, "name them as model.reward"),
    "masks": (masks, "name them as model.mask_source"),
    "policies": (policies, "name them as model.policy.class_path"),
    "configs": (configs, "found from any folder; the second column says how far each has been seen"),
}


def main(arguments: Sequence[str]) -> int:
    """List one kind, or all; 2 for an unknown kind."""
    parser = argparse.ArgumentParser(prog="varrl list", description=__doc__, epilog=f"kinds: {', '.join(KINDS)}")
    parser.add_argument("kind", nargs="?", metavar="KIND", help="which of them; without it, all")
    kind = parser.parse_args(arguments).kind
    if kind is not None and kind not in KINDS:
        print(f"varrl list: no kind {kind!r}.{did_you_mean(kind, KINDS)} There are: {', '.join(KINDS)}.", file=sys.stderr)
        return USE
    try:
        print("\n\n".join(_shown(name) for name in ([kind] if kind else KINDS)))
    except PluginError as error:  # no group can be read
        print(f"varrl list: {error}", file=sys.stderr)
        return FAILED
    return 0


def _shown(kind: str) -> str:
    find, use = KINDS[kind]
    rows = list(find())
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = (f"  {name:<{widths[0]}}  {origin:<{widths[1]}}  {text}" for name, origin, text in rows)
    return "\n".join((f"{kind} ({use})", *lines))


def _plugins(group: str) -> Iterator[Row]:
    """All registrations of a group; a broken one has its error in place of the sentence."""
    for name, registrations in sorted(registered(group).items()):
        for registration in registrations:
            others = [x.distribution for x in registrations if x is not registration]
            twice = f"ERROR: {' and '.join(others)} has this name too: uninstall one, or give its class_path" if others else ""
            yield name, registration.distribution, twice or _plugin(group, name, registration)


def _plugin(group: str, name: str, registration: Registration) -> str:
    module, _, attribute = registration.target.partition(":")
    try:
        if attribute and (found := definition(module.strip(), attribute.split("[")[0].strip())) is not None:
            return _documented(found)
        return first_sentence(load(group, name).__doc__) or NO_DOCSTRING
    except (UnreadableSourceError, PluginError) as error:
        return f"ERROR: {' '.join(str(error).split())}"


def _builders(name: str, found: Definition | None) -> list[str]:
    """A function, or the class methods `from_...` of a class."""
    if not isinstance(found, ast.ClassDef):
        return [name]
    return [f"{name}.{x.name}" for x in found.body if isinstance(x, ast.FunctionDef) and x.name.startswith("from_")]


def _documented(found: Definition | None) -> str:
    return (first_sentence(ast.get_docstring(found)) if found else "") or NO_DOCSTRING
