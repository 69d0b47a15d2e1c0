"""Warns, once each, about signs that a run cannot learn anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from varrl_lightning.metrics.rank_agreement import LEVEL, TRUSTED


@dataclass(frozen=True)
class Monitor:
    """A bad sign and what to do about it.

    Args:
        holds: whether a step's metrics show the sign.
        advice: the warning, in which `{steps}` and metrics by name are filled in.
        steps: training steps in a row that must show the sign; the callback's `patience` when None.
    """

    holds: Callable[[Mapping[str, float]], bool]
    advice: str
    steps: int | None = None


def _constant(metrics: Mapping[str, float]) -> bool:
    """Whether all images of a step had the same reward, other than 0, up to the rounding of float32."""
    return metrics.get("reward", 0.0) != 0 and metrics.get("reward_std_batch", 1.0) <= 1e-6 * abs(metrics["reward"])


MONITORS = (
    Monitor(
        lambda m: m.get("reward") == 0 and m.get("reward_std_batch") == 0,
        "every reward was 0 in the last {steps} steps, so nothing is learnt: look at the latest picture in samples/, run `varrl "
        "doctor` on the config, and start from a model that succeeds sometimes.",
    ),
    Monitor(
        lambda m: m.get("frac_reward_zero_std", 0.0) >= 1.0 and m.get("reward") != 0 and not _constant(m),
        "in the last {steps} steps all images of a group had the same reward, so nothing is learnt: raise group_size or the "
        "sampling temperature, or take prompts or a reward on which the model neither always fails nor always succeeds.",
    ),
    Monitor(
        _constant,
        "the reward was {reward:.6g} for every image of the last step, and alike within each of the last {steps} steps: a constant "
        "reward teaches nothing. Run `varrl doctor` on the config, and look at what the reward answers for two different images.",
    ),
    Monitor(
        lambda m: abs(m.get("sampler_gap", 0.0)) > 1.0,
        "the images are sampled from another distribution than the one that is trained, by {sampler_gap:.2f} nats per token over "
        "the last {steps} steps: take score: sampler, or bring cfg, top_k and temperature closer to the plain model.",
    ),
    Monitor(
        lambda m: m.get("draft/ratio_high", TRUSTED) < TRUSTED,
        "drafts rank the branches of a group worse than whole images do: tau-b {draft/tau:.2f} against a ceiling of "
        f"{{draft/ceiling:.2f}}, at most {{draft/ratio_high:.2f}} of it with {LEVEL:.0%} confidence (alarm under {TRUSTED}). What "
        "raises the reward of drafts need not raise that of images: take num_continuations 1, or a larger m.",
        steps=1,  # that many groups have been pooled already
    ),
)


class Monitors(Callback):
    """Warns once when a bad sign has lasted for `patience` training steps in a row, or as many as it needs itself.

    Its `alarms` are the warnings so far.
    """

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 step, got {patience}")
        self.patience = patience
        self._lasted = [0] * len(MONITORS)
        self._given: set[int] = set()
        self.alarms: list[str] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Warn about the signs that have lasted long enough with this step."""
        for advice in self.look({name: float(value) for name, value in trainer.callback_metrics.items()}):
            self.alarms.append(advice)
            warnings.warn(advice, stacklevel=2)

    def look(self, metrics: Mapping[str, float]) -> list[str]:
        """The advice that is due after a step with these metrics; NaN counts as missing."""
        due = []
        for i, monitor in enumerate(MONITORS):
            self._lasted[i] = self._lasted[i] + 1 if monitor.holds(metrics) else 0
            needed = self.patience if monitor.steps is None else monitor.steps
            if self._lasted[i] == needed and i not in self._given:
                self._given.add(i)
                due.append(monitor.advice.format(steps=needed, **metrics))
        return due
