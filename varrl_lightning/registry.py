"""Plugins by name: rewards and mask sources that installed distributions register as entry points."""

from __future__ import annotations

import argparse
import configparser
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, overload

from entrypoints import EntryPoint, iter_files_distros

from varrl_lightning.configuration.class_path import checked_arguments, import_class, is_spec
from varrl_lightning.errors import (
    BrokenPluginError,
    DuplicatePluginError,
    InitArgsError,
    PluginError,
    PluginNotFoundError,
    did_you_mean,
)

if TYPE_CHECKING:
    from varrl_lightning.mask_sources.base import MaskSource
    from varrl_lightning.rewards.base import Reward

REWARDS: Final = "varrl_lightning.rewards"
MASK_SOURCES: Final = "varrl_lightning.mask_sources"
CALLED_WITH = {REWARDS: "(images, prompts)", MASK_SOURCES: "(rollout, scores, policy)"}
DEFAULTS = {REWARDS: "varrl_lightning.rewards.base.BaseReward", MASK_SOURCES: "varrl_lightning.mask_sources.base.BaseMaskSource"}
"""What holds the optional members of each kind of plugin; named, not imported, since its module imports this one."""


class Registration(NamedTuple):
    """A plugin as a distribution registers it.

    Args:
        distribution: name and version, such as `varrl_brightness 0.1.0`.
        target: `module:attribute`.
    """

    distribution: str
    target: str


def registered(group: str) -> dict[str, list[Registration]]:
    """All registrations of a group by name, also several of one name; nothing is imported.

    Raises:
        BrokenPluginError: when an entry_points.txt is malformed.
    """
    return {name: [Registration(*found) for found in registrations.values()] for name, registrations in _scan(group).items()}


def _scan(group: str) -> dict[str, dict[str, tuple[str, str]]]:
    """Every registration in a group: name -> normalised distribution name -> ("name version", "module:attribute").

    An editable install beside a wheel's dist-info lists one distribution twice; the first on `sys.path` counts.
    """
    registrations: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
    try:
        for config, distribution in iter_files_distros(repeated_distro="all"):  # type: ignore[no-untyped-call]
            if group not in config:
                continue
            key = re.sub(r"[-_.]+", "-", distribution.name).lower()
            label = f"{distribution.name} {distribution.version or ''}".strip()
            for name, target in config[group].items():
                registrations[name].setdefault(key, (label, target))
    except configparser.Error as error:
        raise BrokenPluginError(f"an entry_points.txt is malformed: {error}. Reinstall that distribution.") from error
    return registrations


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
    registrations = _scan(group)
    if name not in registrations:
        raise PluginNotFoundError(
            f"no {_kind(group)} named {name!r}.{did_you_mean(name, registrations)}\n"
            f"Installed: {', '.join(sorted(registrations)) or 'none; install varrl-lightning itself with pip'}.\n"
            f"A class in a file of yours is given by its class path: module.Class. To give it a name, register it under "
            f"[project.entry-points.\"{group}\"] (docs/rewards.md, 'Share a reward as a plugin')."
        )
    label, target = _only(group, name, registrations[name])
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


@overload
def build(group: Literal["varrl_lightning.rewards"], spec: Any, /) -> Reward: ...
@overload
def build(group: Literal["varrl_lightning.mask_sources"], spec: Any, /) -> MaskSource: ...
def build(group: str, spec: Any, /) -> Any:
    """Build what a config names; an object is returned as it is. The result has all members of its protocol.

    A spec is a plugin's name, `"package.module.Class"`, a class, or `{"class_path": <one of these>, "init_args": {}}`;
    an argument that is itself a mapping with a `class_path` is built first.

    Raises:
        PluginError: see `load`, `import_class` and `checked_arguments`.
        TypeError: when the result cannot be called.
    """
    if (
        type(spec).__name__ == "NestedArg"
    ):  # how jsonargparse hands over an option of a plain spec, `--model.reward.init_args.lam 2`
        kind = _kind(group).replace(" ", "_")
        raise PluginError(
            f"model.{kind}.{spec.key} cannot be given alone: a {_kind(group)} is one value. Give all of it, as in "
            f"--model.{kind} '{{class_path: ..., init_args: {{...}}}}', or change the configuration file"
        )
    plugin = _construct(group, spec)
    if not callable(plugin):
        raise TypeError(f"a {_kind(group)} is called with {CALLED_WITH[group]}, got {spec!r}, which is not callable")
    return _complete(group, plugin)


def check(group: str, spec: Any, /) -> None:
    """Find the class that a config names and check its arguments, without building it: that may take gigabytes.

    Raises:
        PluginError: see `build`.
    """
    cls, arguments = named_class(group, spec)
    for name, value in arguments.items():
        if _is_reward(cls, name):
            check(REWARDS, value)
        elif is_spec(value):
            check(_group_of(group, value), value)


def named_class(group: str, spec: Any, /) -> tuple[Any, Mapping[str, Any]]:
    """The class that a config names and its checked arguments, without building it; of an object, itself and none.

    Raises:
        PluginError: see `build`.
    """
    spec = _as_mapping(spec)
    return _resolve(group, spec) if isinstance(spec, (str, type, Mapping)) else (spec, {})


def _construct(group: str, spec: Any) -> Any:
    spec = _as_mapping(spec)
    if not isinstance(spec, (str, type, Mapping)):
        return spec
    cls, arguments = _resolve(group, spec)
    return cls(**{key: _nested(REWARDS if _is_reward(cls, key) else group, value) for key, value in arguments.items()})


def _is_reward(cls: Any, argument: str) -> bool:
    """Whether a plugin says that this argument of it is itself a reward."""
    return argument in getattr(cls, "takes_rewards", ())


def _resolve(group: str, spec: str | type | Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class and the checked arguments of a spec; specs among the arguments are not built yet."""
    if not isinstance(spec, Mapping):
        spec = {"class_path": spec}
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
    return cls, checked_arguments(cls, path, {key: _as_mapping(value) for key, value in init_args.items()})


def _as_mapping(value: Any) -> Any:
    """jsonargparse hands an untyped mapping over as a Namespace."""
    return vars(value) if isinstance(value, argparse.Namespace) else value


def _nested(group: str, value: Any) -> Any:
    return _construct(_group_of(group, value), value) if is_spec(value) else value


def _group_of(group: str, spec: Mapping[str, Any]) -> str:
    """Where the name in a nested spec is registered: a mask source may take a reward."""
    return next((g for g in (group, *DEFAULTS) if spec["class_path"] in _scan(g)), group)


def _complete(group: str, plugin: Any) -> Any:
    """A plugin with all members of its kind: those that it lacks get their defaults."""
    defaults = import_class(DEFAULTS[group])()
    members = {name: getattr(defaults, name) for name in dir(defaults) if not name.startswith("_")}
    missing = [name for name in members if not hasattr(plugin, name)]
    try:
        for name in missing:
            setattr(plugin, name, members[name])
    except (AttributeError, TypeError):
        return StandIn(plugin, {name: getattr(plugin, name, default) for name, default in members.items()})
    return plugin


class StandIn:
    """Stands in for a plugin that takes no attributes: one with `__slots__`, a frozen dataclass, a method or a builtin function.

    Args:
        plugin: what is called.
        members: the members of its kind.
    """

    def __init__(self, plugin: Any, members: Mapping[str, Any]) -> None:
        vars(self).update(members)
        self.plugin = plugin

    def __call__(self, *args: Any) -> Any:
        """The plugin's answer."""
        return self.plugin(*args)


def name_of(plugin: object) -> str:
    """The name of a plugin's class."""
    return type(plugin.plugin if isinstance(plugin, StandIn) else plugin).__name__
