"""Budgets as numbers of updates: what equal time, equal images and equal updates come to for each recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from varrl_lightning.comparison.costs import Cost
from varrl_lightning.comparison.spec import AXES
from varrl_lightning.errors import ConfigError

TITLES = {"time": "equal time", "images": "equal images", "updates": "equal updates"}


def lengths(
    phase: str, axes: Mapping[str, Mapping[str, Any]], costs: Mapping[str, Cost], warmup: int | None
) -> dict[str, dict[str, int]]:
    """The number of updates of each recipe's run, by axis and recipe.

        time      the updates within the seconds, at the mean seconds per update of the recipe's cycle
        images    the first update at which that many images have been sampled and scored
        updates   the number itself

    Args:
        phase: for messages.
        axes: as in the spec.
        costs: of each recipe at its number of prompts.
        warmup: updates of the schedule's rise, which every run must outlast.

    Raises:
        ConfigError: when a budget is smaller than one update of a recipe, or than its warm-up.
    """
    found: dict[str, dict[str, int]] = {}
    within = {name: cost.updates_in(axes["time"]["seconds"]) for name, cost in costs.items()} if "time" in axes else {}
    for axis, budget in axes.items():
        amount = budget[AXES[axis]]
        if axis == "time":
            found[axis] = within
        elif axis == "images":
            images = min(costs[name].images(updates) for name, updates in within.items()) if amount == "fewest" else amount
            found[axis] = {name: cost.updates_drawing(images) if images >= cost.images(1) else 0 for name, cost in costs.items()}
        else:
            found[axis] = dict.fromkeys(costs, min(within.values()) if amount == "fewest" else amount)
        for name, updates in found[axis].items():
            if updates < 1:
                raise ConfigError(
                    f"{phase}.axes.{axis}: {amount} {AXES[axis]} are less than one update of {name}, which takes "
                    f"{costs[name].seconds_per_update:.3g} s and {costs[name].images(1)} images; give more"
                )
            if warmup is not None and updates <= warmup:
                raise ConfigError(
                    f"{phase}.axes.{axis}: {amount} {AXES[axis]} are {updates} updates of {name}, and the warm-up alone takes "
                    f"{warmup}; give more, or a shorter warmup"
                )
    return found
