"""`micro_batch_size: auto`, and what to turn when a device's memory is full."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from varrl_lightning.errors import MemoryFullError
from varrl_lightning.memory.forecast import GIB, MARGIN, Forecast
from varrl_lightning.memory.simulation import Simulation
from varrl_lightning.types import Prompt

NEW = ("gradients", "gathered weights", "prompts", "rollout", "copy to return to", "working")
"""Of a forecast's parts, those that a training step adds to what a fit begins with."""
FULL = ("out of memory", "can't allocate memory", "not enough memory")
"""In what torch says when there is no room, on GPUs and CPUs."""


def available_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that a process can still take.

    Args:
        processes: that share the memory of this machine, where the device is a CPU.
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
    except OSError:  # no Linux: nobody says what of it is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _free_of_container() -> int:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or one without a limit
        return 1 << 60


def outlined(module: Any) -> Simulation:
    """A module's policy without memory, made before a strategy takes the policy apart."""
    device, precision = module.trainer.strategy.root_device, str(module.trainer.precision)
    return Simulation(module.policy, module.sampling, module.objective, module.reference is not None, precision, device)


def chosen_micro_batch(module: Any, simulation: Simulation, prompts: Sequence[Prompt]) -> int:
    """The most branches in one backward pass that fit the memory of every process's device; said and logged.

    Args:
        module: a `VARGRPO` in a Trainer.
        simulation: of its policy.
        prompts: of an update.
    """
    trainer = module.trainer
    device = trainer.strategy.root_device
    simulation.read(max(prompts, key=lambda prompt: len(prompt.text)))
    forecast = Forecast(
        module.policy,
        simulation,
        module.cycle,
        module.optimizer_factory,
        len(prompts),
        images_at_once=module.images_at_once,
        strategy=module.parallel.kind,
        world_size=module.parallel.world_size,
        updates_per_rollout=module.updates_per_rollout,
        keeps_copy=next((callback.keep_copy for callback in trainer.callbacks if hasattr(callback, "keep_copy")), False),
        foreach=device.type == "cuda",
        **module.parallel.memory_options,
    )
    optimizer = module.optimizers()
    begun = bool(getattr(optimizer, "optimizer", optimizer).state)
    available = available_memory(device, trainer.num_devices)
    _, sizes = module.parallel.collect(lambda: (None, fitting_micro_batch(forecast, available, begun)))
    size: int = min(sizes)
    rows = max(forecast.rows(stage) for stage in module.cycle)
    rank_zero_info(
        f"micro_batch_size: auto is {size} of {rows} branches: {available / GIB:.2f} GiB are available, {MARGIN:.0%} stay free"
    )
    module.log("micro_batch_size", float(size), batch_size=len(prompts))
    return size


def fitting_micro_batch(forecast: Forecast, available: int, begun: bool) -> int:
    """The most branches in one backward pass whose memory, beside what is there already, fits nine tenths of what is available.

    Args:
        available: bytes.
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
    """Say of an out-of-memory error which setting decides what was asked for.

    Raises:
        MemoryFullError: in its place.
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
