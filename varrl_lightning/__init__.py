"""Reinforcement learning for next-scale (VAR) image generators, as PyTorch Lightning modules with plugin rewards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from varrl_lightning.configuration.renamed import answer_old_names

if TYPE_CHECKING:
    from importlib.metadata import version

    from varrl_lightning.data import PromptDataModule
    from varrl_lightning.grpo.credit import CreditOptions, MaskOptions, NormaliseOptions
    from varrl_lightning.grpo.grpo import GRPO
    from varrl_lightning.grpo.noise import NoiseOptions
    from varrl_lightning.grpo.objective import KLOptions, Objective
    from varrl_lightning.module import VARGRPO
    from varrl_lightning.policies.base import VARPolicy
    from varrl_lightning.policies.infinity import InfinityPolicy
    from varrl_lightning.policies.lettering import LetteringPolicy
    from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy
    from varrl_lightning.policies.lora import add_lora
    from varrl_lightning.policies.switti import SwittiPolicy
    from varrl_lightning.policies.tokenflow import TokenFlowPolicy
    from varrl_lightning.policies.var import ImageNetVARPolicy
    from varrl_lightning.rewards.base import Reward
    from varrl_lightning.schedule import Schedule
    from varrl_lightning.text_encoders import ClipPair, EncodedTexts, T5Text
    from varrl_lightning.training.guards import Guards
    from varrl_lightning.types import Box, LogProbs, Prompt, Rollout, Sampling, Score, Scores, Stage

    __version__ = version("varrl-lightning")

answer_old_names()

_HOMES = {
    "VARGRPO": "module",
    "GRPO": "grpo.grpo",
    **dict.fromkeys(("CreditOptions", "MaskOptions", "NormaliseOptions"), "grpo.credit"),
    "NoiseOptions": "grpo.noise",
    **dict.fromkeys(("KLOptions", "Objective"), "grpo.objective"),
    "Guards": "training.guards",
    "PromptDataModule": "data",
    "VARPolicy": "policies.base",
    "ImageNetVARPolicy": "policies.var",
    "InfinityPolicy": "policies.infinity",
    "LLMPrefixPolicy": "policies.llm_prefix",
    "LetteringPolicy": "policies.lettering",
    "SwittiPolicy": "policies.switti",
    "TokenFlowPolicy": "policies.tokenflow",
    "add_lora": "policies.lora",
    "Reward": "rewards.base",
    "Schedule": "schedule",
    **dict.fromkeys(("ClipPair", "EncodedTexts", "T5Text"), "text_encoders"),
    **dict.fromkeys(("Box", "LogProbs", "Prompt", "Rollout", "Sampling", "Score", "Scores", "Stage"), "types"),
}

__all__ = [
    "GRPO",
    "VARGRPO",
    "Box",
    "ClipPair",
    "CreditOptions",
    "EncodedTexts",
    "Guards",
    "ImageNetVARPolicy",
    "InfinityPolicy",
    "KLOptions",
    "LLMPrefixPolicy",
    "LetteringPolicy",
    "LogProbs",
    "MaskOptions",
    "NoiseOptions",
    "NormaliseOptions",
    "Objective",
    "Prompt",
    "PromptDataModule",
    "Reward",
    "Rollout",
    "Sampling",
    "Schedule",
    "Score",
    "Scores",
    "Stage",
    "SwittiPolicy",
    "T5Text",
    "TokenFlowPolicy",
    "VARPolicy",
    "__version__",
    "add_lora",
]


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: importing torch and lightning takes seconds, which `--help` must not."""
    if name == "__version__":
        from importlib.metadata import version

        return version("varrl-lightning")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
