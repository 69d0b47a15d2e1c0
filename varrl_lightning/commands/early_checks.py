"""What can be told of a configuration before weights are fetched or loaded: values out of range, typing errors, a missing GPU."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from varrl_lightning.algorithms.stages import check_calibration, cycle, spelled_out
from varrl_lightning.commands.user_errors import BUILD_ERRORS
from varrl_lightning.configuration.judge_specs import AUTOMATIC, judge_specs
from varrl_lightning.configuration.specs import built
from varrl_lightning.grpo.arguments import built_sampling, check_beside_stages
from varrl_lightning.grpo.credit import CreditOptions, MaskOptions, NormaliseOptions
from varrl_lightning.grpo.objective import KLOptions, Objective
from varrl_lightning.mask_sources.base import check_drafts
from varrl_lightning.policies.averaging import check_decay
from varrl_lightning.policies.published_names import known_schedule
from varrl_lightning.registry import MASK_SOURCES, REWARDS, check, named_class
from varrl_lightning.schedule import Schedule, square
from varrl_lightning.training.argument_checks import check_arguments
from varrl_lightning.training.guards import Guards
from varrl_lightning.training.updater import check_update
from varrl_lightning.types import Sampling, Score, Stage

_ANY = square((1,), stride=1)
"""A schedule with a scale for every resolution, in place of one that only the weights show."""


def check_model(model: Namespace) -> None:
    """Check the arguments of `VARGRPO` that need no policy and, where the names of its weights show its scales, those that do.

    Args:
        model: as parsed, without an object in it.

    Raises:
        ValueError: on a value out of its range, or an unknown name; as `VARGRPO` would once the policy is loaded.
    """
    check_arguments(vars(model))
    check_update(model.updates_per_rollout, model.max_grad_norm)
    if model.ema_decay is not None:
        check_decay(model.ema_decay)
    groups = {"kl": KLOptions, "mask": MaskOptions, "normalise": NormaliseOptions, "guards": Guards}
    options = {name: built(name, kind, _plain(model[name])) for name, kind in groups.items()}
    CreditOptions(model.eta, model.alpha, model.combine, options["mask"], options["normalise"])
    named = built("score", Score, _plain(model.score))
    score = named if isinstance(named, Score) else Score(named)
    Objective(score, model.clip_low, model.clip_high, model.ratio, model.kl_coef, options["kl"])
    sampling = built_sampling(_plain(model.sampling), Sampling())
    schedule = _schedule_of(model.policy)
    if schedule is not None:
        sampling.check(len(schedule))
    _check_stages(model, schedule)


def check_plugins(model: Namespace) -> None:
    """Check that rewards, mask source and judges are installed and take their arguments, without building them.

    Raises:
        PluginError: as `registry.check`.
        ValueError: where the mask source cannot work on the drafts that the stages score.
    """
    rewards = _plain(model.reward)
    several = isinstance(rewards, Mapping) and "class_path" not in rewards
    for name, entry in rewards.items() if several else [("", {"reward": rewards})]:
        check(REWARDS, entry.get("reward", name) if isinstance(entry, Mapping) else name)
    check(MASK_SOURCES, _plain(model.mask_source))
    source, _ = named_class(MASK_SOURCES, _plain(model.mask_source))
    check_drafts(source, _check_stages(model, _schedule_of(model.policy)))
    judges = _plain(model.evaluate_with)
    for spec in () if judges == AUTOMATIC else judge_specs(judges).values():
        check(REWARDS, spec)


def check_devices(trainer: Namespace) -> None:
    """Check that this machine has the devices that a Trainer is to run on.

    Raises:
        MisconfigurationException: says what is missing and which argument to change.
    """
    asked: dict[str, Any] = {name: trainer[name] for name in ("accelerator", "devices", "num_nodes")}
    if isinstance(trainer.strategy, str):
        asked["strategy"] = trainer.strategy
    asked |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        with _silent():  # the Trainer of the run says it all again
            L.Trainer(**asked)
    except (*BUILD_ERRORS, RuntimeError) as error:
        given = ", ".join(f"{name} {trainer[name]}" for name in ("accelerator", "devices", "num_nodes", "strategy"))
        raise MisconfigurationException(
            f"the Trainer cannot have {given}: {error}\n"
            "Set what this machine has: --trainer.accelerator auto (or cpu), --trainer.devices auto (or a number)"
        ) from error


def _check_stages(model: Namespace, schedule: Schedule | None) -> tuple[Stage, ...]:
    """The stages of the cycle; none where it is not known which scales they have."""
    check_calibration(model.calibrate_every, model.num_continuations, model.alternation, model.stages)
    if model.stages is not None:
        stages = [built("stages", Stage, _plain(stage)) for stage in model.stages]
        T = len(schedule) if schedule else max([1, *(stage.stop + 1 for stage in stages)])
        spelled = spelled_out(stages, T, model.images_per_prompt)
        check_beside_stages(spelled, model.group_size, model.num_continuations, model.suffix_starts, model.first_scale)
        return spelled
    sizes = (model.group_size, model.num_continuations, model.alternation)
    if schedule is not None:
        options = {"starts": model.suffix_starts, "first_scale": model.first_scale, "images_per_prompt": model.images_per_prompt}
        return cycle(len(schedule), schedule.resolve_m(model.m), *sizes, **options)
    m = _ANY.resolve_m(model.m) if isinstance(model.m, str) else model.m
    if m < 1:
        raise ValueError(f"m must be at least 1, and at most the number of scales, got {m}")
    cycle(m, m, *sizes, images_per_prompt=model.images_per_prompt)  # of all scales: the others are not known
    return ()


def _schedule_of(spec: Any) -> Schedule | None:
    """The scales of a policy, where its configuration shows them; of the policy inside of an adapter."""
    arguments = getattr(spec, "init_args", None)
    if arguments is None:
        return None
    if "policy" in arguments:
        return _schedule_of(arguments.policy)
    family, _, method = str(spec.class_path).rpartition(".")
    return known_schedule(family.rpartition(".")[2], vars(arguments)) if method == "from_pretrained" else None


def _plain(value: Any) -> Any:
    """A parsed value as the mapping that a configuration file has."""
    return value.as_dict() if isinstance(value, Namespace) else value


@contextmanager
def _silent() -> Iterator[None]:
    """Without Lightning's messages about the machine."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
