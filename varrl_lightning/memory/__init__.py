"""What a training run needs of a device's memory, predicted without a GPU and without running it."""

from __future__ import annotations

from varrl_lightning.errors import MemoryFullError
from varrl_lightning.memory.forecast import GIB, MARGIN, Forecast, Phase, copy_is_kept
from varrl_lightning.memory.micro_batch import (
    MicroBatchSize,
    available_memory,
    explain_out_of_memory,
    fitting_micro_batch,
)
from varrl_lightning.memory.simulation import Simulation, SimulationError
from varrl_lightning.memory.tracking import LiveBytes

__all__ = [
    "GIB",
    "MARGIN",
    "Forecast",
    "LiveBytes",
    "MemoryFullError",
    "MicroBatchSize",
    "Phase",
    "Simulation",
    "SimulationError",
    "available_memory",
    "copy_is_kept",
    "explain_out_of_memory",
    "fitting_micro_batch",
]
