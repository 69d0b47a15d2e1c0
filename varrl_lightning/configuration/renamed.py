"""Names of earlier versions and those that took their place, for configurations, checkpoints and imports of then."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "varrl_lightning"
ARGUMENTS = {
    "mask_propagation": "mask.propagation",
    "mask_missing": "mask.missing",
    "mask_outside": "mask.outside",
    "mask_dilation": "mask.dilation",
    "mask_threshold": "mask.threshold",
    "kl_estimator": "kl.estimator",
    "kl_old_coef": "kl.old_coef",
    "kl_mask": "kl.masked",
    "advantage_scale": "normalise.advantages",
    "normaliser": "normalise.tokens",
    "normaliser_constant": "normalise.constant",
    "max_bad_steps": "guards.max_bad_steps",
    "agree_every_n_steps": "guards.check_ranks_every_n_steps",
    "judge": "evaluate_with",
}
"""Arguments of VARGRPO: of an earlier version, and of today."""
VERSIONS = {"judge": "0.2"}
"""The last version that had an argument; 0.1 for all others."""
VALUES: dict[str, dict[Any, Any]] = {"kl_mask": {"unmasked": False, "masked": True}}
"""Arguments whose values have other names too."""
MODULES = {
    "class_path": "configuration.class_path",
    "specs": "configuration.specs",
    "config_files": "configuration.files",
    "config_errors": "configuration.explain",
    "hub": "weights.hub",
    "weight_files": "weights.files",
    "layout": "weights.sizes",
    "batches": "prompts.batches",
    "prompt_sets": "prompts.sets",
    "text_prompts": "prompts.generate",
    "benchmarks": "prompts.benchmarks",
    "algorithms.agreement": "algorithms.gradient_cosine",
    "lora": "policies.lora",
    "averaging": "policies.averaging",
    "memory.published": "policies.published",
    "serving_protocol": "rewards.http_request",
    "serving_answers": "rewards.http_answer",
    "rollout": "grpo.rollout",
    "credit": "grpo.credit",
    "objective": "grpo.objective",
    "diagnostics": "grpo.diagnostics",
    "updating": "training.updater",
    "evaluating": "evaluation.evaluator",
    "saving": "checkpoints.saving",
    "checkpointing": "checkpoints.checking",
    "resuming": "checkpoints.run_state",
    "guest": "training.trainer_checks",
    "variants": "gradient_agreement.variants",
    "rendering": "pretraining.rendering",
    "word_pictures": "pretraining.pictures",
    "serving_api": "serving.api",
    "serving_gate": "serving.gate",
    "cli": "commands.cli",
    "doctor": "commands.doctor",
    "checks": "commands.doctor_checks",
    "memory_report": "commands.doctor_memory",
    "agreement": "commands.agreement",
    "export": "commands.export",
    "report": "commands.report",
    "benchmark_report": "commands.benchmark_report",
    "arithmetic": "commands.cycle_costs",
    "guard": "commands.user_errors",
    "strategies.agreement": "strategies.consistency",
    "strategies.folders": "strategies.sharded_checkpoints",
    "strategies.zero_folders": "strategies.zero_checkpoints",
    "strategies.reading": "strategies.read_checkpoint",
    "strategies.writing": "strategies.write_checkpoint",
    "callbacks.agreement": "callbacks.gradient_agreement",
    "callbacks.clock": "callbacks.summary",
    "callbacks.prompts": "callbacks.evaluation_prompts",
    "memory.choice": "memory.micro_batch",
    "prediction": "figures.predictions",
}
"""Modules of the package: of 0.1, and of today."""
RUNNABLE = ("prompt_sets", "text_prompts")
"""Those that `python -m` still runs by their names of 0.1."""


def said_of(name: str, owner: str = "") -> str:
    """`judge of version 0.2 is now evaluate_with`, for the old name of an argument.

    Args:
        owner: what stands before both names, such as `model.`.
    """
    return f"{owner}{name} of version {VERSIONS.get(name, '0.1')} is now {owner}{ARGUMENTS[name]}"


def renamed_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of VARGRPO as a checkpoint of an earlier version holds them, under the names of today; today's stay as they are."""
    renamed: dict[str, Any] = {}
    for name, value in arguments.items():
        group, _, field = ARGUMENTS.get(name, name).partition(".")
        if field:
            renamed.setdefault(group, {})[field] = _renamed_value(name, value)
        else:
            renamed[group] = _renamed_paths(value)
    return renamed


def _renamed_value(name: str, value: Any) -> Any:
    return VALUES[name].get(value, value) if name in VALUES else value


def renamed_path(path: str) -> str:
    """A dotted path into this package as of today; any other as it is."""
    package, _, rest = path.partition(".")
    parts = rest.split(".")
    for depth in (2, 1):
        moved = MODULES.get(".".join(parts[:depth]))
        if package == PACKAGE and moved:
            return ".".join((PACKAGE, moved, *parts[depth:]))
    return path


def changed_lines(configuration: Any) -> list[str]:
    """Changes that a configuration of an earlier version needs, one line each: `model.mask_dilation: 8 -> model.mask.dilation: 8`.

    Args:
        configuration: a configuration file's tree.
    """
    model = configuration.get("model") if isinstance(configuration, Mapping) else None
    values = {name: value for name, value in model.items() if name in ARGUMENTS} if isinstance(model, Mapping) else {}
    lines = [
        f"model.{name}: {_in_yaml(value)} -> model.{ARGUMENTS[name]}: {_in_yaml(_renamed_value(name, value))}"
        for name, value in values.items()
    ]
    paths = [path for path in _class_paths(configuration) if renamed_path(path) != path]
    return lines + [f"class_path: {path} -> {renamed_path(path)}" for path in paths]


def _in_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _class_paths(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        own = [value["class_path"]] if isinstance(value.get("class_path"), str) else []
        return own + [path for item in value.values() for path in _class_paths(item)]
    return [path for item in value for path in _class_paths(item)] if isinstance(value, list) else []


def _renamed_paths(value: Any) -> Any:
    """Plain values, with each `class_path` in them renamed."""
    if isinstance(value, Mapping):
        return {
            key: renamed_path(item) if key == "class_path" and isinstance(item, str) else _renamed_paths(item)
            for key, item in value.items()
        }
    return [_renamed_paths(item) for item in value] if isinstance(value, list) else value


class RenamedModules(MetaPathFinder):
    """Answers an import by a name of 0.1 with the name of today; `python -m` of the runnable ones runs what took their place."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The new module's file for a runnable name; None for a name that is not of 0.1.

        Raises:
            ModuleNotFoundError: for any other name of 0.1; names today's.
        """
        renamed = renamed_path(fullname)
        if renamed == fullname:
            return None
        if fullname.removeprefix(f"{PACKAGE}.") in RUNNABLE:
            today = importlib.util.find_spec(renamed)
            assert today is not None
            return importlib.util.spec_from_file_location(fullname, today.origin)
        raise ModuleNotFoundError(f"{fullname} of version 0.1 is now {renamed}", name=fullname)


def answer_old_names() -> None:
    """Install the finder behind all others: it is asked for names that nobody else knows."""
    if not any(isinstance(finder, RenamedModules) for finder in sys.meta_path):
        sys.meta_path.append(RenamedModules())
