"""Builds the second reader of tests and the anchor of the KL from arguments of `VARGRPO`."""

from __future__ import annotations

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
