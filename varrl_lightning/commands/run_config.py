"""Saves a run's configuration in its folder, and sends to the loggers what the module's own hyper-parameters leave out."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from varrl_lightning.callbacks.run_folder import run_folder
from varrl_lightning.configuration.atomic_write import replace_text

ELSEWHERE = ("seed_everything", "data", "trainer")
"""Parts of a configuration that are not the module's arguments, which Lightning sends itself."""


class RunConfig(SaveConfigCallback):
    """Writes `config.yaml` to the run folder, wherever the loggers write: Lightning's own would follow the first of them."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file, in one step, and send the seed, the data's and the Trainer's settings to every logger."""
        replace_text(run_folder(trainer) / "config.yaml", self.parser.dump(self.config, skip_none=False))
        settings = {name: value for name, value in self.config.as_dict().items() if name in ELSEWHERE}
        for logger in trainer.loggers:
            logger.log_hyperparams(settings)
