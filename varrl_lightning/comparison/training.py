"""Trains a recipe in this process: the same updates as `varrl fit`, with clocks and readings in place of its files."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from varrl_lightning.algorithms.word_metrics import word_closeness, words_found
from varrl_lightning.callbacks.trained_module import vargrpo
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.user_errors import reraise_as
from varrl_lightning.data import PromptDataModule
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.base import score_groups
from varrl_lightning.rewards.groups import single_images
from varrl_lightning.types import Case, Prompt, Sampling
from varrl_lightning.types.normal_form import normal_words
from varrl_lightning.weights.fingerprint import fingerprint

PARTS = ("rollout", "reward", "update")
Reading = Callable[[VARGRPO], list[dict[str, Any]]]
"""Takes readings: mappings with `split`, `way`, `n` (prompts), `values` (a mean per measure), `prompts` (each one's, or None)."""


def build(tree: Mapping[str, Any], name: str) -> tuple[VARGRPO, PromptDataModule, ParsedConfig]:
    """Build the module and the data of a configuration.

    Args:
        tree: the complete configuration of `varrl fit`.
        name: of the recipe, for messages.

    Raises:
        ConfigError: on a wrong configuration.
        StartError: when prompts, files and model do not fit together.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True), encoding="utf-8")
        with reraise_with(f"recipe {name}: "):
            config = ParsedConfig(["fit", "--config", str(path)])
            module, data = config.build()
    with reraise_as(StartError, ValueError, OSError):
        data.setup("fit")
        module.check_prompts([p for prompts in data.prompts.values() for p in prompts], data.evaluated)
        module.rewards.check_training_prompts(data.prompts["train"])
    return module, data, config


@contextmanager
def reraise_with(prefix: str) -> Iterator[None]:
    """Put a text before the message of a wrong configuration."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error


class Recorder(Callback):
    """Times each update and takes readings after given ones.

    Args:
        readings: by number of updates done; 0 is before the first.
    """

    def __init__(self, readings: Mapping[int, Reading]) -> None:
        self.readings = readings
        self.taken: dict[int, list[dict[str, Any]]] = {}
        self.steps: list[dict[str, Any]] = []
        self._began = (0.0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the reading before the first update."""
        self._read(vargrpo(pl_module))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        self._began = _clocks()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; take a reading if one is due."""
        seconds, cpu = (now - began for now, began in zip(_clocks(), self._began, strict=True))
        logged = trainer.callback_metrics
        values = {name: float(logged[name]) for name in ("reward", "kl", "grad_norm") if name in logged}
        parts = {part: float(logged[f"seconds/{part}"]) for part in PARTS}
        self.steps.append({"seconds": seconds, "cpu_seconds": cpu, "parts": parts} | values)
        self._read(vargrpo(pl_module))

    def _read(self, module: VARGRPO) -> None:
        reading = self.readings.get(module.rollouts_done)
        if reading is not None:
            self.taken[module.rollouts_done] = reading(module)


def train(module: VARGRPO, data: PromptDataModule, config: ParsedConfig, updates: int, readings: Mapping[int, Reading]) -> Recorder:
    """Make that many updates (rollouts) and take the readings; no file is written.

    Raises:
        RunStoppedError: when the updates turn non-finite.
    """
    recorder = Recorder(readings)
    options = config.get("trainer")
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        precision=options.precision,
        max_steps=updates * module.updater.updates_per_rollout,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*`lr_scheduler.step\(\)`.*")
        trainer.fit(module, datamodule=data)
    return recorder


def _clocks() -> tuple[float, float]:
    """Wall-clock time and CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def curve(prompts: Sequence[Prompt]) -> Reading:
    """A reading of the means over prompts, sampled by the module's sampler."""

    def read(module: VARGRPO) -> list[dict[str, Any]]:
        metrics = module.evaluate(prompts, module.sampling).metrics()
        return [{"split": "curve", "way": "sampled", "n": len(prompts), "values": _finite(metrics), "prompts": None}]

    return read


def whole(split: str, prompts: Sequence[Prompt], thorough: bool) -> Reading:
    """A reading of the means over prompts and of each of them, sampled by the module's sampler.

    Args:
        split: its name.
        thorough: also sample greedily, and have the sampled images read by the first reward of `evaluate_with`, if there is one.
    """

    def read(module: VARGRPO) -> list[dict[str, Any]]:
        judge = next(iter(module.judges), None) if thorough else None
        ways = [("sampled", module.sampling, judge)]
        ways += [("greedy", module.sampling.greedy(), None)] if thorough else []
        found = []
        for way, sampling, judge in ways:
            values = _each(module, prompts, sampling, judge)
            means = {name: sum(x) / len(x) for name, x in values.items()}
            found.append({"split": split, "way": way, "n": len(prompts), "values": _finite(means), "prompts": values})
        return found

    return read


def together(readings: Sequence[Reading]) -> Reading:
    """Several readings after the same update."""
    return lambda module: [row for reading in readings for row in reading(module)]


def _each(module: VARGRPO, prompts: Sequence[Prompt], sampling: Sampling, judge: str | None) -> dict[str, list[float]]:
    evaluation = module.evaluate(prompts, sampling)
    values = {"reward": evaluation.values.tolist()} | _words(prompts, evaluation.texts, evaluation.case)
    if judge is not None:
        groups = single_images(len(evaluation.images))
        scores = score_groups(module.judges[judge], evaluation.images, prompts, f"judges/{judge}", groups)
        judged = _words(prompts, scores.texts, scores.case)
        values |= {f"judge_{name}": of_prompts for name, of_prompts in judged.items()}
    return values


def _words(prompts: Sequence[Prompt], texts: Sequence[Sequence[str]] | None, case: Case) -> dict[str, list[float]]:
    """Word accuracy and NED of each prompt, weighted by its number of words over the mean number: their mean is over all words."""
    if texts is None:
        return {}
    wanted = [normal_words(prompt.words, case) for prompt in prompts]
    read = [normal_words(words, case) for words in texts]
    mean = sum(map(len, wanted)) / len(wanted)
    pairs = list(zip(wanted, read, strict=True))
    return {
        "word_accuracy": [words_found(*pair) / mean for pair in pairs],
        "ned": [sum(word_closeness(*pair)) / mean for pair in pairs],
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items() if math.isfinite(value)}


def spaced(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of the prompts, evenly spaced; all when there are fewer.

    In a periodic file, such as one, two and three words in turn, a step that is a multiple of the period selects one kind alone.
    """
    count = min(count, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def policy_fingerprint(policy: VARPolicy) -> str:
    """A fingerprint of a policy's weights, those of its tokenizer and other frozen parts among them."""
    parts: dict[str, nn.Module] = {"policy": policy, **policy.frozen_parts}
    return fingerprint({f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()})
