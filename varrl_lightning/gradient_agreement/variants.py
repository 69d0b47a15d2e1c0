"""Variants of the method to compare: what each changes in a module, beside the stage that it looks at."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from varrl_lightning.algorithms.stages import full_stage, prefix_stage, suffix_stage
from varrl_lightning.configuration.files import configs_folder
from varrl_lightning.configuration.specs import built
from varrl_lightning.errors import PluginError, did_you_mean, no_such_name
from varrl_lightning.grpo.objective import Objective
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Sampling, Stage

STAGES = ("prefix", "suffix", "all")
SHAPE = ("m", "group_size", "num_continuations", "suffix_starts", "first_scale")
"""Arguments that say what a stage of a name is."""
CREDIT = ("eta", "alpha", "combine", "advantage_scale", "normaliser", "normaliser_constant")
MASKS = ("mask_source", "mask_propagation", "mask_missing", "mask_outside", "mask_dilation", "mask_threshold", "kl_mask")
LOSS = ("kl_coef", "kl_estimator", "clip_low", "clip_high", "ratio", "score", "sampling")
KEYS = ("stage", *SHAPE, *CREDIT, *MASKS, *LOSS)
"""What a variant may say; all but `stage` are arguments of VARGRPO."""


@dataclass(frozen=True)
class Variant:
    """One way to make a gradient.

    Args:
        name: in tables and logs.
        stage: the scales, and how they are drawn.
        module: draws, judges and assigns credit; shares policy and rewards with the module that it varies.
        objective: the loss, with its KL.
    """

    name: str
    stage: Stage
    module: VARGRPO
    objective: Objective


def read_variants(name: str | Path) -> dict[str, dict[str, Any]]:
    """The variants of a YAML file, or of a shipped one of that name: a mapping from each name to what it changes.

    Raises:
        ValueError: when there is no such file, or it holds something else; names it and the shipped ones.
    """
    path = Path(name)
    if not path.is_file():
        shipped = shipped_variants()
        stem = path.stem if path.suffix == ".yaml" else path.name
        if stem not in shipped:
            raise ValueError(
                f"no file of variants {str(name)!r}, neither here nor in the package.{did_you_mean(stem, shipped)} "
                f"In the package: {', '.join(shipped) or 'none'}."
            )
        path = shipped[stem]
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    if not isinstance(held, dict) or not held or not all(isinstance(v, dict) for v in held.values()):
        raise ValueError(f"{path} must map the name of each variant to what it changes, as in 'vanilla: {{stage: all, alpha: 0}}'")
    return {str(key): value for key, value in held.items()}


def shipped_variants() -> dict[str, Path]:
    """Files of variants that come with the package, by name."""
    return {path.stem: path for path in sorted((configs_folder() / "variants").glob("*.yaml"))}


def own_stages(model: VARGRPO, kl: bool = False) -> list[Variant]:
    """Each different stage of a module's cycle, as training does it."""
    changes = {"kl_coef": model.objective.kl_coef if kl else 0.0}
    return [_variant(model, _own_name(model, stage), stage, changes) for stage in dict.fromkeys(model.cycle)]


def _own_name(model: VARGRPO, stage: Stage) -> str:
    alike = [other for other in dict.fromkeys(model.cycle) if other.name == stage.name]
    return stage.name if len(alike) == 1 else f"{stage.name} {alike.index(stage) + 1}"


def variants_of(model: VARGRPO, described: Mapping[str, Mapping[str, Any]], kl: bool = False) -> list[Variant]:
    """What differs from a module in a stage and some of its arguments.

    Args:
        described: by name: `stage` (`prefix`, `suffix`, `all`, or a mapping of the fields of a `Stage`) and any of `KEYS`;
            everything else is the module's own.
        kl: whether the KL belongs to the loss.

    Raises:
        ValueError: on a key or value that cannot be; names the variant.
    """
    found = []
    for name, changes in described.items():
        for key in changes:
            if key not in KEYS:
                raise ValueError(no_such_name(f"the variant {name!r}", str(key), KEYS))
        try:
            coefficient = changes.get("kl_coef", model.objective.kl_coef) if kl else 0.0
            found.append(_variant(model, name, _stage(model, changes), {**changes, "kl_coef": coefficient}))
        except (ValueError, TypeError, PluginError) as error:
            raise ValueError(f"the variant {name!r}: {error}") from error
    return found


def _stage(model: VARGRPO, changes: Mapping[str, Any]) -> Stage:
    """The stage that a variant describes."""
    asked = changes.get("stage")
    if isinstance(asked, Mapping):
        beside = [key for key in SHAPE if key in changes]
        if beside:
            raise ValueError(
                f"{', '.join(beside)} says nothing beside a stage spelled out: {', '.join(f.name for f in fields(Stage))}"
            )
        stage: Stage = built("stage", Stage, asked)
        return stage
    if asked not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, or a mapping of start, stop, branches, ..., got {asked!r}")
    schedule = model.policy.schedule()
    shape = {key: changes.get(key, _own(model, key)) for key in SHAPE}
    T, A, K = len(schedule), shape["group_size"], shape["num_continuations"]
    if asked != "prefix" and changes.get("num_continuations", 1) != 1:
        raise ValueError(f"num_continuations is {K}, but stage {asked!r} ends with the last scale, where it is 1")
    if asked == "all":
        return full_stage(T, A, shape["first_scale"])
    m = schedule.resolve_m(shape["m"])
    if asked == "suffix":
        return suffix_stage(T, m, A, shape["suffix_starts"])
    return prefix_stage(T, m, A, K, shape["first_scale"])


def _own(model: VARGRPO, key: str) -> Any:
    """An argument that the module was built with."""
    return model.hparams.get(key, inspect.signature(VARGRPO).parameters[key].default)


def _variant(model: VARGRPO, name: str, stage: Stage, changes: Mapping[str, Any]) -> Variant:
    kept = {key: _own(model, key) for key in (*CREDIT, *MASKS, *LOSS)}
    # Objects, which hparams do not hold; a score's sampling is the module's, or the variant's.
    kept |= {"mask_source": model.mask_source, "sampling": model.sampling, "score": replace(model.score, sampling=Sampling())}
    kept |= {key: value for key, value in changes.items() if key in kept}
    coefficient = kept.pop("kl_coef")
    if coefficient > 0 and model.reference is None:
        raise ValueError(f"kl_coef is {coefficient}, but there is no reference: set kl_coef of the configuration itself too")
    module = VARGRPO(
        model.policy,
        reward={name: {"reward": term.reward, "weight": term.weight} for name, term in model.rewards.terms.items()},
        stages=[stage],
        judge=None,
        micro_batch_size=model._micro_batch_size,
        images_at_once=model.images_at_once,
        agree_every_n_steps=0,
        **kept,
    )
    # Not the constructor's: its reference would be a copy of the policy as it is by now.
    module._reference = (model.reference if coefficient > 0 else None,)
    return Variant(name, stage, module, replace(module.objective, kl_coef=coefficient))
