"""Reinforcement learning for next-scale (VAR) image generators, as PyTorch Lightning modules with plugin rewards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import version

    from varrl_lightning.data import PromptDataModule
    from varrl_lightning.module import VARGRPO
    from varrl_lightning.policies.base import VARPolicy
    from varrl_lightning.policies.lettering import LetteringPolicy
    from varrl_lightning.rewards.base import Reward
    from varrl_lightning.schedule import Schedule
    from varrl_lightning.types import Box, LogProbs, Prompt, Rollout, Sampling, Score, Scores, Stage

    __version__ = version("varrl-lightning")

_HOMES = {
    "VARGRPO": "module",
    "PromptDataModule": "data",
    "VARPolicy": "policies.base",
    "LetteringPolicy": "policies.lettering",
    "Reward": "rewards.base",
    "Schedule": "schedule",
    **dict.fromkeys(("Box", "LogProbs", "Prompt", "Rollout", "Sampling", "Score", "Scores", "Stage"), "types"),
}

__all__ = [
    "VARGRPO",
    "Box",
    "LetteringPolicy",
    "LogProbs",
    "Prompt",
    "PromptDataModule",
    "Reward",
    "Rollout",
    "Sampling",
    "Schedule",
    "Score",
    "Scores",
    "Stage",
    "VARPolicy",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, and only then: torch and lightning take seconds, a command's `--help` must not."""
    if name == "__version__":
        from importlib.metadata import version

        return version("varrl-lightning")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
