"""Which scales are optimised when: stages and their cycle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.algorithms.vmr import soft_value
from varrl_lightning.types import Stage

FirstScale = Literal["trained", "shared", "per_branch"]
"""Whether r_1 is trained, or sampled once per prompt, or for each branch."""
GROUP_SIZE = 16
"""Branches of a prompt where nothing says how many: the paper's number."""
CALIBRATION = "calibration"
"""Name of the stages of `calibrate_every`."""


def branches_of(group_size: int | None, images_per_prompt: int | None, images_per_branch: int = 1) -> int:
    """Return A, the branches of a prompt: the group size, or as many as share the images of a prompt.

    Args:
        group_size: A itself; None for `GROUP_SIZE`, unless the images are given.
        images_per_prompt: A times the images of a branch: the other reading of "group size (candidates per prompt)", which excludes
            the first.
        images_per_branch: max(K, 1) of a prefix; 1 of a stage that ends with the last scale.

    Raises:
        ValueError: when both are given, or the images are not those of two branches or more.

    Examples:
        >>> branches_of(group_size=None, images_per_prompt=16, images_per_branch=2)
        8
        >>> branches_of(group_size=None, images_per_prompt=None, images_per_branch=2)
        16
    """
    if images_per_prompt is None:
        return GROUP_SIZE if group_size is None else group_size
    if group_size is not None:
        raise ValueError(
            f"group_size = {group_size} counts branches and images_per_prompt = {images_per_prompt} images, which exclude each "
            "other: set one of them to null"
        )
    branches, rest = divmod(images_per_prompt, images_per_branch)
    if rest or branches < 2:
        raise ValueError(
            f"images_per_prompt must be a multiple of the {images_per_branch} images of a branch, for two branches or more, got "
            f"{images_per_prompt}: a prefix has images_per_prompt / max(num_continuations, 1) branches, other stages one an image"
        )
    return branches


def prefix_stage(T: int, m: int, A: int, K: int, first_scale: FirstScale = "trained") -> Stage:
    """Return the stage of scales `[0, m)` for the middle return (Eq. 5, Prefix).

    Args:
        K: continuations of a branch; 0 for the reward of the draft, which the first m scales decode to.
        first_scale: with `shared` and `per_branch` r_1 is not trained, as the paper's own indices say, where actions begin with
            r_2: it is sampled once per prompt and shared by the branches, or sampled for each branch.

    Examples:
        >>> prefix_stage(T=10, m=6, A=4, K=2)
        Stage(start=0, stop=6, branches=4, continuations=2, starts=1, name='prefix')
        >>> prefix_stage(T=10, m=6, A=4, K=2, first_scale="shared").start
        1
        >>> prefix_stage(T=10, m=6, A=4, K=2, first_scale="per_branch")
        Stage(start=1, stop=6, branches=4, continuations=2, starts=4, name='prefix')
    """
    if not 1 <= m < T:
        raise ValueError(f"a prefix needs m in [1, {T}), got {m}")
    start, starts = _first(first_scale, A)
    if m <= start:
        raise ValueError(f"with first_scale {first_scale!r} a prefix needs m of at least 2, got {m}")
    return Stage(start, m, A, continuations=K, starts=starts, name="prefix")


def suffix_stage(T: int, m: int, A: int, starts: int = 1) -> Stage:
    """Return the stage of scales `[m, T)` for the terminal reward (Eq. 5, Suffix), from `starts` different s_m per prompt.

    Examples:
        >>> suffix_stage(T=10, m=6, A=4, starts=2)
        Stage(start=6, stop=10, branches=4, continuations=1, starts=2, name='suffix')
    """
    if not 1 <= m < T:
        raise ValueError(f"a suffix needs m in [1, {T}), got {m}")
    return Stage(m, T, A, starts=starts, name="suffix")


def full_stage(T: int, A: int, first_scale: FirstScale = "trained") -> Stage:
    """Return the stage of all scales for the terminal reward: plain GRPO.

    Examples:
        >>> full_stage(T=10, A=4)
        Stage(start=0, stop=10, branches=4, continuations=1, starts=1, name='all')
    """
    start, starts = _first(first_scale, A)
    return Stage(start, T, A, starts=starts, name="all")


def cycle(
    T: int,
    m: int,
    group_size: int | None,
    num_continuations: int,
    alternation: Sequence[str],
    *,
    images_per_prompt: int | None = None,
    starts: int = 1,
    first_scale: FirstScale = "trained",
    calibrate_every: int | None = None,
) -> tuple[Stage, ...]:
    """Return the stages that updates go through, over and over.

    Args:
        m: the middle step, in [1, T]; at T there is nothing to split: one stage of all scales, K ignored.
        group_size, images_per_prompt: how large a group is, see `branches_of`.
        num_continuations: K of the prefix, >= 0.
        alternation: names out of prefix, suffix and all, each with an optional count: `("prefix*300", "suffix*100")`.
        starts: different s_m per prompt of a suffix; divides the group.
        calibrate_every: with K = 0, every n-th prefix scores drafts and whole images and trains on these, see `calibration`.

    Raises:
        ValueError: on an unknown name, a bad count, an empty alternation or an m out of range; on K = 0 without a prefix.

    Examples:
        >>> stages = cycle(T=10, m=6, group_size=4, num_continuations=2, alternation=["prefix*2", "suffix"])
        >>> [(stage.name, stage.start, stage.stop) for stage in stages]
        [('prefix', 0, 6), ('prefix', 0, 6), ('suffix', 6, 10)]
        >>> [stage.name for stage in cycle(T=10, m=10, group_size=4, num_continuations=2, alternation=["prefix", "suffix"])]
        ['all']
        >>> [stage.name for stage in cycle(10, 6, 4, 0, alternation=["prefix", "suffix"], calibrate_every=2)]
        ['prefix', 'suffix', 'calibration', 'suffix']
        >>> [stage.branches for stage in cycle(10, 6, None, 2, ["prefix", "suffix"], images_per_prompt=16)]
        [8, 16]
    """
    check_calibration(calibrate_every, num_continuations, alternation)
    if not 1 <= m <= T:
        raise ValueError(f"m must be in [1, {T}], the number of scales, got {m}")
    if not alternation:
        raise ValueError("alternation must name at least one stage, got none")
    names = [name for entry in alternation for name in _repeated(entry)]
    A, K = branches_of(group_size, images_per_prompt), num_continuations
    if m == T:
        return (full_stage(T, A, first_scale),)
    if num_continuations == 0 and "prefix" not in names:
        raise ValueError(
            f"num_continuations = 0 scores the drafts of prefix updates, but the alternation {list(alternation)} has no prefix: "
            "add one, or leave num_continuations out"
        )
    stages = {
        "prefix": lambda: prefix_stage(T, m, branches_of(group_size, images_per_prompt, max(K, 1)), K, first_scale),
        "suffix": lambda: suffix_stage(T, m, A, starts),
        "all": lambda: full_stage(T, A, first_scale),
    }
    # Only the stages that are named are built, so that one that is not used cannot be in error.
    built = {name: stages[name]() for name in set(names)}
    stages_once = tuple(built[name] for name in names)
    return stages_once if calibrate_every is None else _calibrated(stages_once, calibrate_every)


def calibration(stage: Stage) -> Stage:
    """Return the stage that scores the drafts of a stage's branches, and two whole images of each, which it trains on.

    Two are the fewest that show how well one whole image ranks branches as another does, which is what drafts are measured by. The
    branches are those of the stage, also where `images_per_prompt` made them: 2 A whole images and A drafts are scored.

    Examples:
        >>> stage = calibration(prefix_stage(T=10, m=6, A=4, K=0))
        >>> stage.continuations, stage.with_drafts, stage.name
        (2, True, 'calibration')
    """
    return replace(stage, continuations=2, with_drafts=True, name=CALIBRATION)


def calibrations_of(stages: Sequence[Stage]) -> set[Stage]:
    """Return the stages of a cycle whose continuations are there to measure drafts: K is not theirs to choose.

    They are those of `calibrate_every`, and those that score drafts beside whole images where others train on the same drafts.

    Examples:
        >>> [stage.name for stage in calibrations_of(cycle(10, 6, 4, 0, alternation=["prefix"], calibrate_every=2))]
        ['calibration']
        >>> calibrations_of([Stage(0, 6, branches=4, continuations=2, with_drafts=True)])  # K = 2 is what trains
        set()
    """
    on_drafts = {(stage.start, stage.stop) for stage in stages if stage.scores_drafts}
    return {
        stage for stage in stages if stage.with_drafts and (stage.name == CALIBRATION or (stage.start, stage.stop) in on_drafts)
    }


def check_calibration(
    calibrate_every: int | None, num_continuations: int, alternation: Sequence[str], stages: object = None
) -> None:
    """Check that there are drafts to calibrate; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: on a number below 1, and where no prefix scores drafts, or the stages are spelled out.

    Examples:
        >>> check_calibration(20, num_continuations=0, alternation=["prefix*3", "suffix"])
        >>> check_calibration(20, num_continuations=0, alternation=["all"])
        Traceback (most recent call last):
        ValueError: calibrate_every = 20 counts prefix updates, but the alternation ['all'] has no prefix: add one, or leave it out
    """
    if calibrate_every is None:
        return
    if calibrate_every < 1:
        raise ValueError(f"calibrate_every must be at least 1 prefix update, got {calibrate_every}; leave it out for none")
    if stages is not None:
        raise ValueError(
            f"calibrate_every = {calibrate_every} changes updates of the alternation, but `stages` spells the cycle out: leave "
            "calibrate_every out, and give `stages` one with continuations 2 and with_drafts true where you want it"
        )
    if num_continuations != 0:
        raise ValueError(
            f"calibrate_every = {calibrate_every} compares drafts with whole images, but with num_continuations = "
            f"{num_continuations} no draft is trained on: set num_continuations 0, or leave calibrate_every out"
        )
    if not any("prefix" in _repeated(entry) for entry in alternation):
        raise ValueError(
            f"calibrate_every = {calibrate_every} counts prefix updates, but the alternation {list(alternation)} has no prefix: "
            "add one, or leave it out"
        )


def _calibrated(stages: Sequence[Stage], every: int) -> tuple[Stage, ...]:
    """The cycle as often as it takes for every n-th stage of drafts, the last of which is one, to be a calibration."""
    drafts = sum(stage.scores_drafts for stage in stages)
    number, found = 0, []
    for stage in tuple(stages) * (math.lcm(drafts, every) // drafts):
        number += stage.scores_drafts
        found.append(calibration(stage) if stage.scores_drafts and number % every == 0 else stage)
    return tuple(found)


def spelled_out(stages: Sequence[Stage], T: int, images_per_prompt: int | None = None) -> tuple[Stage, ...]:
    """Check a cycle that is given stage by stage, for example with several middle steps, and return it.

    Raises:
        ValueError: when there is no stage, or one does not fit T scales; the message names it. When the number of images is given
            again.

    Examples:
        >>> middle_steps = [prefix_stage(10, 4, A=4, K=2), prefix_stage(10, 8, A=4, K=2)]
        >>> [stage.stop for stage in spelled_out(middle_steps, T=10)]
        [4, 8]
        >>> spelled_out([Stage(8, 12, branches=4)], T=10)
        Traceback (most recent call last):
        ValueError: Stage(start=8, stop=12, branches=4, continuations=1, starts=1, name='all') ends after the last of 10 scales
    """
    if not stages:
        raise ValueError("stages must hold at least one stage, got none")
    if images_per_prompt is not None:
        raise ValueError(f"images_per_prompt = {images_per_prompt} says nothing beside stages, whose branches count: leave one out")
    for stage in stages:
        if stage.stop > T:
            raise ValueError(f"{stage} ends after the last of {T} scales")
        if stage.stop == T and stage.continuations != 1:
            raise ValueError(f"{stage} ends with the last scale, where continuations is 1: there is neither a tail nor a draft")
        if stage.start == 0 and stage.starts > 1:
            raise ValueError(f"{stage} starts with nothing drawn, where starts is 1")
    return tuple(stages)


def stage_returns(
    rewards: Float[Tensor, "P A K"], stage: Stage, eta: float, valid: Bool[Tensor, "P A K"] | None = None
) -> Float[Tensor, "P A"]:
    """Compute the return of each branch: V_b of Eq. 10, or R itself of its one image (K of 0 or 1); NaN where none is valid.

    Args:
        rewards: (P, A, max(K, 1)).

    Raises:
        ValueError: when the shape of the rewards is not the stage's (A, K).

    Examples:
        >>> prefix, suffix = prefix_stage(10, 6, A=2, K=2), suffix_stage(10, 6, A=2)
        >>> stage_returns(torch.tensor([[[0.0, 2.0], [1.0, 1.0]]]), prefix, eta=1.0)  # log((1 + e^2) / 2), and log e
        tensor([[1.4338, 1.0000]])
        >>> stage_returns(torch.tensor([[[0.0], [2.0]]]), suffix, eta=1.0)
        tensor([[0., 2.]])
        >>> stage_returns(torch.tensor([[[0.0], [2.0]]]), prefix_stage(10, 6, A=2, K=0), eta=1.0)  # of two drafts
        tensor([[0., 2.]])
    """
    expected = (stage.branches, stage.images_per_branch)
    if rewards.shape[1:] != expected:
        raise ValueError(f"stage {stage.name!r} has (A, K) = {expected}, got rewards of {tuple(rewards.shape[1:])}")
    if stage.images_per_branch > 1:
        return soft_value(rewards, eta, valid)
    usable = torch.isfinite(rewards) if valid is None else valid
    return torch.where(usable, rewards, math.nan).squeeze(-1)


def _first(first_scale: FirstScale, A: int) -> tuple[int, int]:
    """The first trained scale, and how many different states a prompt has before it."""
    return {"trained": (0, 1), "shared": (1, 1), "per_branch": (1, A)}[first_scale]


def _repeated(entry: str) -> list[str]:
    name, star, count = entry.replace(" ", "").partition("*")
    if name not in ("prefix", "suffix", "all"):
        raise ValueError(f"unknown stage {name!r} in alternation; there are: prefix, suffix, all")
    if star and not (count.isdecimal() and int(count) > 0):
        raise ValueError(f"a count in alternation must be a positive integer, as in 'prefix*3', got {entry!r}")
    return [name] * (int(count) if star else 1)
