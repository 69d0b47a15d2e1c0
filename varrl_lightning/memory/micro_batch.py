"""`micro_batch_size: auto`, and which setting to change when a device's memory is full."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from varrl_lightning.errors import MemoryFullError
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.memory.forecast import GIB, MARGIN, Forecast
from varrl_lightning.memory.simulation import Simulation
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.strategies.base import Parallel
from varrl_lightning.types import Prompt

NEW = ("gradients", "gathered weights", "prompts", "rollout", "copy to return to", "working")
"""The parts of a forecast that a training step adds to what is loaded when a fit begins."""
FULL = ("out of memory", "can't allocate memory", "not enough memory")
"""Phrases in torch's errors when memory is full, on GPUs and CPUs."""


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that a process can still allocate.

    Args:
        processes: number of processes that share the memory of this machine, where the device is a CPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return min(_free_of_machine(), _free_of_container()) // processes


def _free_of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: only the total is known
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _free_of_container() -> int:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # not in a container, or in one without a limit
        return 1 << 60


class MicroBatchSize:
    """The number of branches in one backward pass: the given number, or for `auto` as many as the memory holds.

    Args:
        asked: a number, `auto`, or None for all branches.
        policy: the policy that is trained.
        grpo: how the policy is sampled, and the loss.
        optimizer_factory: makes the optimizer, whose moments are counted.
        images_at_once: most images sampled at one time.
        updates_per_rollout: optimizer steps on one rollout.
    """

    def __init__(
        self,
        asked: int | Literal["auto"] | None,
        policy: VARPolicy,
        grpo: GRPO,
        optimizer_factory: Callable[[Iterable[Any]], Optimizer],
        images_at_once: int | None,
        updates_per_rollout: int,
    ) -> None:
        self.asked, self.policy, self.grpo, self.optimizer_factory = asked, policy, grpo, optimizer_factory
        self.images_at_once, self.updates_per_rollout = images_at_once, updates_per_rollout
        self.automatic = asked == "auto"
        self._simulation: Simulation | None = None

    @property
    def number(self) -> int | None:
        """Branches of a micro-batch; None for all, and before `auto` has chosen a number."""
        return None if self.asked == "auto" else self.asked

    def outline(self, trainer: L.Trainer) -> None:
        """For `auto`: record the shapes of the policy's tensors, before a strategy shards them."""
        if self.asked == "auto":
            self._simulation = Simulation(self.policy, self.grpo, str(trainer.precision), trainer.strategy.root_device)

    @property
    def metrics(self) -> dict[str, float]:
        """The number that `auto` has chosen, for the log."""
        return {"micro_batch_size": float(self.number)} if self.automatic and self.number is not None else {}

    def choose(self, prompts: Sequence[Prompt], trainer: L.Trainer, parallel: Parallel) -> None:
        """For `auto`: choose the most branches that fit the memory of every process's device.

        Args:
            prompts: the prompts of an update.
        """
        if self.asked != "auto":
            return
        forecast = self._forecast(prompts, trainer, parallel)
        available = available_memory(trainer.strategy.root_device, trainer.num_devices)
        begun = bool(trainer.optimizers[0].state)
        _, sizes = parallel.run_on_all(lambda: (None, fitting_micro_batch(forecast, available, begun)))
        self.asked, self._simulation = min(sizes), None
        rows = max(forecast.rows(stage) for stage in self.grpo.cycle)
        rank_zero_info(
            f"micro_batch_size: auto is {self.asked} of {rows} branches: {available / GIB:.2f} GiB are available, "
            f"{MARGIN:.0%} stay free"
        )

    def _forecast(self, prompts: Sequence[Prompt], trainer: L.Trainer, parallel: Parallel) -> Forecast:
        assert self._simulation is not None
        self._simulation.read(max(prompts, key=lambda prompt: len(prompt.text)))
        keeps_copy = next((callback.keep_copy for callback in trainer.callbacks if hasattr(callback, "keep_copy")), False)  # type: ignore[attr-defined]
        return Forecast(
            self.policy,
            self._simulation,
            self.grpo.cycle,
            self.optimizer_factory,
            len(prompts),
            images_at_once=self.images_at_once,
            strategy=parallel.kind,
            world_size=parallel.world_size,
            updates_per_rollout=self.updates_per_rollout,
            keeps_copy=keeps_copy,
            foreach=trainer.strategy.root_device.type == "cuda",
            **parallel.memory_options,
        )

    def resume(self, saved: Mapping[str, Any], trainer: L.Trainer | None) -> None:
        """For `auto`: keep the interrupted run's number, so that sums are rounded alike, if the number of processes is the same."""
        if self.asked == "auto" and trainer is not None and saved.get("world_size") == trainer.world_size:
            self.asked = saved.get("micro_batch_size") or "auto"


def fitting_micro_batch(forecast: Forecast, available: int, begun: bool) -> int:
    """The most branches in one backward pass that fit nine tenths of the available memory.

    Args:
        available: bytes that can be allocated beside what is loaded.
        begun: whether the optimizer has its moments already.

    Raises:
        MemoryFullError: when not even one branch fits.
    """
    new = NEW if begun else (*NEW, "moments")
    limit = int((1 - MARGIN) * available)
    size = forecast.largest_micro_batch(limit, new)
    if size:
        return size
    need = max(sum(p.parts[name] for name in new) for p in (forecast.update(stage, 1) for stage in forecast.stages))
    raise MemoryFullError(
        f"micro_batch_size: auto finds no room for a single branch: its update needs {need / GIB:.2f} GiB beside what is loaded, "
        f"and {available / GIB:.2f} GiB are available, of which {MARGIN:.0%} stay free. Turn on gradient_checkpointing of the "
        "policy, train an adapter (add_lora), or shard over several devices (strategy fsdp2); `varrl doctor --memory` "
        "shows what takes it"
    )


@contextmanager
def explain_out_of_memory(setting: str, value: int | None) -> Iterator[None]:
    """Within it, an out-of-memory error becomes one that names the setting to lower.

    Args:
        setting: the argument of `VARGRPO` that decides how much memory is needed.
        value: its present value; None for no limit.

    Raises:
        MemoryFullError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in FULL):
            raise
        lower = "all at once" if value is None else str(value)
        raise MemoryFullError(
            f"the device's memory is full. Lower model.{setting}, now {lower}; `varrl doctor --memory` with the same arguments "
            f"shows what takes how much and what would fit. torch said: {str(error).splitlines()[0]}"
        ) from error
