"""Alarms when the training reward rises while something that it should stand for gets worse."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from varrl_lightning.callbacks.evaluation_prompts import validation_prompts
from varrl_lightning.callbacks.run_folder import dry
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.loggers import log_measured
from varrl_lightning.metrics.hacking import HackingWatch
from varrl_lightning.metrics.image_statistics import group_diversity, image_statistics
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt


class RewardHacking(Callback):
    """Checks the same validation prompts before the first step and at each validation, and compares with the first check.

    The alarm comes when, at `patience` checks in a row, the training reward has risen while a judge (`evaluate_with`) or the
    diversity within groups has fallen, each by more than two paired standard errors over the prompts. It names what fell, the step
    and both changes, as a warning. Further numbers of the images are logged without an alarm: none of them is bad in itself.

    Logged are `hacking/NAME/mean` and `hacking/NAME/change`, `..._standard_error` for `reward`, `judges/NAME`, `diversity` and the
    numbers of `image_statistics`, and with a reward that reads `extra_characters`, the characters read beyond those wanted; also
    `hacking/alarms`, how many there have been, and `hacking/seconds`, what the check took.

    Training does not change. Checkpoints hold the first check, so that a resumed run goes on.

    Args:
        prompts: the first so many validation prompts, of one image size; at least 2.
        groups: how many of them are sampled in groups, for their diversity; 0 leaves it out.
        group_size: images of such a group, at least 2.
        patience: checks in a row.
        stop: whether an alarm ends the run, with its state saved.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(self, prompts: int = 64, groups: int = 16, group_size: int = 4, patience: int = 2, stop: bool = False) -> None:
        for name, value, least in (
            ("prompts", prompts, 2),
            ("groups", groups, 0),
            ("group_size", group_size, 2),
            ("patience", patience, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.prompts, self.groups, self.group_size, self.stop = prompts, groups, group_size, stop
        self.watch = HackingWatch(patience)
        self.alarms: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the first check, of a run that begins."""
        module = vargrpo(pl_module)
        if not dry(trainer) and not self.watch.first and module.rollouts_done == 0:
            self._check(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check, and compare with the first time."""
        module = vargrpo(pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and module.rollouts_done:
            self._check(trainer, module)

    def _check(self, trainer: L.Trainer, module: VARGRPO) -> None:
        prompts = self._prompts(trainer)
        if len(prompts) < 2:
            return
        began = time.monotonic()
        probe = module.evaluator.probe(prompts, module.parallel)
        watched = {name: evaluation.values.cpu() for name, evaluation in probe.items() if name != "reward"}
        if self.groups:
            groups = module.evaluator.groups(prompts[: self.groups], self.group_size, module.parallel)
            watched["diversity"] = group_diversity(groups).cpu()
        statistics = observed(probe["reward"])
        alarms = self.watch.check(module.rollouts_done, probe["reward"].values.cpu(), watched)
        metrics = dict(self._metrics(probe["reward"].values, watched, statistics))
        self.alarms += [str(alarm) for alarm in alarms]
        metrics |= {"hacking/alarms": float(len(self.alarms)), "hacking/seconds": time.monotonic() - began}
        log_measured(trainer, {name: value for name, value in metrics.items() if not math.isnan(value)})
        if alarms and trainer.is_global_zero:
            found = "; ".join(str(alarm) for alarm in alarms)
            warnings.warn(f"{found}: training may have found a way to please the reward alone. Look at samples/", stacklevel=2)
        if alarms and self.stop:
            trainer.should_stop = True

    def _metrics(self, reward: Tensor, watched: Mapping[str, Tensor], statistics: Mapping[str, Tensor]) -> list[tuple[str, float]]:
        means = {"reward": reward, **watched, **statistics}
        metrics = [(f"hacking/{name}/mean", float(values.nanmean())) for name, values in means.items()]
        for name, change in self.watch.changes.items():
            metrics += [(f"hacking/{name}/change", change.mean), (f"hacking/{name}/change_standard_error", change.standard_error)]
        return metrics

    def _prompts(self, trainer: L.Trainer) -> list[Prompt]:
        """The first validation prompts, of the size of the very first."""
        found = validation_prompts(trainer)
        return [prompt for prompt in found if prompt.size == found[0].size][: self.prompts]

    def state_dict(self) -> dict[str, Any]:
        """The first check and the alarms, for a resumed run."""
        return {"watch": self.watch.state_dict(), "alarms": self.alarms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run did."""
        self.watch.load_state_dict(state_dict["watch"])
        self.alarms = list(state_dict["alarms"])


def observed(evaluation: Evaluation) -> dict[str, Tensor]:
    """What the images look like, and how many characters were read beyond those wanted."""
    found = {name: values.cpu() for name, values in image_statistics(evaluation.images).items()}
    if evaluation.texts is not None:
        wanted = [sum(map(len, prompt.words)) for prompt in evaluation.prompts]
        read = [sum(map(len, words)) for words in evaluation.texts]
        extra = torch.tensor([max(0, r - w) for r, w in zip(read, wanted, strict=True)], dtype=torch.float32)
        found["extra_characters"] = extra.masked_fill(~evaluation.was_read().cpu(), torch.nan)
    return found
