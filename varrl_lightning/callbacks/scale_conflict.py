"""Shows during training whether the gradients of the scales pull against each other."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import lightning as L

from varrl_lightning.algorithms.gradient_cosine import Estimate
from varrl_lightning.algorithms.scale_conflict import ScaleConflict as Conflict
from varrl_lightning.callbacks.gradient_probe import GradientProbe
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.gradient_agreement.conflict import ConflictMeter
from varrl_lightning.gradient_agreement.meter import LEAST
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt


class ScaleConflict(GradientProbe):
    """Logs how the gradients of the scales relate, every so many training steps: the paper's diagnosis of what makes GRPO unstable.

    Scales count from 1 in the names:

    - `conflict/norm/scale_t`: length of the gradient of scale t's share of the loss in a batch, noise included.
    - `conflict/agreement/scale_t`: the share of its square that batches have in common.
    - `conflict/cosine/scale_s/scale_t`: cosine of the expected gradients of two scales; below 0 they pull against each other.
    - `conflict/prefix_suffix` and its `_standard_error`: the same of the scales before and behind the first stage's end.
    - `conflict/seconds`: what the measurement took.

    Cosines are freed of noise (`algorithms.scale_conflict.ScaleConflict`), and absent where they cannot be told from batches so
    few. A measurement costs about as much as `batches` training steps of each stage, and a backward pass for each scale of each
    batch besides; it holds 4 `blocks` D bytes for each trained scale, D the number of trained parameters. The figure `conflict` of
    the run has the maps.

    Args:
        every_n_steps, batches, prompts, blocks, seed: as in `GradientAgreement`.
        kl: whether the loss includes the KL.
        parameters: pattern of the names of the parameters that count; all trained ones when None.

    Raises:
        ValueError: on a value out of its range.
    """

    command = "conflict"

    def __init__(
        self,
        every_n_steps: int = 100,
        batches: int = 8,
        prompts: int | None = None,
        kl: bool = False,
        parameters: str | None = None,
        blocks: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, batches, LEAST, prompts, blocks, seed)
        self.kl, self.parameters = kl, parameters

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build a meter, so that a mistake in the options shows before the first step.

        Raises:
            ValueError: when the pattern fits no trained parameter, or a batch needs more prompts than there are.
        """
        self._meter(vargrpo(pl_module))
        super().on_train_start(trainer, pl_module)

    def measure(self, trainer: L.Trainer, module: VARGRPO, batches: Sequence[list[Prompt]]) -> dict[str, float]:
        """Norms, agreement and cosines of the scales; what cannot be told is absent."""
        began, meter = time.monotonic(), self._meter(module)
        for batch in batches:
            meter.add(batch)
        metrics = dict(conflict_metrics(meter.measured(), meter.trained, module.grpo.cycle[0].stop))
        metrics["conflict/seconds"] = time.monotonic() - began
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _meter(self, module: VARGRPO) -> ConflictMeter:
        return conflict_meter(module, blocks=min(self.blocks, self.batches), kl=self.kl, seed=self.seed, parameters=self.parameters)


def conflict_meter(
    module: VARGRPO, grpo: GRPO | None = None, *, blocks: int, kl: bool, seed: int, parameters: str | None
) -> ConflictMeter:
    """A meter of a module's policy, in micro-batches like those of its training.

    Args:
        grpo: another method than the module's own.
    """
    return ConflictMeter(
        module.policy,
        grpo or module.grpo,
        module.reference,
        blocks=blocks,
        kl=kl,
        seed=seed,
        parameters=parameters,
        micro_batch_size=module.micro_batches.number,
        images_at_once=module.images_at_once,
    )


def conflict_metrics(conflict: Conflict, trained: Sequence[int], m: int) -> Iterator[tuple[str, float]]:
    """Names and values of what is logged; NaN where it cannot be told.

    Args:
        trained: the scales that have a gradient, from 0.
        m: where prefix and suffix meet.
    """
    for t in trained:
        yield f"conflict/norm/scale_{t + 1}", conflict.norm(t)
        yield f"conflict/agreement/scale_{t + 1}", conflict.agreement(t).value
    for s in trained:
        for t in trained:
            if s < t:
                yield f"conflict/cosine/scale_{s + 1}/scale_{t + 1}", conflict.cosine([s], [t]).value
    split: Estimate = conflict.split(m)
    yield "conflict/prefix_suffix", split.value
    yield "conflict/prefix_suffix_standard_error", split.standard_error
