"""What `varrl fit` would train, built for the checks of `varrl doctor`, with what several of them share."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from jsonargparse import Namespace

from varrl_lightning.checkpoints.checking import load_checkpoint
from varrl_lightning.commands.doctor_checks import sample_stages
from varrl_lightning.commands.doctor_gradients import StageGradients, stage_gradients
from varrl_lightning.commands.doctor_memory import processes_of
from varrl_lightning.commands.doctor_run import RunLength
from varrl_lightning.commands.doctor_tokens import loads_weights
from varrl_lightning.commands.doctor_trials import Trial, tried
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.one_process import device_of
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import RewardError, StartError
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt, Rollout, Stage

PROMPTS = 2
"""Prompts of the rollouts of which log-probabilities are compared."""


class Patient:
    """A model and its data, and what its run is to be.

    Args:
        model: on the device of the checks.
        data: with its prompts read, before anything else is asked for.
        trainer: arguments of the run's Trainer.
        trained: whether the policy is loaded from weights.
        apart: why policy and base may differ before the first step, in words; empty where they must not.
    """

    def __init__(
        self, model: VARGRPO, data: PromptDataModule, trainer: Namespace, *, trained: bool = False, apart: str = ""
    ) -> None:
        self.model, self.data, self.trainer, self.trained, self.apart = model, data, trainer, trained, apart

    @classmethod
    def of(cls, config: ParsedConfig) -> Patient:
        """What a configuration would train, on the device that its run would have."""
        model, data = config.build()
        trainer, policy = config.get("trainer"), config.get("model.policy")
        model.to(device_of(None, trainer.accelerator))
        if isinstance(model.reference, VARPolicy):
            model.reference.to(model.policy.device)
        apart = "where the adapter begins from a trained one" if _has_adapter_folder(policy) else ""
        return cls(model, data, trainer, trained=loads_weights(policy), apart=apart)

    @property
    def has_batches(self) -> bool:
        """Whether the training prompts could be read, and make a batch."""
        return bool(self.data.state_dict())

    def load_checkpoint(self, config: ParsedConfig) -> None:
        """Load the checkpoint that a configuration was given with, if there is one.

        Raises:
            StartError: when there is none of that name, or it does not fit.
        """
        with reraise_as(StartError, ValueError, OSError):
            if checkpoint := config.checkpoint():
                load_checkpoint(checkpoint, self.model, self.model.saved_tensors())
                self.apart = f"at the checkpoint {checkpoint}"

    @cached_property
    def prompts(self) -> list[Prompt]:
        """The first of the first batch."""
        return next(iter(self.data.train_dataloader()))[:PROMPTS]

    @cached_property
    def length(self) -> RunLength:
        """How long the run is."""
        batches = len(self.data.train_dataloader())
        updates, validates = self.model.updater.updates_per_rollout, bool(self.data.prompts.get("validation"))
        return RunLength.of(self.trainer, batches, updates, validates)

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """One of each stage, of `prompts`."""
        model = self.model
        return sample_stages(model.policy, model.grpo, self.prompts, model.seed, model.images_at_once)

    @cached_property
    def trials(self) -> dict[Stage, list[Trial]]:
        """A few groups of each stage, scored."""
        return tried(self.model, self.data.prompts["train"])

    @cached_property
    def gradients(self) -> dict[Stage, StageGradients]:
        """Those of a batch of each stage that teaches something; where the rewards fail, of any."""
        found: dict[Stage, StageGradients] = {}
        for rollout in self.rollouts:
            torch.manual_seed(self.model.seed)
            taught = self._taught(rollout.stage)
            found[rollout.stage] = stage_gradients(self.model, *(taught or (rollout, None)))
        return found

    def _taught(self, stage: Stage) -> tuple[Rollout, Credit] | None:
        with suppress(RewardError):
            return next(((x.rollout, x.credit) for x in self.trials[stage] if bool(x.credit.policy_weights.any())), None)
        return None

    @property
    def elsewhere(self) -> str:
        """In what the run's devices differ from the one of the checks; empty where they do not."""
        asked, here = str(self.trainer.accelerator), self.model.policy.device.type
        own = {"cpu": "cpu", "cuda": "gpu"}.get(here, here)
        return "" if asked in ("auto", own, here) else f"trainer.accelerator is {asked}, and this is {here}"

    @property
    def plan(self) -> dict[str, Any]:
        """How long the run is, and where: arguments of `run_takes`."""
        return {"length": self.length, "elsewhere": self.elsewhere, "processes": processes_of(self.trainer)}


def _has_adapter_folder(spec: Any) -> bool:
    arguments = vars(spec).get("init_args") if hasattr(spec, "class_path") else None
    if arguments is None:
        return False
    return vars(arguments).get("adapter") is not None or any(map(_has_adapter_folder, vars(arguments).values()))
