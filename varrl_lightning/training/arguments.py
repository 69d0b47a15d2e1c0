"""From arguments of `VARGRPO` to its judge and reference; checks of its numbers and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from varrl_lightning.configuration.specs import built
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, has_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt


def built_judge(judge: Any, rewards: WeightedRewards) -> Reward | None:
    """The second reader of tests; `auto` is Tesseract beside the OCR reward, where it is installed."""
    if judge == "auto":
        return _installed_judge(rewards)
    return None if judge is None else build(REWARDS, judge)


def _installed_judge(rewards: WeightedRewards) -> Reward | None:
    """Tesseract without thresholds, since a miss is a miss."""
    reader = next((term.reward for term in rewards.terms.values() if isinstance(term.reward, OCRReward)), None)
    if reader is None or why_not_installed() is not None:
        return None
    return TesseractReward(reader.engine.detect, min_confidence=0, min_length=1, without_words="skip")


def built_reference(reference: Any, policy: VARPolicy) -> Anchor:
    """The anchor of the KL: as given, else the policy with its adapter off, or a frozen copy of the policy."""
    given = built("reference", VARPolicy, reference)
    if given is not None:
        return given  # type: ignore[no-any-return]
    return AdapterOff(policy) if has_adapter(policy) else policy.frozen_copy()


def check_sizes(group_size: int, num_continuations: int, micro_batch_size: object, images_at_once: object) -> None:
    """Whether numbers of images make sense; arguments as of `VARGRPO`.

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
    """Whether all images have as many scales as those of the policy's default size, for which stages count scales.

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
    """Whether the policy can sample these prompts and the rewards can score them.

    Raises:
        ValueError: names the prompt and the reason.
    """
    rewards.check_prompts(prompts)
    check_scales(prompts, policy)
    for size in dict.fromkeys(p.size for p in prompts):
        policy.encode_prompts([p for p in prompts if p.size == size])
