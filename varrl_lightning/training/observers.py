"""Those who look on while training steps are made, and change nothing: what writes tables of samples is one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.grpo.credit import Credit
from varrl_lightning.types import Rollout, Scores


class RolloutObserver(Protocol):
    """Is shown the rollout of each training step; it must copy what it keeps, or it would fill the device's memory."""

    def scored(self, rollout: Rollout, scores: Mapping[str, Scores], mask: Float[Tensor, "N H W"] | None) -> None:
        """The images of this process are scored.

        Args:
            scores: scores of these images, by reward name.
            mask: which pixels the scores are about, in [0, 1]; None for all.
        """
        ...

    def credited(self, credit: Credit) -> None:
        """The branches of all processes have their credit, and the update comes next."""
        ...


class RolloutObservers:
    """All observers of a module, as one; none until somebody adds one."""

    def __init__(self) -> None:
        self.members: list[RolloutObserver] = []

    def scored(self, rollout: Rollout, scores: Mapping[str, Scores], mask: Float[Tensor, "N H W"] | None) -> None:
        """Tell each of them."""
        for member in self.members:
            member.scored(rollout, scores, mask)

    def credited(self, credit: Credit) -> None:
        """Tell each of them."""
        for member in self.members:
            member.credited(credit)
