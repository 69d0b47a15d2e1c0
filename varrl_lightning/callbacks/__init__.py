"""The callbacks of a run: checkpoints, pictures, a summary, progress and warnings."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback

from varrl_lightning.callbacks.checkpoints import Checkpoints
from varrl_lightning.callbacks.gradient_agreement import GradientAgreement
from varrl_lightning.callbacks.monitors import Monitors
from varrl_lightning.callbacks.progress import RunProgress
from varrl_lightning.callbacks.reward_hacking import RewardHacking
from varrl_lightning.callbacks.safe_stop import SafeStop
from varrl_lightning.callbacks.sample_tables import SampleTables
from varrl_lightning.callbacks.samples import SampleGrids
from varrl_lightning.callbacks.scale_conflict import ScaleConflict
from varrl_lightning.callbacks.summary import Summary
from varrl_lightning.sample_tables.parquet import can_write

__all__ = [
    "Checkpoints",
    "GradientAgreement",
    "Monitors",
    "RewardHacking",
    "RunProgress",
    "SafeStop",
    "SampleGrids",
    "SampleTables",
    "ScaleConflict",
    "Summary",
    "default_callbacks",
]


def default_callbacks(checkpoint_every_n_steps: int = 50) -> list[Callback]:
    """The callbacks of the command line; they write to the run folder, which is the Trainer's `default_root_dir`.

    `SampleTables` is one of them where pyarrow is installed. The order matters: when a run is stopped, the bar ends first, then the
    state is saved, and nothing is evaluated after that.
    """
    tables = [SampleTables()] if can_write() else []
    return [RunProgress(), SafeStop(), Monitors(), SampleGrids(), *tables, Summary(), Checkpoints(checkpoint_every_n_steps)]
