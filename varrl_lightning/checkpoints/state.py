"""The part of a LightningModule that goes into a checkpoint beside weights and optimizer, and comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import WarningCache
from torch import Tensor

from varrl_lightning.policies.averaging import check_average
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import adapter_settings, base_tensors, has_adapter, is_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.weights.fingerprint import SAMPLED, fingerprint
from varrl_lightning.weights.loading import differences

_WARNED = WarningCache()
"""What was said: a checkpoint is looked at twice, before a run and within it."""


class Resuming(L.LightningModule):
    """Counters, and the identity of the frozen weights."""

    policy: VARPolicy
    _reference: tuple[Anchor | None]
    rollouts_done: int
    updates_done: int
    bad_steps: int
    bad_steps_in_a_row: int
    seed: int
    ema_decay: float | None
    micro_batch_size: int | Literal["auto"] | None
    _frozen_digest: str | None

    @property
    def reference(self) -> Anchor | None:
        """The frozen anchor of the KL, if there is one."""
        return self._reference[0]

    @property
    def _micro_batch_size(self) -> int | None:
        """A number; None for all branches, also before `auto` has found one."""
        return None if self.micro_batch_size == "auto" else self.micro_batch_size

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the weights: all of them, or those of the adapter alone where there is one."""
        state: dict[str, Tensor] = self.state_dict()
        return {name: x for name, x in state.items() if is_adapter(name)} if has_adapter(self.policy) else state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters and the identity of the frozen weights: all that a resumed run needs beside trained weights and optimizer."""
        if has_adapter(self.policy):
            checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if is_adapter(name)}
        checkpoint["varrl"] = {
            "rollouts_done": self.rollouts_done,
            "updates_done": self.updates_done,
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "seed": self.seed,
            "micro_batch_size": self._micro_batch_size,
            "world_size": 1 if self._trainer is None else self.trainer.world_size,
            "adapter": adapter_settings(self.policy),
            "ema_decay": self.ema_decay,
            "frozen_weights": self._frozen_digest,
            "reference_path": self._frozen_source,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters; complete the weights where the checkpoint holds an adapter alone.

        Raises:
            ValueError: when the frozen weights are others than those the run began with: an adapter would sit on a wrong base, or
                the KL would change its anchor.
        """
        saved = checkpoint.get("varrl")
        if saved is None:
            raise ValueError("this checkpoint was not written by VARGRPO: it has no counters. Expected a checkpoint of a fit run.")
        adapter = adapter_settings(self.policy)
        if saved.get("adapter") != adapter:
            raise ValueError(
                f"the checkpoint has {_described(saved.get('adapter'), 'no adapter', 'an adapter')}, but the policy has "
                f"{_described(adapter, 'none', 'one')}; use the config.yaml of the run that wrote it"
            )
        check_average(saved.get("ema_decay"), self.ema_decay)
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if adapter or fitting:
            _check_frozen_weights(saved, self._frozen_digest, "base" if adapter else "reference")
        if adapter and "state_dict" in checkpoint:  # DeepSpeed's engine loads weights by itself
            if problems := differences(checkpoint["state_dict"], self.saved_tensors()):
                raise ValueError("the checkpoint does not fit the policy's adapter:\n  " + "\n  ".join(problems))
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        for name in ("rollouts_done", "updates_done", "bad_steps", "bad_steps_in_a_row"):
            setattr(self, name, saved[name])
        # As before, so that sums are rounded as before; unless memory is shared out in another way.
        if self.micro_batch_size == "auto" and self._trainer is not None and saved.get("world_size") == self.trainer.world_size:
            self.micro_batch_size = saved.get("micro_batch_size") or "auto"

    @property
    def _frozen_source(self) -> str | None:
        """From where the frozen weights were loaded; None where they were made in memory."""
        frozen = self.policy if has_adapter(self.policy) or not isinstance(self.reference, VARPolicy) else self.reference
        source: str | None = getattr(frozen.transformer, "source", None)
        return source

    def _digest_of_frozen(self) -> str | None:
        """A fingerprint of the adapter's base, else of the reference, as they were given, before a Trainer's precision."""
        if has_adapter(self.policy):
            return fingerprint(base_tensors(self.policy), SAMPLED)
        if isinstance(self.reference, VARPolicy):
            return fingerprint(self.reference.transformer.state_dict(), SAMPLED)
        return None


def _check_frozen_weights(saved: Mapping[str, Any], mine: str | None, what: str) -> None:
    """Refuse a checkpoint whose run began with other frozen weights; warn where that cannot be told.

    Args:
        what: a name for the frozen weights, `base` or `reference`.
    """
    theirs, source = saved.get("frozen_weights"), saved.get("reference_path") or "from no file"
    if None not in (theirs, mine) and theirs != mine:
        raise ValueError(
            f"the {what}'s weights differ from those that the run began with ({mine} against {theirs}); give the same base weights "
            f"as then: {source}"
        )
    if theirs is None and saved.get("reference") is not None:  # version 0.1 wrote another kind of hash under this key
        _WARNED.warn(
            f"the checkpoint was written by version 0.1, so that its {what}'s weights cannot be compared with those of this "
            f"configuration; make sure that they are the same as then: {source}"
        )


def _described(adapter: dict[str, float] | None, absent: str, present: str) -> str:
    return absent if adapter is None else f"{present} of rank {adapter['rank']:g} and alpha {adapter['alpha']:g}"
