"""Which metric decides what the best checkpoint is: a number of what is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn

from varrl_lightning.errors import RunStoppedError, did_you_mean
from varrl_lightning.module import VARGRPO


@dataclass(frozen=True)
class Choice:
    """A metric, and why it decides, for the run's log."""

    name: str
    reason: str


def deciding_metric(module: VARGRPO, logged: Iterable[str]) -> Choice:
    """The metric whose highest value makes the best checkpoint; see `Checkpoints`.

    Args:
        logged: names of the metrics that validation and the steps before it have logged.
    """
    weights = {name: term.weight for name, term in module.rewards.terms.items()}
    if module.monitor is not None:
        return Choice(module.monitor, "it is model.monitor")
    validated = module.evaluator.collected.get("val")
    reader = None if validated is None else validated.reader
    # Of a validation that is not the module's own it is not known which reward has read.
    trained = min(weights.values()) > 0 if reader is None else weights[reader] > 0
    if trained and "val/word_accuracy" in logged:
        which = "a reward" if reader is None else f"the reward {reader!r}"
        return Choice("val/word_accuracy", f"{which} that is trained reads words")
    several = sum(weight != 0 for weight in weights.values()) > 1
    if several and module.grpo.credit.combine != "weighted_sum":
        return Choice("val/standardised_reward", "the sum of the trained rewards, each standardised by the first validation")
    return Choice("val/reward", "the sum of the trained rewards by their weights" if several else "the reward that is trained")


def refuse_unknown(name: str, logged: Iterable[str]) -> None:
    """Say that the metric which is to decide does not exist, and which do.

    Metrics of validation are all known after the first, and none of a test will come; one of training may come with a later stage,
    so that it is only warned of.

    Raises:
        RunStoppedError: for a name that begins with `val/` or `test/`.
    """
    known = sorted(logged)
    found = f"model.monitor: no metric named {name!r} is logged.{did_you_mean(name, known)} There are: {', '.join(known)}."
    if name.startswith(("val/", "test/")):
        raise RunStoppedError(f"{found} Go on with --ckpt_path last and another model.monitor, or without one.")
    rank_zero_warn(f"{found} Until it is, best.ckpt is not saved.")
