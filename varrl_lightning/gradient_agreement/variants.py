"""Variants of the method, compared on the same prompts and noise: each is a `GRPO` of one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from varrl_lightning.algorithms.stages import FirstScale, branches_of, full_stage, prefix_stage, spelled_out, suffix_stage
from varrl_lightning.configuration.files import configs_folder
from varrl_lightning.configuration.renamed import ARGUMENTS, said_of
from varrl_lightning.configuration.specs import built
from varrl_lightning.errors import PluginError, did_you_mean, no_such_name
from varrl_lightning.grpo.arguments import built_sampling, built_score
from varrl_lightning.grpo.credit import CreditOptions, MaskOptions, NormaliseOptions
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.objective import KLOptions, Objective
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.registry import MASK_SOURCES, build
from varrl_lightning.types import Sampling, Stage

STAGES = ("prefix", "suffix", "all")
SHAPE = ("m", "group_size", "images_per_prompt", "num_continuations", "suffix_starts", "first_scale")
"""Arguments that define a stage given by its name."""
GROUPS: dict[str, type] = {"mask": MaskOptions, "normalise": NormaliseOptions, "kl": KLOptions, "noise": NoiseOptions}
CREDIT, LOSS = ("eta", "alpha", "combine"), ("kl_coef", "clip_low", "clip_high", "ratio")
KEYS = ("stage", *SHAPE, *CREDIT, *LOSS, *GROUPS, "mask_source", "score", "sampling")
"""Keys of a variant; all but `stage` are arguments of VARGRPO."""


@dataclass(frozen=True)
class StageShape:
    """Arguments of `VARGRPO` that define the stages given by name."""

    m: int | str
    group_size: int | None
    images_per_prompt: int | None
    num_continuations: int
    suffix_starts: int
    first_scale: FirstScale


@dataclass(frozen=True)
class Variant:
    """One way to make a gradient.

    Args:
        name: name of the variant in tables and logs.
        grpo: the variant as a `GRPO` whose cycle is one stage.
    """

    name: str
    grpo: GRPO

    @property
    def stage(self) -> Stage:
        """The one stage of the variant's cycle."""
        return replace(self.grpo.cycle[0], with_drafts=False)  # drafts beside whole images have no gradient


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
    """The package's files of variants, by name."""
    return {path.stem: path for path in sorted((configs_folder() / "variants").glob("*.yaml"))}


def own_stages(grpo: GRPO, kl: bool = False) -> list[Variant]:
    """A variant for each different stage of a cycle, as training computes it.

    Args:
        kl: whether the loss includes the KL.
    """
    if not kl:
        grpo = replace(grpo, objective=replace(grpo.objective, kl_coef=0.0))
    return [Variant(_own_name(grpo, stage), replace(grpo, cycle=(stage,))) for stage in dict.fromkeys(grpo.cycle)]


def _own_name(grpo: GRPO, stage: Stage) -> str:
    alike = [other for other in dict.fromkeys(grpo.cycle) if other.name == stage.name]
    return stage.name if len(alike) == 1 else f"{stage.name} {alike.index(stage) + 1}"


def variants_of(
    policy: VARPolicy, grpo: GRPO, shape: StageShape, described: Mapping[str, Mapping[str, Any]], kl: bool = False
) -> list[Variant]:
    """Variants that differ from a `GRPO` in a stage and some options.

    Args:
        shape: arguments that define the stages given by name.
        described: by name of the variant: `stage` (`prefix`, `suffix`, `all`, or a mapping of the fields of a `Stage`) and any of
            `KEYS`; everything else is as in `grpo`.
        kl: whether the loss includes the KL.

    Raises:
        ValueError: on an unknown key, or a value out of its range; names the variant.
    """
    variants = []
    for name, changes in described.items():
        for key in changes:
            _check_key(name, str(key))
        try:
            stage = _stage(policy, shape, changes)
            varied = replace(_varied(policy, grpo, changes, kl), cycle=(stage,))
            varied.check_policy(policy)
        except (ValueError, TypeError, PluginError) as error:
            raise ValueError(f"the variant {name!r}: {error}") from error
        variants.append(Variant(name, varied))
    return variants


def _check_key(variant: str, key: str) -> None:
    if key in KEYS:
        return
    if key in ARGUMENTS:
        raise ValueError(f"the variant {variant!r}: {said_of(key)}")
    raise ValueError(no_such_name(f"the variant {variant!r}", key, KEYS))


def _stage(policy: VARPolicy, shape: StageShape, changes: Mapping[str, Any]) -> Stage:
    """The stage that a variant describes."""
    asked = changes.get("stage")
    if isinstance(asked, Mapping):
        beside = [key for key in SHAPE if key in changes]
        if beside:
            raise ValueError(
                f"{', '.join(beside)} says nothing beside a stage spelled out: {', '.join(f.name for f in fields(Stage))}"
            )
        return spelled_out([built("stage", Stage, asked)], len(policy.schedule()))[0]
    if asked not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, or a mapping of start, stop, branches, ..., got {asked!r}")
    schedule = policy.schedule()
    if "group_size" in changes or "images_per_prompt" in changes:  # one takes the place of the other
        shape = replace(shape, group_size=None, images_per_prompt=None)
    changed = replace(shape, **{key: changes[key] for key in SHAPE if key in changes})
    T, K = len(schedule), changed.num_continuations
    A = branches_of(changed.group_size, changed.images_per_prompt, max(K, 1) if asked == "prefix" else 1)
    if asked != "prefix" and changes.get("num_continuations", 1) != 1:
        raise ValueError(f"num_continuations is {K}, but stage {asked!r} ends with the last scale, where it is 1")
    if asked == "all":
        return full_stage(T, A, changed.first_scale)
    m = schedule.resolve_m(changed.m)
    if asked == "suffix":
        return suffix_stage(T, m, A, changed.suffix_starts)
    return prefix_stage(T, m, A, K, changed.first_scale)


def _varied(policy: VARPolicy, grpo: GRPO, changes: Mapping[str, Any], kl: bool) -> GRPO:
    """A `GRPO` with the changed options."""
    groups = {key: _group(grpo, key, changes[key]) for key in GROUPS if key in changes}
    sampling = built_sampling(changes["sampling"], policy.default_sampling) if "sampling" in changes else grpo.sampling
    objective: Objective = replace(
        grpo.objective,
        score=built_score(changes.get("score", replace(grpo.objective.score, sampling=Sampling())), sampling),
        **{key: changes[key] for key in LOSS if key in changes},
        **{key: group for key, group in groups.items() if key == "kl"},
    )
    credit: CreditOptions = replace(
        grpo.credit,
        **{key: changes[key] for key in CREDIT if key in changes},
        **{key: group for key, group in groups.items() if key in ("mask", "normalise")},
    )
    if kl and objective.kl_coef > 0 and grpo.objective.kl_coef == 0:
        raise ValueError(f"kl_coef is {objective.kl_coef}, but there is no reference: set kl_coef of the configuration itself too")
    objective = objective if kl else replace(objective, kl_coef=0.0)
    source = build(MASK_SOURCES, changes["mask_source"]) if "mask_source" in changes else grpo.mask_source
    noise: NoiseOptions = groups.get("noise", grpo.noise)
    return replace(grpo, mask_source=source, sampling=sampling, credit=credit, objective=objective, noise=noise)


def _group(grpo: GRPO, key: str, changes: object) -> Any:
    """A group of options, with some of them changed."""
    if not isinstance(changes, Mapping):
        return built(key, GROUPS[key], changes)
    parts = {"mask": grpo.credit.mask, "normalise": grpo.credit.normalise, "kl": grpo.objective.kl, "noise": grpo.noise}
    return built(key, GROUPS[key], {**asdict(parts[key]), **changes})
