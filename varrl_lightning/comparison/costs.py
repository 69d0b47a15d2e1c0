"""The cost of an update, and the number of updates within a budget of seconds or of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class StageCost:
    """One stage of a recipe's cycle, at a number of prompts per update.

    Args:
        name: of the stage.
        images: sampled and scored in one update, P * A * K; in a calibration also its P * A drafts.
        seconds: of one update, the median of those measured.
        cpu_seconds: CPU time of the process within them, all threads together: less than `seconds` on a busy machine.
        parts: medians of its rollout, reward and update, by these names.
    """

    name: str
    images: int
    seconds: float
    cpu_seconds: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """The cycle of a recipe: the seconds and the images of the first n updates of a run are sums over it."""

    cycle: tuple[StageCost, ...]

    @classmethod
    def read(cls, stages: Sequence[Mapping[str, Any]]) -> Cost:
        """Build a cost from the stages that `as_json` returned."""
        return cls(tuple(StageCost(**stage) for stage in stages))

    def as_json(self) -> list[dict[str, Any]]:
        """The stages in order, as plain values."""
        return [asdict(stage) for stage in self.cycle]

    @property
    def seconds_per_update(self) -> float:
        """Mean seconds per update, over the cycle."""
        return sum(stage.seconds for stage in self.cycle) / len(self.cycle)

    @property
    def images_per_update(self) -> float:
        """Mean number of images per update, over the cycle."""
        return sum(stage.images for stage in self.cycle) / len(self.cycle)

    @property
    def reward_share(self) -> float:
        """The share of the cycle's seconds that rewards take, in [0, 1]."""
        return sum(stage.parts["reward"] for stage in self.cycle) / sum(stage.seconds for stage in self.cycle)

    @property
    def waiting(self) -> float:
        """The share of the cycle's seconds in which a process of one thread did not compute."""
        return 1 - sum(stage.cpu_seconds for stage in self.cycle) / sum(stage.seconds for stage in self.cycle)

    def seconds(self, updates: int) -> float:
        """Seconds of the first updates of a run."""
        return math.fsum(stage.seconds * self._times(place, updates) for place, stage in enumerate(self.cycle))

    def images(self, updates: int) -> int:
        """Number of images sampled in the first updates of a run."""
        return sum(stage.images * self._times(place, updates) for place, stage in enumerate(self.cycle))

    def _times(self, place: int, updates: int) -> int:
        cycles, rest = divmod(updates, len(self.cycle))
        return cycles + (place < rest)

    def updates_in(self, budget: float) -> int:
        """The number of updates within a budget: floor(budget / mean seconds per update of the cycle)."""
        return math.floor(budget / self.seconds_per_update)

    def updates_drawing(self, images: int) -> int:
        """The first number of updates at which a run has sampled that many images."""
        cycles, rest = divmod(images, self.images(len(self.cycle)))
        updates = cycles * len(self.cycle)
        for stage in self.cycle:
            if rest <= 0:
                break
            rest -= stage.images
            updates += 1
        return updates
