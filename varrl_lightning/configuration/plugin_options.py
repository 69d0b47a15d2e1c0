"""Options that change a part of a plugin's spec: `--model.reward.init_args.lam 2` over a configuration.

A reward, a mask source and `evaluate_with` are one value each, of several forms; the parser cannot look inside. So these options
are taken off the command line, applied to the value that the rest of the command line gives, and handed over as one value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from varrl_lightning.configuration.judge_specs import AUTOMATIC, judge_specs
from varrl_lightning.errors import ConfigError, SpecError, listed

PLUGINS = ("model.reward", "model.mask_source", "model.evaluate_with")
"""The arguments that are plugins, by their dotted names."""
SEVERAL = ("model.reward",)
"""Those that may be several at once, each with a name and a weight."""
NAMED = ("model.evaluate_with",)
"""Those that may be several at once, each with a name."""
SPEC_KEYS = ("class_path", "init_args")


@dataclass(frozen=True)
class PluginOption:
    """One option that changes a part of a plugin.

    Args:
        plugin: which argument: one of `PLUGINS`.
        keys: the path below it.
        value: the new value, read as YAML.
    """

    plugin: str
    keys: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return ".".join(("--" + self.plugin, *self.keys))


def split_plugin_options(arguments: Sequence[str]) -> tuple[list[str], list[PluginOption]]:
    """The arguments without the options that change a part of a plugin, and these options in order.

    An option that gives a whole plugin takes the place of the configuration's.

    Raises:
        ConfigError: for an option without a value, or with a value that is not YAML.
    """
    rest: list[str] = []
    options: list[PluginOption] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        plugin = next((p for p in PLUGINS if name.startswith(f"--{p}.")), None)
        if name.removeprefix("--") in PLUGINS:
            rest += [replacing(name), argument]
            continue
        if plugin is None or "help" in (name.rpartition(".")[2], name.removeprefix(f"--{plugin}.")):
            rest.append(argument)
            continue
        if not equals:
            following = next(remaining, None)
            if following is None or following.startswith("--"):
                raise ConfigError(f"{name} needs a value, as in {name} 2")
            value = following
        try:
            options.append(PluginOption(plugin, tuple(name.removeprefix(f"--{plugin}.").split(".")), yaml.safe_load(value)))
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}: {value!r} is not a value in YAML: {error}") from error
    return rest, options


def changed_spec(spec: Any, option: PluginOption) -> Any:
    """The spec of a plugin after one option.

    `init_args.X` is an argument of the plugin. `NAME` is the weight of the reward of that name, or in `evaluate_with` the reward
    itself; it joins the others if it is not among them. `NAME.init_args.X` is an argument of that reward.

    Raises:
        ConfigError: when the option does not say to which of several rewards it goes, or means nothing in this spec.
    """
    first, *below = option.keys
    if option.plugin in NAMED and (spec == AUTOMATIC or isinstance(spec, list) or first not in SPEC_KEYS):
        return _with_judge(spec, first, below, option)
    if isinstance(spec, Mapping) and "class_path" not in spec and first in SPEC_KEYS:
        names = ", ".join(spec)
        raise ConfigError(f"{option} does not say of which reward: there are {names}. Write --{option.plugin}.NAME.{first}...")
    if first == "class_path" and not below:
        return option.value
    if first == "init_args":
        return _with_arguments(spec, below, option)
    if option.plugin not in SEVERAL:
        raise ConfigError(f"{option}: below {option.plugin} there are {' and '.join(SPEC_KEYS)}")
    return _with_term(_terms(spec), first, below, option)


def replacing(option: str) -> str:
    """The argument that has a parser forget the former value of an option.

    Without it jsonargparse merges two specs of an option of type Any, and fails with an AttributeError of its own.
    """
    return f"{option}=null"


def whole_spec(plugin: str, spec: Any) -> list[str]:
    """The arguments that give a whole spec in place of any other."""
    return [replacing(f"--{plugin}"), f"--{plugin}={json.dumps(spec)}"]


def _with_judge(spec: Any, name: str, keys: Sequence[str], option: PluginOption) -> dict[str, Any]:
    """`evaluate_with` as a mapping by name, in which one reward is another or has another argument."""
    if spec == AUTOMATIC:
        raise ConfigError(
            f"{option}: {option.plugin} is auto, which names no reward. Give a whole one: --{option.plugin} tesseract"
        )
    try:
        judges = judge_specs(spec)
    except SpecError as error:
        raise ConfigError(str(error)) from error
    if name in SPEC_KEYS:
        raise ConfigError(
            f"{option} does not say of which reward: there are {', '.join(judges)}. Write --{option.plugin}.NAME.{name}..."
        )
    if not keys:
        return {**judges, name: option.value}
    if name not in judges:
        raise ConfigError(f"{option}: {option.plugin} has no reward named {name!r}, only {listed(list(judges)) or 'none'}")
    if keys[0] not in SPEC_KEYS:
        raise ConfigError(f"{option}: below {option.plugin}.{name} there are {' and '.join(SPEC_KEYS)}")
    return {**judges, name: changed_spec(judges[name], PluginOption(option.plugin, tuple(keys), option.value))}


def _with_arguments(spec: Any, keys: Sequence[str], option: PluginOption) -> dict[str, Any]:
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{option}: there is no {option.plugin} that could take an argument, got {spec!r}")
    arguments = spec.get("init_args") or {}
    return {**spec, "init_args": _set(arguments, keys, option) if keys else option.value}


def _set(tree: Any, keys: Sequence[str], option: PluginOption) -> dict[str, Any]:
    """A copy of nested mappings with one value set."""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{option}: {keys[0]!r} cannot be set in {tree!r}, which is not a mapping")
    value = option.value if len(keys) == 1 else _set(tree.get(keys[0]) or {}, keys[1:], option)
    return {**tree, keys[0]: value}


def _terms(spec: Any) -> dict[str, Any]:
    """Several rewards by name; a single one is named as in the log and has the weight 1."""
    if isinstance(spec, str):
        return {spec.rpartition(".")[2]: 1.0 if "." not in spec else {"reward": spec, "weight": 1.0}}
    if "class_path" in spec:
        return {str(spec["class_path"]).rpartition(".")[2]: {"reward": dict(spec), "weight": 1.0}}
    return dict(spec)


def _with_term(terms: dict[str, Any], name: str, keys: Sequence[str], option: PluginOption) -> dict[str, Any]:
    entry = terms.get(name)
    if not keys:
        weight = entry if option.value is None else option.value
        changed = {**entry, "weight": weight} if isinstance(entry, Mapping) and not isinstance(weight, Mapping) else weight
        return {**terms, name: changed}
    entry = dict(entry) if isinstance(entry, Mapping) else {"reward": name, "weight": 1.0 if entry is None else entry}
    if keys[0] == "init_args":
        changed = {**entry, "reward": _with_arguments(entry.get("reward", name), keys[1:], option)}
    elif keys[0] == "reward" and len(keys) > 1:
        changed = {
            **entry,
            "reward": changed_spec(entry.get("reward", name), PluginOption(option.plugin, tuple(keys[1:]), option.value)),
        }
    elif len(keys) == 1 and keys[0] in ("weight", "reward"):
        changed = {**entry, keys[0]: option.value}
    else:
        raise ConfigError(f"{option}: a reward among several takes reward, weight and init_args")
    return {**terms, name: changed}
