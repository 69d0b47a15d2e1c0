"""A module in a Trainer that somebody else has set up: what it saves of its arguments, and what it asks of the Trainer."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch.optim.lr_scheduler import ReduceLROnPlateau

from varrl_lightning.configuration.specs import refuse_left_out, saved_arguments
from varrl_lightning.strategies.read_checkpoint import read_sharded

if TYPE_CHECKING:
    from typing_extensions import Self

ACCUMULATION = "an optimizer step is one whole rollout: give larger batches, and the module micro_batch_size where memory is short"
REFUSED_CALLBACKS: dict[type[Callback], str] = {
    GradientAccumulationScheduler: ACCUMULATION,
    StochasticWeightAveraging: "it replaces the schedule, which this module steps by rollouts, by one of epochs; see ema_decay",
}
"""Callbacks of Lightning's that cannot work with a module that optimises by hand, and why."""


class Guest(L.LightningModule):
    """What a class directly below this one saves of its arguments, and the settings of a Trainer that it refuses."""

    def _set_hparams(self, hp: Any) -> None:
        """Keep plain values, so that a checkpoint is read with weights_only=True and does not hold the weights twice.

        Raises:
            SpecError: when an argument comes from a checkpoint that could not hold it.
        """
        arguments = self._to_hparams_dict(hp)
        refuse_left_out(type(self).__name__, arguments)
        own = inspect.signature(self._host().__init__).parameters
        saved: MutableMapping[str, Any] = saved_arguments(arguments, own)
        if inspect.signature(type(self).__init__).parameters.keys() <= own.keys():
            saved.pop("_instantiator", None)  # of a LightningCLI; without it, arguments stay plain in what is saved after loading
        super()._set_hparams(dict(saved))

    def _host(self) -> Any:
        """The class directly below this one in the line of descent."""
        return next(cls for cls in reversed(type(self).__mro__) if issubclass(cls, Guest) and cls is not Guest)

    @_restricted_classmethod  # as Lightning's own: called on a module it would load another one and change nothing
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **named: Any) -> Self:  # noqa: N805
        """Lightning's own, which takes the folder of a sharded run too.

        Raises:
            SpecError: when an argument was an object, which a checkpoint does not hold, and is not given again; names all of them.
            ValueError: for a folder that is no checkpoint.
        """
        if isinstance(checkpoint_path, (str, Path)) and Path(checkpoint_path).is_dir():
            whole = io.BytesIO()
            torch.save(read_sharded(checkpoint_path, "weights"), whole)
            whole.seek(0)
            checkpoint_path = whole
        loaded: Self = super().load_from_checkpoint(checkpoint_path, *arguments, **named)
        return loaded

    def configure_callbacks(self) -> list[Callback]:
        """No callbacks; the first hook that Lightning calls, and so the place to look at the Trainer.

        Raises:
            MisconfigurationException: on a setting that only works for modules that do not optimise by hand; says what to use.
        """
        logging.getLogger("tensorboardX.x2num").addFilter(_not_of_nan)
        # A step is whole when ModelCheckpoint saves; the state before its update is nothing to go on from.
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer)
        return []


def _not_of_nan(record: logging.LogRecord) -> bool:
    """NaN stands for what a stage has no number of; TensorBoard's writer would say so for each, some hundred times a step."""
    return not record.getMessage().startswith("NaN or Inf found in input tensor")


def check_trainer(trainer: L.Trainer) -> None:
    """Before anything is set up: refuse what Lightning does not do for modules that optimise by hand.

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


def check_schedules(trainer: L.Trainer) -> None:
    """When the optimizers are built: one optimizer, and no schedule that waits for a metric.

    Raises:
        MisconfigurationException: says what there is and what is expected.
    """
    if len(trainer.optimizers) != 1:
        raise MisconfigurationException(f"configure_optimizers must give one optimizer, got {len(trainer.optimizers)}")
    if any(isinstance(config.scheduler, ReduceLROnPlateau) for config in trainer.lr_scheduler_configs):
        raise MisconfigurationException(
            "lr_scheduler is a ReduceLROnPlateau, which waits for a metric; schedules are stepped once per rollout, without one. "
            "Use one that counts steps (CosineAnnealingLR, LinearLR, ...), or step yours in a callback's on_validation_end"
        )
