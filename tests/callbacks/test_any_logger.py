"""Whatever loggers a run has: its folder is complete, they get what they take, and nothing that was not measured."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.callbacks import Checkpoints, SafeStop, SampleGrids, Summary
from varrl_lightning.figures.tables import Metrics

STEPS = 4
"""A cycle of three prefix stages and a suffix stage."""
FIGURES = ("reward", "grad_norm", "entropy", "word_accuracy", "before_after")


@dataclass
class Notes(Logger):
    """A logger as a user may have one, with the methods that Lightning's have; it keeps what it is given."""

    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    images: list[tuple[str, int, np.ndarray]] = field(default_factory=list)
    tables: list[tuple[str, int, list[str], list[list[Any]]]] = field(default_factory=list)
    name = "notes"
    version = 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step or 0, dict(metrics)))

    def log_hyperparams(self, params: Any) -> None:
        self.hyperparameters |= params

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.images += [(key, step or 0, image) for image in images]

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        self.tables.append((key, step or 0, columns, data))


@dataclass
class Run:
    folder: Path
    notes: Notes
    loggers: list[Logger]


def fit(folder: Path, loggers: Any) -> None:
    callbacks = [SafeStop(), SampleGrids(count=2), Summary(), Checkpoints()]
    run = trainer(folder, callbacks, max_steps=STEPS, val_check_interval=3, logger=loggers)
    run.fit(small_module(alternation=["prefix", "prefix", "prefix", "suffix"]), datamodule=datamodule(folder.parent / "data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("any")
    notes = Notes()
    loggers = [notes, CSVLogger(folder / "csv", name="", version=""), TensorBoardLogger(folder / "events", name="", version="")]
    fit(folder / "run", loggers)
    return Run(folder, notes, loggers)


def test_the_run_folder_is_complete(run: Run) -> None:
    assert Metrics(run.folder / "run" / "metrics.csv")["reward"].steps == list(range(STEPS))
    for name in FIGURES:
        assert (run.folder / "run" / "figures" / f"{name}.png").is_file()
    assert json.loads((run.folder / "run" / "summary.json").read_text())["steps"] == STEPS


def test_without_a_logger_it_is_complete_too(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", [SafeStop(), Summary(max_prompts=0)], max_steps=1, logger=False, enable_checkpointing=False)
    run.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    assert Metrics(tmp_path / "run" / "metrics.csv")["reward"].steps == [0]
    assert (tmp_path / "run" / "figures" / "reward.png").is_file()


def test_what_a_stage_does_not_measure_is_absent(run: Run) -> None:
    steps = {step: metrics for step, metrics in run.notes.metrics if "reward" in metrics}
    assert sorted(steps) == list(range(STEPS))
    for step, metrics in steps.items():
        stage, other = ("suffix", "prefix") if step == 3 else ("prefix", "suffix")
        assert metrics[f"{stage}/reward"] == metrics["reward"]
        assert not [name for name in metrics if name.startswith(f"{other}/")]
        assert "epoch" in metrics
    scales = [{name for name in steps[step] if name.startswith("k_share/scale_")} for step in (0, 3)]
    assert scales[0]
    assert scales[1]
    assert not scales[0] & scales[1]
    assert not [name for _, metrics in run.notes.metrics for name, value in metrics.items() if math.isnan(value)]
    (validation,) = (metrics for _, metrics in run.notes.metrics if "val/reward" in metrics)
    assert "val/word_accuracy" in validation


def test_lightnings_csv_has_no_nan_either(run: Run) -> None:
    with (run.folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["reward"]]) == STEPS
    assert [row["suffix/reward"] != "" for row in rows if row["reward"]] == [False, False, False, True]
    assert "nan" not in (run.folder / "csv" / "metrics.csv").read_text().lower()


def test_pictures_and_tables_reach_a_logger_that_takes_them(run: Run) -> None:
    samples = [(step, image) for name, step, image in run.notes.images if name == "samples"]
    assert [step for step, _ in samples] == [0, 3, STEPS]
    assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for _, image in samples)
    assert {f"figures/{name}" for name in FIGURES} <= {name for name, _, _ in run.notes.images}
    tables = {(name, step): (columns, rows) for name, step, columns, rows in run.notes.tables}
    columns, rows = tables["sample_words", 0]
    assert columns == ["prompt", "words", "read", "correct", "reward"]
    assert [row[:2] for row in rows] == [['"LIGHT"', "LIGHT"], ['"EARTH"', "EARTH"]]
    assert all(row[3] == (row[1] == row[2]) for row in rows)
    columns, rows = tables["summary", STEPS]
    summary = json.loads((run.folder / "run" / "summary.json").read_text())
    assert ["reward", summary["reward_before"], summary["reward_after"]] in rows


def test_hyper_parameters_reach_every_logger(run: Run) -> None:
    assert (run.notes.hyperparameters["group_size"], run.notes.hyperparameters["m"]) == (2, 2)
    for folder in ("csv", "events"):
        assert "group_size: 2" in (run.folder / folder / "hparams.yaml").read_text()


def test_tensorboard_shows_pictures_and_tables(run: Run) -> None:
    (events,) = (run.folder / "events").glob("events*")
    content = events.read_bytes()
    for tag in (b"samples", b"figures/reward", b"sample_words/text_summary", b"summary/text_summary", b"| prompt | words | read |"):
        assert tag in content
    assert b"\x89PNG" in content


def test_weights_and_biases_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path / "wandb_logs")
    (tmp_path / "wandb_logs").mkdir()
    fit(tmp_path / "run", logger)
    summary = dict(logger.experiment.summary)
    assert not [name for name, value in summary.items() if isinstance(value, float) and math.isnan(value)]
    assert {"reward", "prefix/reward", "suffix/reward", "val/reward", "samples", "sample_words", "summary"} <= summary.keys()
    assert logger.experiment.config["group_size"] == 2
    logger.experiment.finish()
    assert Metrics(tmp_path / "run" / "metrics.csv")["reward"].steps == list(range(STEPS))


def test_mlflow_takes_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlruns'}")
    fit(tmp_path / "run", logger)
    client = logger.experiment
    found = client.get_run(logger.run_id).data
    assert not [name for name, value in found.metrics.items() if math.isnan(value)]
    assert {"reward", "prefix/reward", "suffix/reward", "val/reward", "entropy_scale_1"} <= found.metrics.keys()
    assert found.params["group_size"] == "2"
    assert {"images", "sample_words", "summary"} <= {file.path for file in client.list_artifacts(logger.run_id)}
