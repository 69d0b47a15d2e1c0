"""`varrl doctor --memory`: the memory of a run by phase, compared with a device's, and the setting to change."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table

from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.commands.user_errors import BUILD_ERRORS, reraise_as
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import FAILED, ConfigError, StartError
from varrl_lightning.memory import GIB, MARGIN, Forecast, Phase, Simulation, SimulationError, available_memory
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.published import FAMILIES, published
from varrl_lightning.rewards.weighted import ask_for_groups
from varrl_lightning.strategies import configured_kind
from varrl_lightning.types import Prompt

COLUMNS = {
    "grads": ("gradients",),
    "optim": ("moments", "fp32 copy", "copy to return to"),
    "rollout": ("rollout", "prompts", "whole group"),
    "working": ("working",),
}
"""Headings of the table, with the parts that each sums; all other parts are in the column `weights`."""


def forecast_of(config: VarrlCLI) -> Forecast:
    """The memory that `varrl fit` with this configuration would need on each process.

    Raises:
        StartError: when the policy is not one of the public models and its weights are not on this machine.
    """
    fit = config.config.fit
    policy = published(fit.model.policy) or _loaded(fit.model.policy)
    model = _sketched(fit.model, policy)
    accelerator, world_size = str(fit.trainer.accelerator), processes_of(fit.trainer)
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", 0) if on_gpu and torch.cuda.is_available() else torch.device("cpu")
    kind, options = configured_kind(fit.trainer.strategy, world_size)
    precision = _precision(str(fit.trainer.precision or "32-true"), kind)
    simulation = Simulation(policy, model.grpo, precision, device)
    with reraise_as(StartError, ValueError, OSError):
        simulation.read(_longest(fit))
    micro = model.micro_batch_size
    return Forecast(
        policy,
        simulation,
        model.cycle,
        model.optimizer_factory,
        int(fit.data.batch_size),
        1 if micro == "auto" else micro,
        model.images_at_once,
        kind,
        world_size,
        averaged=bool(getattr(fit.model, "ema_decay", None)),
        updates_per_rollout=model.updater.updates_per_rollout,
        keeps_copy=_keeps_copy(fit.trainer.callbacks),
        foreach=on_gpu,
        **options,
    )


def _loaded(spec: Any) -> VARPolicy:
    """A policy that is not a public model, loaded with its weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--policy", type=VARPolicy)
    try:
        with reraise_as(StartError, *BUILD_ERRORS):
            policy: VARPolicy = parser.instantiate(Namespace(policy=spec)).policy  # type: ignore[no-untyped-call]
    except StartError as error:
        raise StartError(
            f"the sizes of model.policy are not known: its weights could not be read ({error}), and its path has not the name of a "
            f"public model of {', '.join(FAMILIES)}. Give the path of the weights, or the published file name"
        ) from error
    return policy


def _sketched(arguments: Namespace, policy: VARPolicy) -> VARGRPO:
    """The module without its reward and mask source, whose memory is not counted."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(VARGRPO, "model")
    plain = arguments.clone()
    plain.policy, plain.reward, plain.mask_source, plain.evaluate_with = (
        policy,
        _NoReward(ask_for_groups(plain.reward)),
        "full",
        None,
    )
    with reraise_as(ConfigError, *BUILD_ERRORS):
        model: VARGRPO = parser.instantiate(Namespace(model=plain)).model  # type: ignore[no-untyped-call]
    return model


class _NoReward:
    """Stands for the configured reward, which need not be loaded, since its memory is not counted."""

    def __init__(self, whole_groups: bool) -> None:
        self.whole_groups = whole_groups

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return images.new_zeros(len(images))


def _longest(fit: Namespace) -> Prompt:
    data = PromptDataModule(train=fit.data.train, batch_size=1)
    data.setup("fit")
    return max(data.prompts["train"], key=lambda prompt: len(prompt.text))


def processes_of(trainer: Namespace) -> int:
    """Processes that a Trainer starts."""
    devices = trainer.devices
    if isinstance(devices, str) and re.fullmatch(r"\d+", devices):
        devices = int(devices)
    if devices in ("auto", -1, "-1"):
        return int(trainer.num_nodes) * max(torch.cuda.device_count(), 1)
    if isinstance(devices, str):
        devices = [part for part in devices.split(",") if part.strip()]
    return int(trainer.num_nodes) * (devices if isinstance(devices, int) else len(devices))


def _precision(precision: str, kind: str) -> str:
    """The precision in which a strategy computes: DeepSpeed uses half precision without autocast."""
    names = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}
    precision = names.get(precision, precision)
    return precision.replace("mixed", "true") if kind.startswith("zero") else precision


def _keeps_copy(callbacks: Any) -> bool | None:
    """The setting of the callback `SafeStop`, which every run has."""
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if str(getattr(callback, "class_path", "")).endswith("SafeStop"):
            keep_copy: bool | None = getattr(callback.init_args, "keep_copy", None)
            return keep_copy
    return None


def limit_of(gibibytes: float | None) -> tuple[int, str]:
    """The memory of a device in bytes, as given or else of this machine's device, and the source of the number."""
    if gibibytes is not None:
        return int(gibibytes * GIB), "--memory-limit"
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    return available_memory(torch.device("cpu")), "available on this machine, which has no GPU"


def report_memory(config: VarrlCLI, limit_gibibytes: float | None, as_json: bool) -> int:
    """Print the table or its JSON; the exit status is 0 where everything fits."""
    _say("Simulating sampling and training without weights; minutes for a model of billions of parameters ...")
    with reraise_as(StartError, SimulationError):
        forecast = forecast_of(config)
        phases = forecast.phases()
    limit, source = limit_of(limit_gibibytes)
    usable = int((1 - MARGIN) * limit)
    peak = max(phases, key=lambda phase: phase.total)
    if peak.total > usable:
        _say("It does not fit. Looking for settings that do ...")
    lines = advice(forecast, phases, usable)
    if config.config.fit.model.micro_batch_size == "auto" and (most := forecast.largest_micro_batch(usable)):
        lines.append(f"micro_batch_size: auto would be about {most}; the table has 1")
    if as_json:
        described = [asdict(phase) | {"total": phase.total} for phase in phases]
        answer = {"phases": described, "peak": peak.total, "limit": limit, "fits": peak.total <= usable, "advice": lines}
        print(json.dumps(answer, indent=2))
    else:
        console = Console()
        console.width = max(console.width, 100)  # numbers must not be cut off
        console.print(table_of(forecast, phases))
        verdict = "fits" if peak.total <= usable else "does NOT fit"
        print(
            f"Peak {peak.total / GIB:.2f} GiB ({' '.join(filter(None, (peak.name, peak.stage)))}): {verdict} {limit / GIB:.2f} GiB "
            f"({source}), of which {MARGIN:.0%} stay free for workspaces and fragments. Rewards and mask sources are not counted."
        )
        print("\n".join(lines))
    return 0 if peak.total <= usable else FAILED


def _say(line: str) -> None:
    """What takes long, to a person who waits; standard output has the answer alone."""
    print(line, file=sys.stderr, flush=True)


def table_of(forecast: Forecast, phases: Sequence[Phase]) -> Table:
    """A table with phases in rows and parts in columns; in GiB, or in MiB for small models."""
    unit, size_of_unit = ("GiB", GIB) if max(phase.total for phase in phases) >= GIB else ("MiB", GIB // 1024)
    world = f"{forecast.strategy}, {forecast.world_size} process{'es' if forecast.world_size > 1 else ''}"
    parts = ", ".join(f"{name} {size / size_of_unit:.2f}" for name, size in forecast.static.items() if size)
    if forecast.optimizer_problem:
        parts += f"; moments taken as AdamW's, since the optimizer could not be asked: {forecast.optimizer_problem}"
    table = Table(title=f"{unit} of each process ({world})", title_justify="left", caption_justify="left")
    table.caption = f"always there: {parts}"
    for heading in ("phase", "stage", "weights", *COLUMNS, "total"):
        table.add_column(heading, justify="left" if heading in ("phase", "stage") else "right", no_wrap=True)
    for phase in phases:
        sums = [sum(phase.parts.get(name, 0) for name in names) for names in COLUMNS.values()]
        figures = (phase.total - sum(sums), *sums, phase.total)
        table.add_row(phase.name, phase.stage, *(f"{size / size_of_unit:.2f}" for size in figures))
    return table


def advice(forecast: Forecast, phases: Sequence[Phase], usable: int) -> list[str]:
    """Advice for each kind of phase that does not fit: the setting to change, and the value that fits."""
    settings = dict.fromkeys(phase.setting for phase in phases if phase.total > usable)
    fixed = sum(forecast.static.values()) + forecast.gradients
    if fixed > usable:
        return [_static_advice(forecast, fixed, usable)]
    return [_ADVICE[setting](forecast, usable) for setting in settings]


def _static_advice(forecast: Forecast, fixed: int, usable: int) -> str:
    processes = math.ceil(forecast.world_size * fixed / max(usable, 1))
    return (
        f"weights, gradients and moments alone take {fixed / GIB:.2f} GiB: train an adapter (add_lora, with dtype: bfloat16 of the "
        f"base), or shard them: trainer.strategy fsdp2 with at least {processes} devices"
    )


def _step_advice(forecast: Forecast, usable: int) -> str:
    step = sum(forecast.static.values()) + forecast.gradients + forecast.temporary
    if forecast.copy and step <= usable:
        return (
            f"the copy that a failing step returns to takes {forecast.copy / GIB:.2f} GiB: give trainer.callbacks a SafeStop with "
            "keep_copy: false"
        )
    return _static_advice(forecast, step, usable)


def _parts_advice(forecast: Forecast, usable: int) -> str:
    most = forecast.largest_part(usable)
    if most:
        return f"set model.images_at_once to {most} (now {forecast.images_at_once or 'all'})"
    return "not even the images of one branch can be sampled at once: lower num_continuations or the image size"


def _micro_advice(forecast: Forecast, usable: int) -> str:
    most = forecast.largest_micro_batch(usable)
    if most:
        return f"set model.micro_batch_size to {most} (now {forecast.micro_batch_size or 'all'})"
    off = getattr(forecast.simulation.policy.transformer, "gradient_checkpointing", None) is False
    more = "set the policy's gradient_checkpointing to true" if off else "shorten the trained span (m) or the image size"
    return f"not even one branch can be trained at once: {more}, or take smaller batches (data.batch_size)"


_ADVICE = {"images_at_once": _parts_advice, "micro_batch_size": _micro_advice, "strategy": _step_advice}
