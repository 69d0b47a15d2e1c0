"""Measures gradient agreement during training."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from varrl_lightning.callbacks.gradient_probe import GradientProbe
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.gradient_agreement.measured import Measured
from varrl_lightning.gradient_agreement.meter import LEAST, AgreementMeter
from varrl_lightning.gradient_agreement.variants import SHAPE, StageShape, Variant, own_stages, read_variants, variants_of
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt


class GradientAgreement(GradientProbe):
    """Logs `agreement/NAME/cosine`, its `standard_error` and `signal` every so many training steps; see `AgreementMeter`.

    With `per_scale` it also logs `.../scale_t`, t from 1; for all variants but the first, `difference` and
    `difference_standard_error`. Every measurement uses the same prompts and noise, so that two differ by the policy alone. Weights,
    optimizer, counters and the noise of training do not change. It works on one process only.

    Args:
        every_n_steps: training steps from one measurement to the next.
        batches: number of independent batches, at least 3; for each variant they cost about as much as so many training steps.
        prompts: prompts in a batch; as in training when None. They are the training prompts of PromptDataModule; with another
            loader, those that training has seen so far.
        variants: a mapping as `variants_of` takes it, or the file of one; the stages of the cycle when None.
        per_scale, kl, parameters, blocks, seed: as in the command `varrl agreement`.

    Raises:
        ValueError: on a value out of its range.
    """

    command = "agreement"

    def __init__(
        self,
        every_n_steps: int = 100,
        batches: int = 16,
        prompts: int | None = None,
        variants: str | Mapping[str, Mapping[str, Any]] | None = None,
        per_scale: bool = False,
        kl: bool = False,
        parameters: str | None = None,
        blocks: int = 20,
        seed: int = 0,
    ) -> None:
        super().__init__(every_n_steps, batches, LEAST, prompts, blocks, seed)
        self.described = read_variants(variants) if isinstance(variants, str) else variants
        self.per_scale, self.kl, self.parameters = per_scale, kl, parameters
        self._variants: list[Variant] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Build the variants, so that a mistake in them shows before the first step.

        Raises:
            ValueError: on a wrong variant, or when a batch needs more prompts than there are.
        """
        module = vargrpo(pl_module)
        self._variants = described_variants(module, self.described, self.kl)
        self._meter(module)
        super().on_train_start(trainer, pl_module)

    def measure(self, trainer: L.Trainer, module: VARGRPO, batches: Sequence[list[Prompt]]) -> dict[str, float]:
        """Cosines, signals and differences of all variants."""
        meter = self._meter(module)
        for batch in batches:
            meter.add(batch)
        return {name: value for row in meter.measured() for name, value in _named(row, row.variant == self._variants[0].name)}

    def _meter(self, module: VARGRPO) -> AgreementMeter:
        return agreement_meter(
            module,
            self._variants,
            seed=self.seed,
            blocks=min(self.blocks, self.batches),
            per_scale=self.per_scale,
            parameters=self.parameters,
        )


def agreement_meter(module: VARGRPO, variants: Sequence[Variant], **options: Any) -> AgreementMeter:
    """A meter of a module's gradients, in micro-batches like those of its training.

    Args:
        options: further arguments of `AgreementMeter`.
    """
    return AgreementMeter(
        module.policy,
        variants,
        module.reference,
        micro_batch_size=module.micro_batches.number,
        images_at_once=module.images_at_once,
        **options,
    )


def described_variants(module: VARGRPO, described: Mapping[str, Mapping[str, Any]] | None, kl: bool) -> list[Variant]:
    """The variants that are described as for `variants_of`, or the stages of the module's cycle when None.

    Raises:
        ValueError: on an unknown key, or a value out of its range; names the variant.
    """
    if described is None:
        return own_stages(module.grpo, kl)
    defaults = inspect.signature(VARGRPO).parameters
    shape = StageShape(**{key: module.hparams.get(key, defaults[key].default) for key in SHAPE})
    return variants_of(module.policy, module.grpo, shape, described, kl)


def _named(row: Measured, first: bool) -> list[tuple[str, float]]:
    """Names and values of the metrics that are logged for a measurement."""
    shown = ["cosine", "standard_error", "signal"] + ([] if first else ["difference", "difference_standard_error"])
    scale = "" if row.scale is None else f"/scale_{row.scale + 1}"
    return [(f"agreement/{row.variant}/{name}{scale}", getattr(row, name)) for name in shown]
