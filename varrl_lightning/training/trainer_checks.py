"""Checks of the Trainer's settings: which of them work with a module that optimises by hand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, StochasticWeightAveraging
from torch.optim.lr_scheduler import ReduceLROnPlateau

from varrl_lightning.data import PromptDataModule
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import is_adapter
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.weighted import WeightedRewards

ACCUMULATION = "an optimizer step is one whole rollout: give larger batches, and the module micro_batch_size where memory is short"
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: ACCUMULATION,
    StochasticWeightAveraging: "it replaces the schedule, which steps once per rollout, by one of epochs; see ema_decay",
}
"""Lightning's callbacks that cannot work with a module that optimises by hand, and why."""


def silence_expected_warnings() -> None:
    """Silence warnings of Lightning and TensorBoard about intended behaviour."""
    # NaN stands for a metric that a stage does not have; TensorBoard's writer would warn about each, about a hundred times a step.
    logging.getLogger("tensorboardX.x2num").addFilter(_is_not_of_nan)
    # A step is complete when ModelCheckpoint saves; nothing can be resumed from the state before its update.
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # Schedules are stepped once per rollout, whether or not there was anything to learn from the first.
    warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`")
    # A policy stays in evaluation mode for good, so that nothing drops out.
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")


def _is_not_of_nan(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("NaN or Inf found in input tensor")


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse, before anything is set up, settings that Lightning ignores for modules that optimise by hand.

    Raises:
        MisconfigurationException: names the setting and what to use in its place.
    """
    if trainer.gradient_clip_val:
        raise MisconfigurationException(
            f"Trainer(gradient_clip_val={trainer.gradient_clip_val}) is not for a module that optimises by hand; give the module "
            f"max_grad_norm={trainer.gradient_clip_val} and leave the Trainer without it"
        )
    if trainer.accumulate_grad_batches != 1:
        raise MisconfigurationException(
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) is not for a module that optimises by hand; "
            + ACCUMULATION
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in REFUSED_CALLBACKS.items():
            if isinstance(callback, kind):
                raise MisconfigurationException(f"the callback {type(callback).__name__} cannot be used: {reason}")


def check_training(trainer: L.Trainer, rewards: WeightedRewards, judges: Mapping[str, Reward]) -> None:
    """Check, once the optimizers are built, that a run can learn by them and from its prompts, and that its judges can be loaded.

    Args:
        judges: rewards of evaluations. Unless they load here, what they lack is found at the first validation.

    Raises:
        MisconfigurationException: see `check_schedules`.
        ValueError: see `WeightedRewards.check_training_prompts`.
    """
    check_schedules(trainer)
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(datamodule, PromptDataModule):
        rewards.check_training_prompts(datamodule.prompts["train"])
    for judge in judges.values() if trainer.enable_validation else ():
        judge.prepare()


def check_schedules(trainer: L.Trainer) -> None:
    """Check, once the optimizers are built, that there is one, and no schedule that waits for a metric.

    Raises:
        MisconfigurationException: names what was found and what is expected.
    """
    if len(trainer.optimizers) != 1:
        raise MisconfigurationException(f"configure_optimizers must give one optimizer, got {len(trainer.optimizers)}")
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs):
        raise MisconfigurationException(
            "lr_scheduler is a ReduceLROnPlateau, which waits for a metric; schedules are stepped once per rollout, without one. "
            "Use one that counts steps (CosineAnnealingLR, LinearLR, ...), or step yours in a callback's on_validation_end"
        )


def check_dtype(trainer: L.Trainer, policy: VARPolicy, fp32_masters: bool) -> None:
    """Check that the optimizer's steps are not rounded away by the dtype of the trained weights.

    Args:
        fp32_masters: whether the optimizer steps fp32 copies of the weights.

    Raises:
        RuntimeError: with an adapter in half precision.
    """
    if fp32_masters:
        return
    if any(is_adapter(name) and p.dtype != torch.float32 for name, p in policy.named_parameters()):
        raise RuntimeError(
            f"precision {trainer.precision!r} rounds the adapter's weights away, which train in float32; use bf16-mixed, "
            "and dtype: bfloat16 of the policy's from_pretrained to halve its base"
        )
    if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in policy.parameters()):
        warnings.warn(
            f"the trained weights are {weight_dtype(policy)}: a step that changes a weight by less than its last digit "
            "(1 in 256 of it for bfloat16) changes nothing. Use precision bf16-mixed with float32 weights, or add_lora",
            stacklevel=3,
        )


def weight_dtype(policy: VARPolicy) -> str:
    """The dtype of the trained weights, by its short name."""
    return str(next(p for p in policy.parameters() if p.requires_grad).dtype).removeprefix("torch.")
