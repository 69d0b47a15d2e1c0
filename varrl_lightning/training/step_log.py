"""The form in which the metrics of a training step are logged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from varrl_lightning.types import Rollout, Stage


def time_metrics(rollout: Rollout, branches: int, seconds: Mapping[str, float], skipped: bool = False) -> dict[str, float]:
    """Seconds of the parts of a step, and its rates.

    Args:
        branches: number of branches of the batch, over all processes.
        seconds: seconds of `rollout`, `reward` (waiting for it), `scoring` (all of the rewards' work) and `update`.
        skipped: whether no token was trained on.
    """
    stage, schedule = rollout.stage, rollout.schedule
    trained = 0 if skipped else branches * schedule.span(stage.start, stage.stop)
    parts = {name: value for name, value in seconds.items() if name != "scoring"}
    return {
        "reward_seconds": seconds["scoring"],
        **{f"seconds/{name}": value for name, value in parts.items()},
        "step_time": sum(parts.values()),
        "images_per_second": branches * stage.continuations / seconds["rollout"],
        "tokens_per_second": trained / seconds["update"],
        "num_tokens": float(trained),
    }


class StepLog:
    """Prefixes metrics with the stage's name where there are several stages; logs NaN for metrics that a stage does not have.

    Args:
        cycle: the stages of successive rollouts.
    """

    def __init__(self, cycle: Sequence[Stage]) -> None:
        self._several = len(set(cycle)) > 1
        self._names: set[str] = set()

    def complete(self, stage: Stage, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics that the progress bar does not show, the stage's (`prefix/reward`), and NaN for those of other stages alone.

        Without NaN, Lightning would repeat the last value of a metric that this step does not log, which is another stage's.
        """
        shown = shown_metrics(metrics)
        completed = {name: value for name, value in metrics.items() if name not in shown}
        if self._several:
            completed |= {f"{stage.name}/{name}": value for name, value in {**metrics, **shown}.items() if "/scale_" not in name}
        absent = dict.fromkeys(self._names - completed.keys(), math.nan)
        self._names |= completed.keys()
        return completed | absent


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics for the progress bar: the reward, and the word accuracy of a reward that reads; without a score, neither."""
    shown = {"reward": metrics["reward"]} if "reward" in metrics else {}
    accuracy = next((value for name, value in metrics.items() if name.endswith("/word_accuracy")), None)
    return shown if accuracy is None else {**shown, "word_accuracy": accuracy}
