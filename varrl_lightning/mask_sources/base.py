"""What a mask source is."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.types import Rollout, Scores


@runtime_checkable
class MaskSource(Protocol):
    """Says which pixels of an image decided its reward; the caller thresholds, unites and propagates (section 3.5).

    It may also have `use_rewards(rewards: Mapping[str, Reward]) -> None`, called once before training begins with the rewards of
    the run by name, which raises a ValueError when they are not what the source needs.
    """

    def __call__(self, rollout: Rollout, scores: Scores, policy: Any) -> Float[Tensor, "N H W"] | None:
        """Weights in [0, 1], one map per image; an all-zero map where nothing is known; None for no mask at all.

        `policy` is the `VARPolicy` that drew the rollout, for sources that look inside it. `scores` are those of the weighted sum;
        `scores.parts` holds each reward's own.
        """
        ...
