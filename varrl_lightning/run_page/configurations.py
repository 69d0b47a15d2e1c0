"""Where the configurations of runs differ, from each other and from the nearest one that comes with the package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from varrl_lightning.configuration.files import configs_folder
from varrl_lightning.configuration.shipped import PARSED, RUN, STEPS, Shipped, shipped

MEANING = {
    RUN: "The configuration ran from start to end, and its result is in the repository.",
    STEPS: "A test trains the recipe for two updates on tiny random weights. No published weights were at hand.",
    PARSED: "A test reads the file, and the library accepts every key. Nobody has seen it train.",
}
"""What each level of `varrl list configs` means."""
NAMES = ("trainer.default_root_dir", "ckpt_path")
"""Keys that differ between any two runs, and say nothing about what was trained."""
ABSENT = "—"


@dataclass(frozen=True)
class Nearest:
    """The shipped configuration that a run's is closest to.

    Args:
        name: of its file.
        seen: how far it has been seen.
        differences: dotted key, its value and the run's, of keys that the file states and the run has otherwise.
    """

    name: str
    seen: str
    differences: list[tuple[str, str, str]]

    @property
    def same_recipe(self) -> bool:
        """Whether the run trained what the file says: no key of `model` or `data` differs."""
        return not any(key.startswith(("model.", "data.")) for key, *_ in self.differences)


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values of a configuration, values as YAML on one line; a list of plain values is one value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list) and any(isinstance(item, Mapping | list) for item in tree):
        for index, value in enumerate(tree):
            yield from flat(value, f"{prefix}.{index}")
    elif prefix:
        style = '"' if isinstance(tree, str) and "\n" in tree else None
        text = yaml.safe_dump(tree, default_flow_style=True, default_style=style, width=1 << 16, allow_unicode=True)
        yield prefix, text.split("\n...")[0].strip()


def differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The keys that not all configurations have alike, each with its value in every one; `ABSENT` where there is none."""
    values = [dict(flat(config)) for config in configs]
    keys = dict.fromkeys(key for value in values for key in value)
    rows = [(key, [value.get(key, ABSENT) for value in values]) for key in keys if key not in NAMES]
    return [(key, cells) for key, cells in rows if len(set(cells)) > 1]


def without_seed(config: Mapping[str, Any]) -> dict[str, str]:
    """What runs must have in common to be repetitions of each other: all but the seed and the folder."""
    return {key: value for key, value in flat(config) if key not in ("seed_everything", *NAMES)}


def nearest(config: Mapping[str, Any]) -> Nearest | None:
    """The shipped configuration of the same policy from which the fewest stated keys differ; None where there is none.

    Keys that the file leaves out have defaults, which the run's configuration states; they count as no difference.
    """
    policy = _policy(config)
    found = []
    for known, tree in _shipped_trees():
        if policy is not None and _policy(tree) == policy:
            found.append(Nearest(known.name, known.seen, _stated(tree, config)))
    return min(found, key=lambda near: len(near.differences), default=None)


@cache
def _shipped_trees() -> list[tuple[Shipped, Mapping[str, Any]]]:
    trees = [(known, yaml.safe_load((configs_folder() / known.name).read_text(encoding="utf-8"))) for known in shipped()]
    return [(known, tree) for known, tree in trees if isinstance(tree, Mapping)]


def _stated(stated: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    run = dict(flat(config))
    rows = [(key, value, run.get(key, ABSENT)) for key, value in flat(stated) if key not in NAMES]
    return [row for row in rows if not _equal(row[1], row[2])]


def _equal(a: str, b: str) -> bool:
    """Whether two values mean the same: `3.0e-4` and `0.0003` do."""
    try:
        return a == b or float(a) == float(b)
    except ValueError:
        return False


def _policy(config: Mapping[str, Any]) -> Any:
    model = config.get("model")
    policy = model.get("policy") if isinstance(model, Mapping) else None
    return policy.get("class_path") if isinstance(policy, Mapping) else policy
