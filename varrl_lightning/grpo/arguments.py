"""Builds the parts of a `GRPO` from arguments of `VARGRPO`, which are objects or plain specs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from varrl_lightning.algorithms.losses import Ratio
from varrl_lightning.algorithms.stages import FirstScale, check_calibration, cycle, spelled_out
from varrl_lightning.configuration.specs import built
from varrl_lightning.grpo.credit import Combine, CreditOptions, MaskOptions, NormaliseOptions
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.objective import KLOptions, Objective
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Sampling, SamplingChanges, Score, Stage

NUM_CONTINUATIONS = 2
"""The default of `num_continuations`, which says nothing where `stages` are spelled out."""


def built_cycle(
    policy: VARPolicy,
    stages: Sequence[Any] | None,
    m: int | str,
    group_size: int | None,
    images_per_prompt: int | None,
    num_continuations: int,
    calibrate_every: int | None,
    alternation: Sequence[str],
    suffix_starts: int,
    first_scale: FirstScale,
) -> tuple[Stage, ...]:
    """The stages of successive rollouts; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: on a value out of its range.
    """
    schedule = policy.schedule()
    T = len(schedule)
    check_calibration(calibrate_every, num_continuations, alternation, stages)
    if stages is not None:
        spelled = spelled_out([built("stages", Stage, stage) for stage in stages], T, images_per_prompt)
        check_beside_stages(spelled, group_size, num_continuations, suffix_starts, first_scale)
        return spelled
    m = schedule.resolve_m(m)
    if m == T:
        calibrations = "" if calibrate_every is None else f", calibrate_every = {calibrate_every}"
        warnings.warn(
            f"m = {m} is the last scale: this is plain GRPO over all scales, without a middle return; "
            f"num_continuations = {num_continuations}{calibrations} and the alternation are ignored",
            stacklevel=3,
        )
    options: dict[str, Any] = {"starts": suffix_starts, "first_scale": first_scale, "calibrate_every": calibrate_every}
    return cycle(T, m, group_size, num_continuations, alternation, images_per_prompt=images_per_prompt, **options)


def check_beside_stages(
    stages: Sequence[Stage], group_size: int | None, num_continuations: int, suffix_starts: int, first_scale: FirstScale
) -> None:
    """Check that arguments which `stages` takes the place of ask for nothing that no stage has; their defaults never do.

    `m` and `alternation` are not looked at: a base configuration has them for those that do not spell their stages out.

    Raises:
        ValueError: names the argument, its value and what the stages have.
    """
    given = {
        "group_size": (group_size, None, "branches"),
        "num_continuations": (num_continuations, NUM_CONTINUATIONS, "continuations"),
        "suffix_starts": (suffix_starts, 1, "starts"),
    }
    for name, (value, default, field) in given.items():
        held = sorted({getattr(stage, field) for stage in stages})
        if value != default and value not in held:
            drafts = ", which scores drafts," if name == "num_continuations" and value == 0 else ""
            raise ValueError(
                f"{name} = {value}{drafts} says nothing beside stages, which have {field} {', '.join(map(str, held))}: leave "
                f"{name} at its default {default}, or give `stages` one with {field} {value}"
            )
    untrained = {"trained": 0, "shared": 1, "per_branch": 1}[first_scale]
    for stage in stages:
        apart = stage.start == 1 and stage.starts != (stage.branches if first_scale == "per_branch" else 1)
        if stage.start < untrained or (untrained and apart):
            raise ValueError(
                f"first_scale = {first_scale} says nothing beside stages, of which {stage} has another: leave first_scale out, or "
                f"give that stage start 1 and starts {stage.branches if first_scale == 'per_branch' else 1}"
            )


def built_noise(noise: Any, stages: Sequence[Stage], policy: VARPolicy) -> NoiseOptions:
    """What the images of a group share of their noise; warns of an option that does nothing in the stages.

    Args:
        stages: the cycle of the policy's rollouts.
    """
    options: NoiseOptions = built("noise", NoiseOptions, noise)
    for idle in options.idle(stages, len(policy.schedule())):
        warnings.warn(idle, stacklevel=3)
    return options


def built_sampling(sampling: Any, default: Sampling) -> Sampling:
    """How images are sampled: a complete `Sampling`, or changes to the policy's default."""
    changes = built("sampling", SamplingChanges, sampling)
    if changes is None:
        return default
    return changes.over(default) if isinstance(changes, SamplingChanges) else changes


def built_score(score: Any, sampling: Sampling) -> Score:
    """Which distribution is trained, given by its name or as a `Score`; its sampling is the module's.

    Raises:
        ValueError: when the score names another sampling than the module's.
    """
    named = built("score", Score, score)
    if not isinstance(named, Score):
        return Score(named, sampling)
    if named.sampling not in (Sampling(), sampling):
        raise ValueError(f"score.sampling is the module's own sampling: set `sampling` in its place, got {named.sampling}")
    return replace(named, sampling=sampling)


def built_credit(
    eta: float,
    alpha: float,
    combine: Combine,
    mask: Any,
    normalise: Any,
) -> CreditOptions:
    """How scores become weights of tokens; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: on a value out of its range.
    """
    return CreditOptions(eta, alpha, combine, built("mask", MaskOptions, mask), built("normalise", NormaliseOptions, normalise))


def built_objective(
    score: Score,
    clip_low: float,
    clip_high: float,
    ratio: Ratio,
    kl_coef: float,
    kl: Any,
) -> Objective:
    """The loss; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: on a value out of its range.
    """
    return Objective(score, clip_low, clip_high, ratio, kl_coef, built("kl", KLOptions, kl))
