"""Builds the rewards of evaluations and the anchor of the KL from arguments of `VARGRPO`."""

from __future__ import annotations

from typing import Any

from varrl_lightning.configuration.judge_specs import AUTOMATIC, judge_specs
from varrl_lightning.configuration.specs import built
from varrl_lightning.errors import SpecError
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, has_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.rewards.weighted import WeightedRewards


def built_judges(evaluate_with: Any, rewards: WeightedRewards) -> dict[str, Reward]:
    """The rewards of evaluations by name; `auto` is Tesseract beside the OCR reward, where it is installed.

    Raises:
        SpecError: as `judge_specs`, and for a reward that cannot score an image alone.
        PluginError: when a reward cannot be found or built.
    """
    if isinstance(evaluate_with, str) and evaluate_with == AUTOMATIC:
        return _installed_judge(rewards)
    judges = {name: build(REWARDS, spec) for name, spec in judge_specs(evaluate_with).items()}
    for name, judge in judges.items():
        if not judge.scores_alone:
            raise SpecError(
                f"evaluate_with: {name!r} compares the images of a group, and validation and test have one image of each prompt; "
                "take a reward that scores an image alone"
            )
    return judges


def _installed_judge(rewards: WeightedRewards) -> dict[str, Reward]:
    """Tesseract without thresholds, since a miss is a miss."""
    reader = next((term.reward for term in rewards.terms.values() if isinstance(term.reward, OCRReward)), None)
    if reader is None or why_not_installed() is not None:
        return {}
    return {"tesseract": TesseractReward(reader.engine.detect, min_confidence=0, min_length=1, without_words="skip")}


def built_reference(reference: Any, policy: VARPolicy) -> Anchor:
    """The anchor of the KL: as given, else the policy with its adapter off, or a frozen copy of the policy."""
    given = built("reference", VARPolicy, reference)
    if given is not None:
        return given  # type: ignore[no-any-return]
    return AdapterOff(policy) if has_adapter(policy) else policy.frozen_copy()
