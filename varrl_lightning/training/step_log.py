"""The form in which the metrics of a training step are logged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import lightning as L

from varrl_lightning.grpo.credit import BranchScores, Credit
from varrl_lightning.grpo.diagnostics import credit_metrics, reward_metrics
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.loggers import log_step
from varrl_lightning.training.calibration import calibration_metrics
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.training.variance_log import VarianceLog
from varrl_lightning.types import Rollout, Stage


def step_metrics(
    grpo: GRPO,
    rollout: Rollout,
    scores: BranchScores,
    credit: Credit,
    seconds: Mapping[str, float],
    skipped: bool,
    counters: RunCounters,
) -> dict[str, float]:
    """What a step's rewards, credit, clocks and counters say, and the drafts' ranks in a calibration, which `counters` collect.

    What rewards have counted themselves is that of this process.

    Args:
        seconds, skipped: those of `time_metrics`.
    """
    return {
        **reward_metrics(scores, credit, grpo.credit.eta),
        **credit_metrics(rollout.stage, rollout.schedule, credit, grpo.credit.alpha),
        **calibration_metrics(grpo, rollout.stage, scores, counters),
        **counters.metrics(),
        "stage": float(grpo.cycle.index(rollout.stage)),
        **time_metrics(rollout, len(scores), seconds, skipped),
        **{
            f"rewards/{name}/{counter}": n
            for name, term in grpo.rewards.terms.items()
            for counter, n in term.reward.counters().items()
        },
    }


def time_metrics(rollout: Rollout, branches: int, seconds: Mapping[str, float], skipped: bool = False) -> dict[str, float]:
    """Seconds of the parts of a step, and its rates.

    Args:
        branches: number of branches of the batch, over all processes.
        seconds: seconds of `rollout`, of it the `tail`s, `reward` (waiting for it), of it the `drafts` beside whole images,
            `scoring` (all of the rewards' work), `update`.
        skipped: whether no token was trained on.
    """
    stage, schedule = rollout.stage, rollout.schedule
    trained = 0 if skipped else branches * schedule.span(stage.start, stage.stop)
    parts = {name: value for name, value in seconds.items() if name not in ("scoring", "tail", "drafts")}
    return {
        "reward_seconds": seconds["scoring"],
        "tail_seconds": seconds.get("tail", 0.0),  # none where drafts are scored
        **({"draft_seconds": seconds["drafts"]} if "drafts" in seconds else {}),
        **{f"seconds/{name}": value for name, value in parts.items()},
        "step_time": sum(parts.values()),
        "images_per_second": branches * stage.images_per_branch / seconds["rollout"],
        "tokens_per_second": trained / seconds["update"],
        "num_tokens": float(trained),
    }


SHOWN = ("reward", "word_accuracy")
"""The metrics of the progress bar."""


class StepLog:
    """Logs what a training step has measured: to every logger, to the progress bar, and to the Trainer's `callback_metrics`.

    Where there are several stages, the metrics are also logged under the stage's name, as `prefix/reward`.

    Args:
        grpo: its cycle has the stages of successive rollouts.
    """

    def __init__(self, grpo: GRPO) -> None:
        self.variance = VarianceLog(grpo.noise, grpo.cycle)
        self._several = len(set(grpo.cycle)) > 1
        self._names: set[str] = set()

    def log(self, module: L.LightningModule, stage: Stage, metrics: Mapping[str, float], batch_size: int) -> None:
        """Log the metrics of a step of this stage.

        Lightning sends a metric again with each step that does not log it, which may be another stage's: hence the loggers get a
        step's own metrics from here. In `callback_metrics`, a metric that this step does not have is NaN, in place of its last
        value.
        """
        measured = self.measured(stage, metrics)
        values = measured | dict.fromkeys(self._names - measured.keys(), math.nan)
        self._names |= measured.keys()
        # By name, since Lightning refuses a metric that is on the bar in one step and not in another.
        shown = {name: value for name, value in values.items() if name in SHOWN}
        others = {name: value for name, value in values.items() if name not in SHOWN}
        module.log_dict(shown, prog_bar=True, logger=False, batch_size=batch_size)
        module.log_dict(others, logger=False, batch_size=batch_size)
        log_step(module.trainer, measured)

    def measured(self, stage: Stage, metrics: Mapping[str, float]) -> dict[str, float]:
        """The metrics of a step under all names that they are logged by."""
        measured = {**metrics, **shown_metrics(metrics)}
        if self._several:
            measured |= {f"{stage.name}/{name}": value for name, value in measured.items() if "/scale_" not in name}
        return measured


def shown_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics for the progress bar: the reward, and the word accuracy of a reward that reads; without a score, neither."""
    shown = {"reward": metrics["reward"]} if "reward" in metrics else {}
    accuracy = next((value for name, value in metrics.items() if name.endswith("/word_accuracy")), None)
    return shown if accuracy is None else {**shown, "word_accuracy": accuracy}
