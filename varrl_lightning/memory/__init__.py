"""What a training run needs of a device's memory, foretold without a GPU and without running it."""

from __future__ import annotations

from varrl_lightning.errors import MemoryFullError
from varrl_lightning.memory.forecast import GIB, MARGIN, Forecast, Phase, copy_is_kept
from varrl_lightning.memory.micro_batch import (
    available_memory,
    chosen_micro_batch,
    explain_out_of_memory,
    fitting_micro_batch,
    outlined,
)
from varrl_lightning.memory.simulation import Simulation, SimulationError
from varrl_lightning.memory.tracking import LiveBytes

__all__ = [
    "GIB",
    "MARGIN",
    "Forecast",
    "LiveBytes",
    "MemoryFullError",
    "Phase",
    "Simulation",
    "SimulationError",
    "available_memory",
    "chosen_micro_batch",
    "copy_is_kept",
    "explain_out_of_memory",
    "fitting_micro_batch",
    "outlined",
]
