"""Checks of numbers and prompts that `VARGRPO` is given."""

from __future__ import annotations

from collections.abc import Sequence

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt


def check_sizes(group_size: int, num_continuations: int, micro_batch_size: object, images_at_once: object) -> None:
    """Check that numbers of images make sense; the arguments are those of `VARGRPO`.

    Raises:
        ValueError: names the argument, its range and what was given.
    """
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, to have something to compare, got {group_size}")
    if num_continuations < 1:
        raise ValueError(f"num_continuations (K) must be at least 1, got {num_continuations}")
    for name, size in (("micro_batch_size", micro_batch_size), ("images_at_once", images_at_once)):
        automatic = name == "micro_batch_size" and size == "auto"
        if not (automatic or size is None or (isinstance(size, int) and size >= 1)):
            raise ValueError(f"{name} must be at least 1, got {size!r}")


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


def check_prompts(prompts: Sequence[Prompt], policy: VARPolicy, rewards: WeightedRewards) -> None:
    """Check that the policy can sample these prompts and the rewards can score them.

    Raises:
        ValueError: names the prompt and the reason.
    """
    rewards.check_prompts(prompts)
    check_policy_prompts(prompts, policy)


def check_policy_prompts(prompts: Sequence[Prompt], policy: VARPolicy) -> None:
    """Check that the policy can sample these prompts.

    Raises:
        ValueError: names the prompt and the reason.
    """
    check_scales(prompts, policy)
    for size in dict.fromkeys(p.size for p in prompts):
        policy.encode_prompts([p for p in prompts if p.size == size])
