"""What callbacks share that measure gradients on probe batches during training."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.data import TrainingBatches
from varrl_lightning.gradient_agreement.meter import independent_batches
from varrl_lightning.loggers import log_measured
from varrl_lightning.module import VARGRPO
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.types import Prompt


class GradientProbe(Callback):
    """Measures gradients every so many training steps, on the same prompts and noise each time.

    So two measurements differ by the policy alone. Weights, optimizer, counters and the noise of training do not change. It works
    on one process only.

    Args:
        every_n_steps: training steps from one measurement to the next.
        batches: number of independent batches of a measurement.
        least: how many there must be.
        prompts: prompts in a batch; as in training when None. They are the training prompts of PromptDataModule; with another
            loader, those that training has seen so far.
        blocks: number of blocks of batches that are left out in turn for a standard error.
        seed: of the order of prompts and of the noise.

    Raises:
        ValueError: on a value out of its range.
    """

    command: str
    """The command that measures the same on a checkpoint."""

    def __init__(self, every_n_steps: int, batches: int, least: int, prompts: int | None, blocks: int, seed: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        if batches < least:
            raise ValueError(f"batches must be at least {least}, to have a standard error, got {batches}")
        if prompts is not None and prompts < 1:
            raise ValueError(f"prompts must be at least 1 in a batch, got {prompts}")
        if blocks < 2:
            raise ValueError(f"blocks must be at least 2, to leave one out, got {blocks}")
        self.every_n_steps, self.batches, self.prompts = every_n_steps, batches, prompts
        self.blocks, self.seed = blocks, seed
        self._seen: dict[str, Prompt] = {}
        self._names: set[str] = set()

    @abstractmethod
    def measure(self, trainer: L.Trainer, module: VARGRPO, batches: Sequence[list[Prompt]]) -> Mapping[str, float]:
        """The metrics of one measurement, by the names that they are logged by."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse settings under which gradients cannot be measured.

        Raises:
            MisconfigurationException: under several processes, or where weights are sharded.
        """
        parallel = vargrpo(pl_module).parallel
        if stage == "fit" and (trainer.world_size > 1 or parallel.kind not in ("single", "ddp")):
            name = type(self).__name__
            raise MisconfigurationException(
                f"{name} measures on one process that holds all weights, but there are {trainer.world_size} under "
                f"{parallel.kind}; leave it out, and run 'varrl {self.command} --ckpt_path FILE' on a checkpoint"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check before the first step that there are enough prompts for the batches.

        Raises:
            ValueError: when a batch needs more prompts than there are.
        """
        if self.prompts is not None and isinstance(trainer.train_dataloader, TrainingBatches):
            independent_batches(trainer.train_dataloader.prompts, self.batches, self.prompts, self.seed)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measure after every `every_n_steps` training steps."""
        module = vargrpo(pl_module)
        if not isinstance(trainer.train_dataloader, TrainingBatches):
            self._seen |= {prompt.id: prompt for prompt in as_prompts(batch)}
        # Without NaN, `callback_metrics` would keep the last value; the loggers get what was measured alone.
        metrics = dict.fromkeys(self._names, math.nan)
        if module.rollouts_done % self.every_n_steps == 0:
            metrics |= self._measure(trainer, module, len(as_prompts(batch)))
            self._names |= metrics.keys()
        if metrics:
            module.log_dict(metrics, logger=False, batch_size=1)
            log_measured(trainer, metrics)

    def _measure(self, trainer: L.Trainer, module: VARGRPO, size: int) -> dict[str, float]:
        loader, size = trainer.train_dataloader, self.prompts or size
        prompts = loader.prompts if isinstance(loader, TrainingBatches) else list(self._seen.values())
        sizes = Counter(prompt.size for prompt in prompts)
        prompts = [prompt for prompt in prompts if sizes[prompt.size] >= size]
        if not prompts:
            name = type(self).__name__
            warnings.warn(f"{name}: training has not yet seen {size} different prompts of one size", stacklevel=2)
            return {}
        with trainer.precision_plugin.forward_context():
            return dict(self.measure(trainer, module, independent_batches(prompts, self.batches, size, self.seed)))
