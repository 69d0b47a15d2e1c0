"""Tells whether a reward rises while what it stands for gets worse, from the same prompts at two times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

ERRORS = 2.0
"""Paired standard errors by which something has to change, to count as a change."""
LOST = {"diversity": 2 / 3}
"""Share of its first mean that a quantity must have lost besides, by the last part of its name; any share where it is not named.

Images of a prompt become more alike in honest training too, as more of them are right: in the quick-start by half.
"""


@dataclass(frozen=True)
class Change:
    """The mean of differences over prompts, and its standard error.

    Examples:
        >>> change = Change.of(torch.tensor([0.0, 0.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 1.0, 2.0]))
        >>> change.mean, round(change.standard_error, 3), change.rises, change.falls
        (1.5, 0.289, True, False)
    """

    mean: float
    standard_error: float

    @staticmethod
    def of(before: Float[Tensor, " N"], after: Float[Tensor, " N"]) -> Change:
        """The paired change; prompts without a number at either time are left out. NaN for fewer than two."""
        difference = after.double() - before.double()
        difference = difference[torch.isfinite(difference)]
        n = len(difference)
        if n < 2:
            return Change(math.nan, math.nan)
        return Change(float(difference.mean()), float(difference.std()) / math.sqrt(n))

    @property
    def rises(self) -> bool:
        """Whether it is above 0 by more than two standard errors."""
        return self.mean > ERRORS * self.standard_error

    @property
    def falls(self) -> bool:
        """Whether it is below 0 by more than two standard errors."""
        return self.mean < -ERRORS * self.standard_error


@dataclass(frozen=True)
class Alarm:
    """A reward that rises while something falls.

    Args:
        name: what falls, such as `judges/tesseract` or `diversity`.
        step: training step of the check.
        fall: by how much, since the first check.
        rise: by how much the reward rose.

    Examples:
        >>> str(Alarm("judges/tesseract", 40, fall=Change(-0.2, 0.05), rise=Change(0.5, 0.1)))
        'at step 40 the training reward has risen by 0.5 ± 0.1, but judges/tesseract has fallen by 0.2 ± 0.05'
    """

    name: str
    step: int
    fall: Change
    rise: Change

    def as_json(self) -> dict[str, Any]:
        """The alarm for `alarms.json`: name, step, both changes with their standard errors, and the sentence."""
        return {**asdict(self), "text": str(self)}

    def __str__(self) -> str:
        rise, fall = (f"{abs(change.mean):.3g} ± {change.standard_error:.2g}" for change in (self.rise, self.fall))
        return f"at step {self.step} the training reward has risen by {rise}, but {self.name} has fallen by {fall}"


@dataclass
class HackingWatch:
    """Compares checks on fixed prompts with the first one.

    It alarms about a name when, for so many checks in a row, the reward has been above its first value and the name below its own,
    each by more than two paired standard errors, and the name by more than its share of `LOST`. It says so once, until one of them
    recovers.

    Args:
        patience: how many checks in a row.
        first: the numbers of each prompt at the first check, by name; filled by it.
        lasted: for how many checks a name has been bad, up to the last one.
        changes: what has changed since the first check, at the last one.

    Examples:
        >>> watch = HackingWatch(patience=2)
        >>> low, high = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.7, 0.8, 0.9])
        >>> len(watch.check(0, low, {"judge": high})), len(watch.check(5, high, {"judge": low}))
        (0, 0)
        >>> watch.check(9, high, {"judge": low})[0].name
        'judge'
    """

    patience: int = 2
    first: dict[str, Tensor] = field(default_factory=dict)
    lasted: dict[str, int] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)

    def check(self, step: int, reward: Float[Tensor, " N"], watched: Mapping[str, Tensor]) -> list[Alarm]:
        """The alarms that are due with this check.

        Args:
            reward: the training reward of each prompt.
            watched: what should not fall, by name: a number of each prompt, for the same prompts each time.
        """
        now = {"reward": reward, **watched}
        for name, values in now.items():
            self.first.setdefault(name, values.clone())
        self.changes = {name: Change.of(self.first[name], values) for name, values in now.items()}
        rise, alarms = self.changes["reward"], []
        for name in watched:
            least = LOST.get(name.rpartition("/")[2], 0.0) * float(self.first[name].nanmean())
            bad = rise.rises and self.changes[name].falls and -self.changes[name].mean > least
            self.lasted[name] = self.lasted.get(name, 0) + 1 if bad else 0
            if self.lasted[name] == self.patience:
                alarms.append(Alarm(name, step, self.changes[name], rise))
        return alarms

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"first": self.first, "lasted": self.lasted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as another watch did."""
        self.first, self.lasted = dict(state["first"]), dict(state["lasted"])
