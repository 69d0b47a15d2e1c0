"""The checks of `varrl doctor` in their order, and how one is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from varrl_lightning.commands.doctor_channels import channels_are_kept
from varrl_lightning.commands.doctor_checks import (
    Finding,
    dropout_is_off,
    ratio_is_one,
    reader_reads,
    reward_runs,
    sampler_is_teacher_forcing,
)
from varrl_lightning.commands.doctor_continuations import continuations_pay, stages_with_continuations
from varrl_lightning.commands.doctor_disk import disk_has_room
from varrl_lightning.commands.doctor_drafts import draft_stages, drafts_rank_branches
from varrl_lightning.commands.doctor_duration import run_takes
from varrl_lightning.commands.doctor_gradients import gradients_reach_all
from varrl_lightning.commands.doctor_optimizer import optimizer_trains
from varrl_lightning.commands.doctor_patient import Patient
from varrl_lightning.commands.doctor_reference import adapter_is_neutral, reference_is_policy
from varrl_lightning.commands.doctor_rewards import groups_vary, rewards_score
from varrl_lightning.commands.doctor_tokens import tokens_are_predicted
from varrl_lightning.policies.known_picture import KnownPicture
from varrl_lightning.types import Stage

CHECKS = (
    *("plugins", "weights", "prompts", "disk", "optimizer", "tokens", "channels", "ratio", "sampler", "dropout", "reference"),
    *("adapter", "reader", "reward", "rewards", "variance", "gradients", "duration"),
)
WITHIN, LEAST = 120.0, 20.0
"""Seconds in which all checks are to be done but for loading the weights, and those that each of the last ones has in any case."""
NEED = {"variance": {"reward"}, "duration": {"reward", "gradients"}, "draft": {"reward"}, "continuations": {"reward"}}
"""Checks without which another cannot be made."""


def checklist(
    patient: Patient, picture: KnownPicture | None, left: Callable[[], float]
) -> Iterator[tuple[str, Callable[[], Finding]]]:
    """The checks that need the model, by name.

    Args:
        left: seconds until they are to be done.
    """
    model, data = patient.model, patient.data
    policy, grpo, train = model.policy, model.grpo, data.prompts["train"]
    known = picture or policy.known_picture
    yield "disk", lambda: disk_has_room(model, patient.trainer, patient.length, bool(data.evaluated))
    yield "optimizer", lambda: optimizer_trains(model, patient.length.steps)
    yield "tokens", lambda: tokens_are_predicted(policy, known, patient.prompts, patient.trained)
    yield "channels", lambda: channels_are_kept(policy, known)
    yield "ratio", lambda: ratio_is_one(policy, grpo, patient.rollouts, model.micro_batches.number)
    yield "sampler", lambda: sampler_is_teacher_forcing(policy, grpo, patient.rollouts)
    yield "dropout", lambda: dropout_is_off(policy, grpo, patient.rollouts[0])
    yield "reference", lambda: reference_is_policy(model, patient.rollouts, patient.apart)
    yield "adapter", lambda: adapter_is_neutral(model, patient.rollouts[0], patient.apart)
    yield "reader", lambda: reader_reads(model.rewards, model.judges, train, model.guards)
    yield "reward", lambda: reward_runs(model.rewards, patient.rollouts[0])
    yield "rewards", lambda: rewards_score(model.rewards, model.judges, patient.rollouts[0])
    yield "variance", lambda: groups_vary(patient.trials, model.rewards)
    yield "gradients", lambda: gradients_reach_all(model, lambda: patient.gradients, patient.prompts)
    yield "duration", lambda: run_takes(model, patient.trials, patient.gradients, data.batch_size, **patient.plan)
    for stage in draft_stages(model.cycle):
        yield "draft", partial(_drafts, patient, stage, left)
    for stage in stages_with_continuations(model.cycle):
        yield "continuations", partial(_continuations, patient, stage, left)


def _drafts(patient: Patient, stage: Stage, left: Callable[[], float]) -> Finding:
    model, train = patient.model, patient.data.prompts["train"]
    seconds = max(left(), LEAST)
    return drafts_rank_branches(model.policy, model.grpo, train, stage, model.seed, model.images_at_once, seconds)


def _continuations(patient: Patient, stage: Stage, left: Callable[[], float]) -> Finding:
    return continuations_pay(patient.model, stage, patient.data.prompts["train"], max(left(), LEAST))


def made(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding of a check and its seconds; a failed one for any error, since a user's code may raise anything."""
    begun = time.perf_counter()
    try:
        finding = check()
    except Exception as error:
        finding = Finding(name, False, "it failed", f"{type(error).__name__}: {error}")
    return replace(finding, seconds=time.perf_counter() - begun)


def not_checked(name: str) -> Finding:
    """The finding of a check that an earlier failure makes impossible."""
    return Finding(name, False, "not checked", "Mend what is above first.")
