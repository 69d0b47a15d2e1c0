"""Measuring in the middle of training leaves the training as it is."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_trainer, weights

from varrl_lightning.callbacks import GradientAgreement
from varrl_lightning.callbacks.gradient_agreement import agreement_meter
from varrl_lightning.gradient_agreement.meter import independent_batches
from varrl_lightning.gradient_agreement.variants import own_stages
from varrl_lightning.module import VARGRPO

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
VARIANTS = {"one": {"stage": "prefix", "num_continuations": 1}, "two": {"stage": "prefix"}}


class Logged(Callback):
    """What each step has logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append({name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("agreement/")})


def run(*callbacks: Callback, steps: int = 4, **options: Any) -> VARGRPO:
    module = tiny_module(group_size=2, **options)
    tiny_trainer(max_steps=steps, callbacks=list(callbacks), max_epochs=-1).fit(module, tiny_loader())
    return module


def test_training_is_bitwise_the_same() -> None:
    logged = Logged()
    measured = run(GradientAgreement(every_n_steps=2, batches=3, variants=VARIANTS), logged)
    plain = run()
    assert torch.equal(weights(measured), weights(plain))
    for one, other in zip(*(m.optimizers().state_dict()["state"].values() for m in (measured, plain)), strict=True):  # type: ignore[union-attr]
        assert all(torch.equal(one[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert (measured.rollouts_done, measured.updates_done) == (plain.rollouts_done, plain.updates_done) == (4, 4)
    shown = [{name for name, value in step.items() if math.isfinite(value)} for step in logged.steps]
    both = {f"agreement/{variant}/{name}" for variant in VARIANTS for name in ("cosine", "standard_error", "signal")}
    wanted = both | {"agreement/two/difference", "agreement/two/difference_standard_error"}
    assert shown == [set(), wanted, set(), wanted]
    assert logged.steps[1]["agreement/one/cosine"] != logged.steps[3]["agreement/one/cosine"]


def test_it_measures_the_policy_as_it_is_then() -> None:
    logged = Logged()
    module = run(GradientAgreement(every_n_steps=3, batches=3, per_scale=True), logged, steps=3, alternation=["prefix"])
    meter = agreement_meter(module, own_stages(module.grpo), blocks=3, per_scale=True)
    for batch in independent_batches(PROMPTS, 3, 2, seed=0):
        meter.add(batch)
    rows = {row.scale: row for row in meter.measured()}
    assert logged.steps[2]["agreement/prefix/cosine"] == pytest.approx(rows[None].cosine, abs=1e-5)
    assert logged.steps[2]["agreement/prefix/standard_error/scale_2"] == pytest.approx(rows[1].standard_error, abs=1e-5)


def test_several_processes_are_refused() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match=r"GradientAgreement measures on one process .* 2 under"):
        GradientAgreement().setup(trainer, tiny_module(), "fit")


def test_a_mistake_shows_before_the_first_step() -> None:
    logged = Logged()
    with pytest.raises(ValueError, match="the variant 'x' has no 'alhpa'"):
        run(GradientAgreement(variants={"x": {"stage": "all", "alhpa": 1}}), logged)
    assert logged.steps == []
    for wrong in ({"every_n_steps": 0}, {"batches": 2}, {"prompts": 0}, {"blocks": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            GradientAgreement(**wrong)


def test_too_few_prompts_seen_are_waited_for() -> None:
    with pytest.warns(UserWarning, match="not yet seen 5 different prompts"):
        run(GradientAgreement(every_n_steps=1, batches=3, prompts=5), steps=1)
