"""Alarms when the training reward rises while something that it should stand for gets worse."""

from __future__ import annotations

import json
import math
import time
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from varrl_lightning.callbacks.evaluation_prompts import validation_prompts
from varrl_lightning.callbacks.observation import observe, samplers
from varrl_lightning.callbacks.run_folder import begin_run, dry, run_folder
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.loggers import log_measured
from varrl_lightning.metrics.hacking import HackingWatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt

ALARMS = "alarms.json"
"""The file in the run folder."""


class RewardHacking(Callback):
    """Checks the same validation prompts before the first step and at each validation, and compares with the first check.

    The alarm comes when, at `patience` checks in a row, the training reward has risen while a judge (`evaluate_with`), the word
    accuracy of a judge that reads, or the diversity within groups has fallen, each by more than two paired standard errors over the
    prompts; diversity, which falls in honest training too, by two thirds besides. It names what fell, the step and both changes, as
    a warning and in `alarms.json` of the run folder.

    Images are sampled as in training. Where that is not the policy's default, reward, judges and diversity under the default are
    watched too, by `deployed/NAME`: what pleases the reward in training need not be what the model shows when it is used.

    Logged are `hacking/NAME/mean`, `hacking/NAME/change` and its `..._standard_error` for what is watched: `reward`,
    `judges/NAME`, `judges/NAME/word_accuracy`, `diversity`. Further `hacking/NAME/mean` for what the images look like (`observe`),
    of which nothing is bad in itself, `hacking/alarms`, how many there have been, and `hacking/seconds`, what the check took.

    Training does not change. Checkpoints hold the first check, so that a resumed run goes on.

    Args:
        prompts: the first so many validation prompts, of one image size; at least 2.
        groups: how many of them are sampled in groups, for their diversity; 0 leaves it out.
        group_size: images of such a group, at least 2.
        patience: checks in a row.
        stop: whether an alarm ends the run, with its state saved.
        needs_judge: whether it does nothing in a run without `evaluate_with`, as the one among the default callbacks.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(
        self,
        prompts: int = 64,
        groups: int = 16,
        group_size: int = 4,
        patience: int = 2,
        stop: bool = False,
        needs_judge: bool = False,
    ) -> None:
        for name, value, least in (
            ("prompts", prompts, 2),
            ("groups", groups, 0),
            ("group_size", group_size, 2),
            ("patience", patience, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.prompts, self.groups, self.group_size = prompts, groups, group_size
        self.stop, self.needs_judge = stop, needs_judge
        self.watch = HackingWatch(patience)
        self.records: list[dict[str, Any]] = []

    @property
    def alarms(self) -> list[str]:
        """The sentences of all alarms so far."""
        return [record["text"] for record in self.records]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the first check, of a run that begins."""
        module = vargrpo(pl_module)
        if dry(trainer):
            return
        begin_run(trainer, trainer.ckpt_path)
        if self.records or (run_folder(trainer) / ALARMS).exists():
            self._write(trainer)  # without those of steps that are made again
        if not self.watch.first and module.rollouts_done == 0:
            self._check(trainer, module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check, and compare with the first time."""
        module = vargrpo(pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking and module.rollouts_done:
            self._check(trainer, module)

    def _check(self, trainer: L.Trainer, module: VARGRPO) -> None:
        prompts = self._prompts(trainer)
        if len(prompts) < 2 or (self.needs_judge and not module.judges):
            return
        began = time.monotonic()
        watched: dict[str, Tensor] = {}
        metrics: dict[str, float] = {}
        for way, sampling in samplers(module).items():
            seen = observe(module, prompts, sampling, self.groups, self.group_size)
            watched |= {f"{way}{name}": values for name, values in seen.watched.items()}
            metrics |= {f"hacking/{way}{name}": value for name, value in seen.logged.items()}
        metrics |= {f"hacking/{name}/mean": float(values.nanmean()) for name, values in watched.items()}
        reward = watched.pop("reward")
        alarms = self.watch.check(module.rollouts_done, reward, watched)
        for name, change in self.watch.changes.items():
            metrics |= {f"hacking/{name}/change": change.mean, f"hacking/{name}/change_standard_error": change.standard_error}
        self.records += [alarm.as_json() for alarm in alarms]
        metrics |= {"hacking/alarms": float(len(self.records)), "hacking/seconds": time.monotonic() - began}
        log_measured(trainer, {name: value for name, value in metrics.items() if not math.isnan(value)})
        if alarms and trainer.is_global_zero:
            self._write(trainer)
            sentences = "; ".join(map(str, alarms))
            warnings.warn(f"{sentences}: training may have found a way to please the reward alone. Look at samples/", stacklevel=2)
        if alarms and self.stop:
            trainer.should_stop = True

    def _write(self, trainer: L.Trainer) -> None:
        """All alarms so far, those of an interrupted run among them, for the report."""
        if trainer.is_global_zero:
            replace_text(run_folder(trainer) / ALARMS, json.dumps(self.records, indent=2) + "\n")

    def _prompts(self, trainer: L.Trainer) -> list[Prompt]:
        """The first validation prompts, of the size of the very first."""
        found = validation_prompts(trainer)
        return [prompt for prompt in found if prompt.size == found[0].size][: self.prompts]

    def state_dict(self) -> dict[str, Any]:
        """The first check and the alarms, for a resumed run."""
        return {"watch": self.watch.state_dict(), "alarms": self.records}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the run did."""
        self.watch.load_state_dict(state_dict["watch"])
        self.records = list(state_dict["alarms"])
