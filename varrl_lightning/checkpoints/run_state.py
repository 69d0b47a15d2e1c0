"""Writes and reads the part of a run's state that a checkpoint holds beside weights and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lightning_utilities.core.rank_zero import WarningCache
from torch import Tensor

from varrl_lightning.errors import CheckpointError
from varrl_lightning.policies.averaging import check_average
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import adapter_settings, base_tensors, has_adapter, is_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.weights.fingerprint import SAMPLED, fingerprint
from varrl_lightning.weights.loading import differences

KEY = "varrl"
"""Key of this state in a checkpoint."""
_WARNED = WarningCache()
"""The warnings already given: a checkpoint is read twice, before a run and within it."""


class FrozenWeights:
    """The weights that training never changes but a resumed run needs: an adapter's base, else the reference.

    Args:
        policy: the policy that is trained.
        reference: what the KL is taken to, if there is a KL.
    """

    def __init__(self, policy: VARPolicy, reference: Anchor | None) -> None:
        self.policy, self.reference = policy, reference

    @cached_property
    def fingerprint(self) -> str | None:
        """A hash of the weights as given; None without any. Read it before a Trainer's precision rounds them."""
        if has_adapter(self.policy):
            return fingerprint(base_tensors(self.policy), SAMPLED)
        if isinstance(self.reference, VARPolicy):
            return fingerprint(self.reference.transformer.state_dict(), SAMPLED)
        return None

    @property
    def source(self) -> str | None:
        """The file that the weights were loaded from; None when they were made in memory."""
        frozen = self.policy if has_adapter(self.policy) or not isinstance(self.reference, VARPolicy) else self.reference
        source: str | None = getattr(frozen.transformer, "source", None)
        return source


@dataclass(frozen=True)
class RunState:
    """The state of a run as a checkpoint holds it.

    Args:
        counters: see `RunCounters.state_dict`.
        seed: of all noise.
        micro_batch_size: branches of a micro-batch; None for all.
        world_size: number of processes.
        ema_decay: decay of the average of the weights, if there is one.
        standards: see `Evaluator.standards`.
    """

    counters: Mapping[str, Any]
    seed: int
    micro_batch_size: int | None
    world_size: int
    ema_decay: float | None
    standards: Mapping[str, tuple[float, float]]


def saved_tensors(state: Mapping[str, Tensor], policy: VARPolicy) -> dict[str, Tensor]:
    """The tensors of a module's state dict that a checkpoint holds: all, or those of the adapter alone where there is one."""
    return {name: x for name, x in state.items() if is_adapter(name)} if has_adapter(policy) else dict(state)


def write_state(checkpoint: dict[str, Any], run: RunState, frozen: FrozenWeights) -> None:
    """Add a run's state to a checkpoint: what a resumed run needs beside trained weights and optimizer."""
    checkpoint["state_dict"] = saved_tensors(checkpoint["state_dict"], frozen.policy)
    checkpoint[KEY] = {
        **run.counters,
        "seed": run.seed,
        "micro_batch_size": run.micro_batch_size,
        "world_size": run.world_size,
        "adapter": adapter_settings(frozen.policy),
        "ema_decay": run.ema_decay,
        "standards": dict(run.standards),
        "frozen_weights": frozen.fingerprint,
        "reference_path": frozen.source,
    }


def read_state(
    checkpoint: dict[str, Any], module_state: Mapping[str, Tensor], frozen: FrozenWeights, ema_decay: float | None, fitting: bool
) -> dict[str, Any]:
    """The state that `write_state` wrote; completes the weights where the checkpoint holds an adapter alone.

    Args:
        checkpoint: its `state_dict` is completed in place.
        module_state: the module's state dict.
        ema_decay: the module's.
        fitting: whether the run is resumed, so that its reference matters.

    Raises:
        ValueError: when the frozen weights differ from those that the run began with: an adapter would sit on a wrong base, or
            the KL would change its anchor.
    """
    saved: dict[str, Any] | None = checkpoint.get(KEY)
    if saved is None:
        raise CheckpointError("this checkpoint was not written by VARGRPO: it has no counters. Expected a checkpoint of a fit run.")
    adapter = adapter_settings(frozen.policy)
    if saved.get("adapter") != adapter:
        raise CheckpointError(
            f"the checkpoint has {_described(saved.get('adapter'), 'no adapter', 'an adapter')}, but the policy has "
            f"{_described(adapter, 'none', 'one')}; use the config.yaml of the run that wrote it"
        )
    check_average(saved.get("ema_decay"), ema_decay)
    if adapter or fitting:
        _check_frozen(saved, frozen, "base" if adapter else "reference")
    if adapter and "state_dict" in checkpoint:  # DeepSpeed's engine loads the weights itself
        if problems := differences(checkpoint["state_dict"], saved_tensors(module_state, frozen.policy)):
            raise CheckpointError("the checkpoint does not fit the policy's adapter:\n  " + "\n  ".join(problems))
        checkpoint["state_dict"] = {**module_state, **checkpoint["state_dict"]}
    return saved


def _check_frozen(saved: Mapping[str, Any], frozen: FrozenWeights, what: str) -> None:
    """Refuse a checkpoint whose run began with other frozen weights; warn where they cannot be compared.

    Args:
        what: a name for the frozen weights, `base` or `reference`.
    """
    theirs, source = saved.get("frozen_weights"), saved.get("reference_path") or "from no file"
    if None not in (theirs, frozen.fingerprint) and theirs != frozen.fingerprint:
        raise CheckpointError(
            f"the {what}'s weights differ from those that the run began with ({frozen.fingerprint} against {theirs}); give the "
            f"same base weights as then: {source}"
        )
    if theirs is None and saved.get("reference") is not None:  # version 0.1 wrote another kind of hash under this key
        _WARNED.warn(
            f"the checkpoint was written by version 0.1, so that its {what}'s weights cannot be compared with those of this "
            f"configuration; make sure that they are the same as then: {source}"
        )


def _described(adapter: dict[str, float] | None, absent: str, present: str) -> str:
    return absent if adapter is None else f"{present} of rank {adapter['rank']:g} and alpha {adapter['alpha']:g}"
