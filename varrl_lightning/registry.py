"""Plugins by name: rewards and mask sources that installed distributions register as entry points."""

from __future__ import annotations

import argparse
import configparser
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from entrypoints import EntryPoint, iter_files_distros

from varrl_lightning.configuration.class_path import import_class, instantiate
from varrl_lightning.errors import (
    BrokenPluginError,
    DuplicatePluginError,
    InitArgsError,
    PluginError,
    PluginNotFoundError,
    did_you_mean,
)

REWARDS = "varrl_lightning.rewards"
MASK_SOURCES = "varrl_lightning.mask_sources"


def _scan(group: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Every registration in a group: name -> normalised distribution name -> ("name version", "module:attribute").

    An editable install beside a wheel's dist-info lists one distribution twice; the first on `sys.path` counts.
    """
    found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    try:
        for config, distribution in iter_files_distros(repeated_distro="all"):  # type: ignore[no-untyped-call]
            if group not in config:
                continue
            key = re.sub(r"[-_.]+", "-", distribution.name).lower()
            label = f"{distribution.name} {distribution.version or ''}".strip()
            for name, target in config[group].items():
                found[name].setdefault(key, (label, target))
    except configparser.Error as error:
        raise BrokenPluginError(f"an entry_points.txt is malformed: {error}. Reinstall that distribution.") from error
    return found


def _kind(group: str) -> str:
    return group.rpartition(".")[2].removesuffix("s").replace("_", " ")


def _only(group: str, name: str, registrations: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    if len(registrations) > 1:
        owners = " and ".join(f"{label} ({target})" for label, target in registrations.values())
        raise DuplicatePluginError(
            f"the {_kind(group)} {name!r} is registered more than once, by {owners}. "
            "Uninstall one of them, or give its class_path instead of the name."
        )
    return next(iter(registrations.values()))


def available(group: str) -> dict[str, str]:
    """The installed plugins of a group: name to distribution, in alphabetical order; nothing is imported.

    Raises:
        DuplicatePluginError: when two distributions register one name.
    """
    return {name: _only(group, name, registrations)[0] for name, registrations in sorted(_scan(group).items())}


def load(group: str, name: str) -> Any:
    """Import the class that is registered under a name.

    Raises:
        PluginNotFoundError: lists what is installed and the closest name.
        DuplicatePluginError: names both distributions.
        BrokenPluginError: names the distribution and what went wrong on import.
    """
    found = _scan(group)
    if name not in found:
        raise PluginNotFoundError(
            f"no {_kind(group)} named {name!r}.{did_you_mean(name, found)}\n"
            f"Installed: {', '.join(sorted(found)) or 'none; install varrl-lightning itself with pip'}.\n"
            f"Register one under [project.entry-points.\"{group}\"] (README, 'Write a reward')."
        )
    label, target = _only(group, name, found[name])
    plugin = f"the {_kind(group)} {name!r} = {target!r} of the distribution {label}"
    try:
        loaded = EntryPoint.from_string(target, name).load()  # type: ignore[no-untyped-call]
    except Exception as error:  # a plugin's module may raise anything when imported
        raise BrokenPluginError(
            f"{plugin} cannot be imported: {type(error).__name__}: {error}. Repair or uninstall {label.split()[0]}."
        ) from error
    if not callable(loaded):
        raise BrokenPluginError(f"{plugin} is a {type(loaded).__name__}; expected a class.")
    return loaded


def build(group: str, spec: Any, /) -> Any:
    """Build what a config names; an object that is built already is returned as it is.

    A spec is a plugin's name, `"package.module.Class"`, a class, or `{"class_path": <one of these>, "init_args": {}}`;
    an argument that is itself a mapping with a `class_path` is built first.

    Raises:
        PluginError: see `load` and `import_class`; on a wrong `init_args` key it lists the right ones.
    """
    spec = _as_mapping(spec)
    if isinstance(spec, (str, type)):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping):
        return spec
    path = spec.get("class_path")
    if set(spec) - {"class_path", "init_args"} or not path or not isinstance(path, (str, type)):
        raise PluginError(
            f"a {_kind(group)} is a name, a class path, or a mapping with class_path and init_args, got {dict(spec)!r}"
        )
    init_args = _as_mapping(spec.get("init_args") or {})
    if not isinstance(init_args, Mapping):
        raise InitArgsError(f"the init_args of {path!r} must be a mapping of names to values, got {init_args!r}")
    if isinstance(path, type):
        cls, path = path, path.__name__
    else:
        cls = import_class(path) if "." in path and path not in _scan(group) else load(group, path)
    return instantiate(cls, path, {key: _nested(group, value) for key, value in init_args.items()})


def _as_mapping(value: Any) -> Any:
    """jsonargparse hands an untyped mapping over as a Namespace."""
    return vars(value) if isinstance(value, argparse.Namespace) else value


def _nested(group: str, value: Any) -> Any:
    value = _as_mapping(value)
    return build(group, value) if isinstance(value, Mapping) and "class_path" in value else value
