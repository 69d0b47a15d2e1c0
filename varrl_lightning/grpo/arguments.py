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
from varrl_lightning.grpo.objective import KLOptions, Objective
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Sampling, SamplingChanges, Score, Stage


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
        return spelled_out([built("stages", Stage, stage) for stage in stages], T, images_per_prompt)
    m = schedule.resolve_m(m)
    if m == T:
        warnings.warn(
            f"m = {m} is the last scale: this is plain GRPO over all scales, without a middle return; "
            f"num_continuations = {num_continuations} and the alternation are ignored",
            stacklevel=3,
        )
    options: dict[str, Any] = {"starts": suffix_starts, "first_scale": first_scale, "calibrate_every": calibrate_every}
    return cycle(T, m, group_size, num_continuations, alternation, images_per_prompt=images_per_prompt, **options)


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
