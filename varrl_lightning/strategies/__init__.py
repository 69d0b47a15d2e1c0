"""Training on several processes: DDP, FSDP2, DeepSpeed. The only code that knows one strategy from another."""

from __future__ import annotations

import re
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy, StrategyRegistry

from varrl_lightning.errors import RankError
from varrl_lightning.strategies.base import Parallel, leave_group

__all__ = ["Parallel", "RankError", "configured_kind", "leave_group", "parallel_of"]


def parallel_of(trainer: L.Trainer | None) -> Parallel:
    """The way in which a Trainer's processes work together; that of one process without a Trainer."""
    return _parallel_under(None if trainer is None else trainer.strategy)


def _parallel_under(strategy: Strategy | None) -> Parallel:
    if isinstance(strategy, FSDPStrategy):
        raise ValueError(
            "strategy 'fsdp' (FSDPStrategy) cannot do manual optimization, by which VARGRPO takes several micro-batches and steps "
            "in one batch; use strategy='fsdp2', which shards the same, or 'fsdp2_full' to save checkpoints as one file"
        )
    if isinstance(strategy, ModelParallelStrategy):
        from varrl_lightning.strategies.fsdp2 import ShardedParallel

        return ShardedParallel(strategy)
    if isinstance(strategy, DeepSpeedStrategy):
        from varrl_lightning.strategies.deepspeed import EngineParallel

        return EngineParallel(strategy)
    return Parallel(strategy)


def configured_kind(given: Any, world_size: int) -> tuple[str, dict[str, bool]]:
    """The `Parallel.kind` and `Parallel.memory_options` of a strategy in a configuration, without building it.

    Args:
        given: a registered name, or an object with `class_path` and `init_args`.
    """
    arguments = dict(vars(getattr(given, "init_args", None) or given)) if hasattr(given, "class_path") else {}
    name = str(getattr(given, "class_path", given)).rpartition(".")[2].lower()
    if "fsdp2" in name or "modelparallel" in name:
        gathers = arguments.get("sampling", "gathered") == "gathered"
        return "fsdp2", {"gathers": gathers, "accumulates_whole": arguments.get("accumulate", "whole") == "whole"}
    if "zero" in name or "deepspeed" in name:
        stage = re.search(r"\d", name)
        return f"zero{stage[0] if stage else arguments.get('stage', 2)}", {}
    return ("ddp" if world_size > 1 else "single"), {}


def _fsdp2(**options: Any) -> Strategy:
    from varrl_lightning.strategies.fsdp2 import FSDP2Strategy  # sharding and its checkpoints: most runs do without

    return FSDP2Strategy(**options)


def _zero(**options: Any) -> Strategy:
    from varrl_lightning.strategies.deepspeed import ZeROStrategy

    return ZeROStrategy(**options)


# Names that Lightning looks up when a Trainer is made.
for _name, _description, _folders in (
    ("fsdp2", "FSDP2 over all processes; checkpoints are folders", True),
    ("fsdp2_full", "FSDP2 over all processes; a checkpoint is one file", False),
):
    StrategyRegistry.register(_name, _fsdp2, _description, override=True, save_distributed_checkpoint=_folders)
for _stage in (1, 2, 3):
    StrategyRegistry.register(f"zero{_stage}", _zero, f"DeepSpeed ZeRO-{_stage}, on CPUs too", override=True, stage=_stage)
