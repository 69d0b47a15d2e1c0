"""Checks of numbers and prompts that `VARGRPO` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, get_args

from varrl_lightning.algorithms.stages import FirstScale
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.prompts.quotes import warn_of_prompts
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.training.cut_prompts import check_cut_prompts
from varrl_lightning.training.guards import Guards
from varrl_lightning.types import Prompt

ENCODED_AT_ONCE = 256
"""Prompts that are encoded at one time, so that the features of many thousands need not fit in memory."""
ENCODED_BY_NETWORKS = 4
"""Prompts of a size, first and longest ones, that are encoded where that takes a network."""
RESOLUTION = "a resolution such as '256px'"
INTEGERS: Mapping[str, Sequence[str | None]] = {
    "m": (RESOLUTION,),
    "num_continuations": (),
    "suffix_starts": (),
    "updates_per_rollout": (),
    "seed": (),
    "eval_seed": (),
    "group_size": (None,),
    "images_per_prompt": (None,),
    "calibrate_every": (None,),
    "images_at_once": (None,),
    "micro_batch_size": ("auto", None),
}
"""Arguments of `VARGRPO` that are integers, each with what else it may be."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check the numbers and choices among the arguments of `VARGRPO` that need nothing else.

    Args:
        given: by name, all of `INTEGERS`, `first_scale` and `alternation` among them; others are not looked at.

    Raises:
        ValueError: names the argument, what was expected and what was given.
    """
    for name, others in INTEGERS.items():
        _check_integer(name, given[name], others)
    group_size, K = given["group_size"], given["num_continuations"]
    if group_size is not None and group_size < 2:
        raise ValueError(f"group_size must be at least 2, to have something to compare, got {group_size}")
    if K < 0:
        raise ValueError(f"num_continuations (K) must be at least 0, which scores drafts, got {K}")
    for name in ("micro_batch_size", "images_at_once"):
        if isinstance(given[name], Integral) and given[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]!r}")
    if given["first_scale"] not in get_args(FirstScale):
        raise ValueError(f"first_scale must be one of {', '.join(get_args(FirstScale))}, got {given['first_scale']!r}")
    if isinstance(given["alternation"], str):
        raise ValueError(f"alternation must be a list of names of stages, as in ['prefix*3'], got {given['alternation']!r}")


def _check_integer(name: str, value: object, others: Sequence[str | None]) -> None:
    """Check that a value is an integer, of any library, or one of the others; with a resolution among them, any text."""
    integer = isinstance(value, Integral) and not isinstance(value, bool)
    other = (value is None or isinstance(value, str)) and (value in others or (RESOLUTION in others and value is not None))
    if not (integer or other):
        raise ValueError(f"{name} must be {' or '.join(['an integer', *map(str, others)])}, got {value!r}")


def check_scales(prompts: Sequence[Prompt], policy: VARPolicy) -> None:
    """Check that all images have as many scales as the policy's default size has, whose scales the stages count.

    Raises:
        ValueError: names the prompt, its size and both numbers.
    """
    default = policy.schedule()
    for prompt in prompts:
        scales = len(policy.schedule(prompt.size))
        if scales != len(default):
            raise ValueError(
                f"prompt {prompt.id!r} asks for {prompt.size} pixels, which have {scales} scales, but the stages are made for "
                f"the {len(default)} of {default.image_size}; train each resolution by itself, as the policy's default size"
            )


def check_prompts(prompts: Sequence[Prompt], policy: VARPolicy, rewards: WeightedRewards, guards: Guards) -> None:
    """Check that the policy can sample these prompts and the rewards can score them; warn of those with unclear quotes.

    Raises:
        ValueError: names the prompt and the reason.
    """
    warn_of_prompts(prompts)
    rewards.check_prompts(prompts)
    check_scales(prompts, policy)
    check_cut_prompts(prompts, policy, guards.cut_prompts)
    for size in dict.fromkeys(p.size for p in prompts):
        of_size = _worth_encoding([p for p in prompts if p.size == size], policy)
        for first in range(0, len(of_size), ENCODED_AT_ONCE):
            policy.encode_prompts(of_size[first : first + ENCODED_AT_ONCE])


def check_judged(prompts: Sequence[Prompt], judges: Mapping[str, Reward]) -> None:
    """Ask the rewards of `evaluate_with` whether they can score the prompts of evaluations.

    Raises:
        ValueError: whatever a reward objects to, with its name.
    """
    for name, judge in judges.items() if prompts else ():
        try:
            judge.check_prompts(prompts)
        except ValueError as error:
            raise ValueError(f"the reward {name!r} of evaluate_with cannot score these prompts: {error}") from error


def _worth_encoding(prompts: Sequence[Prompt], policy: VARPolicy) -> Sequence[Prompt]:
    """All prompts, or the first and the longest where a network encodes them: it takes hours for many, and treats all alike."""
    encoder = policy.frozen_parts.get("text_encoder")
    if encoder is None or next(encoder.parameters(), None) is None:
        return prompts
    longest = sorted(prompts, key=lambda prompt: len(prompt.text), reverse=True)
    return [*prompts[:ENCODED_BY_NETWORKS], *longest[:ENCODED_BY_NETWORKS]]
