"""The configuration of a run, as a tree: base, recipe, overrides, and what the comparison decides."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from varrl_lightning.configuration.files import find_config, read_mapping
from varrl_lightning.errors import ConfigError
from varrl_lightning.prompts.files import prompt_path
from varrl_lightning.weights.fingerprint import digest

SCHEDULE = "model.lr_scheduler"
LENGTHS = ("total", "T_max")
"""Arguments of a schedule that are the number of updates of the run."""
DECIDED = {
    "model.optimizer.init_args.lr": "learning rates",
    "data.batch_size": "grid.prompts_per_update",
    "seed_everything": "seeds",
    "data.train": "prompts.train",
    "data.validation": "prompts.validation",
    "data.test": "prompts.test",
    "data.overlap": "the comparison's own check of prompts",
    "trainer.max_steps": "axes",
    f"{SCHEDULE}.init_args.warmup": "warmup",
    **{f"{SCHEDULE}.init_args.{name}": "axes" for name in LENGTHS},
}
"""Keys of a recipe that the comparison sets itself, each with what it follows in the spec."""
SHOWN_ONLY = ("default_root_dir", "max_steps", "val_check_interval", "limit_val_batches", "check_val_every_n_epoch")
"""Keys of a Trainer that change no update of a comparison's run."""
Tree = dict[str, Any]


def leaves(changes: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """The dotted keys of all values in a mapping whose keys may be dotted themselves."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def merged(below: Any, above: Any) -> Any:
    """A tree over another one: mappings key by key, but an object of another class in place of the former; else the upper value."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    if above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return dict(above)
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}


def changed(tree: Mapping[str, Any], key: str, value: Any) -> Tree:
    """The tree with another value at a dotted key; a name on the way is the class that it names."""
    first, dot, rest = key.partition(".")
    if not dot:
        return {**tree, first: merged(tree.get(first), value) if isinstance(value, Mapping) else value}
    below = tree.get(first)
    below = {"class_path": below} if isinstance(below, str) else below
    return {**tree, first: changed(below if isinstance(below, Mapping) else {}, rest, value)}


def recipe_tree(base: str | None, config: str | None, overrides: Mapping[str, Any]) -> Tree:
    """The configuration of a recipe.

    Raises:
        ConfigError: on a file that is missing or is no YAML mapping.
    """
    tree: Tree = {}
    for name in (base, config):
        if name is not None:
            tree = merged(tree, read_mapping(find_config(name), "the keys of a configuration"))
    for key, value in overrides.items():
        tree = changed(tree, key, value)
    return tree


def decided(tree: Mapping[str, Any], values: Mapping[str, Any], updates: int, warmup: int | None) -> Tree:
    """A recipe's configuration with what the comparison decides.

    Args:
        values: by dotted key.
        updates: of the run: the end of its schedule.
        warmup: of its schedule; None leaves the recipe's own.

    Raises:
        ConfigError: where the schedule has no end, or no warm-up, that could be set.
    """
    for key, value in values.items():
        tree = changed(tree, key, value)
    schedule = tree.get("model", {}).get("lr_scheduler")
    given = (schedule.get("init_args") or {}) if isinstance(schedule, Mapping) else {}
    length = next((name for name in LENGTHS if name in given), None)
    if warmup is not None and (length is None or "warmup" not in given):
        raise ConfigError(
            f"warmup is {warmup}, but {SCHEDULE} has no `warmup` and `total` to set: {schedule!r}. Give all recipes "
            "varrl_lightning.learning_rates.WarmupCosine, for example in `base`, or leave `warmup` out."
        )
    own = {length: updates} if length is not None else {}
    own |= {} if warmup is None else {"warmup": warmup}
    for name, value in own.items():
        tree = changed(tree, f"{SCHEDULE}.init_args.{name}", value)
    return dict(tree)


def training_digest(tree: Mapping[str, Any]) -> str:
    """A digest of all that a recipe's updates depend on besides point, seed, length and prompts."""
    for key in DECIDED:
        if key != f"{SCHEDULE}.init_args.warmup":
            tree = _without(tree, key.split("."))
    for key in SHOWN_ONLY:
        tree = _without(tree, ["trainer", key])
    return digest_of({**tree, "model": _as_then(tree.get("model") or {})})


def _as_then(model: Mapping[str, Any]) -> Tree:
    """A model's arguments with a name that has changed since the first results, so that these are still known."""
    return {"judge" if name == "evaluate_with" else name: value for name, value in model.items()}


def _without(tree: Mapping[str, Any], keys: list[str]) -> Tree:
    first, *rest = keys
    if first not in tree:
        return dict(tree)
    if not rest:
        return {key: value for key, value in tree.items() if key != first}
    below = tree[first]
    return {**tree, first: _without(below, rest) if isinstance(below, Mapping) else below}


def digest_of(value: Any) -> str:
    """Eight hexadecimal digits that are equal for equal JSON values."""
    return digest([json.dumps(value, sort_keys=True, default=str)])[:8]


def file_digest(path: str) -> str:
    """Eight hexadecimal digits that are equal for equal content of a prompt file, or of all files of a folder.

    Raises:
        ConfigError: when there is no such file.
    """
    place = prompt_path(path)
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    try:
        return digest([file.read_bytes().hex() for file in files])[:8]
    except OSError as error:
        raise ConfigError(f"cannot read the prompt file {path}: {error.strerror or error}") from error
