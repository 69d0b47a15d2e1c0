"""Faults planted in prompts, disk, optimizer and Trainer: each is found by its check, which a clean configuration passes.

Here: prompts without words, duplicated prompts, training prompts in validation, no prompt file, batches larger than the file, a
full disk, a disk that is nearly full, a run folder that cannot be used, a learning rate of 0, an optimizer that forgets
parameters, a device that is not the run's. It takes about 6 s.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from tests.faults import HERE, examined, finding, first_finding, parsed, reward, written
from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_disk import checkpoint_bytes
from varrl_lightning.commands.doctor_patient import Patient
from varrl_lightning.commands.doctor_run import RunLength


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("PL_SEED_WORKERS", "0")
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    return examined(tmp_path_factory.mktemp("clean"))


def rows(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


# --- prompts ------------------------------------------------------------------------------------------------------------------


def test_the_prompts_of_a_clean_configuration(clean: dict[str, Finding]) -> None:
    assert clean["prompts"].level == "pass"
    assert clean["prompts"].figure == "prompts: 4 of train, 2 of validation; all of training differ"


def test_prompts_without_words(tmp_path: Path) -> None:
    train = rows(tmp_path / "mine.jsonl", "a red sign", '"STONE"', '"RIVER"')
    found = first_finding(tmp_path, "prompts", **reward("ReadsWords"), data={"train": train})
    assert found.level == "FAIL"
    assert "can score images of 1 of 3 training prompts: 'a red sign'" in found.advice


def test_duplicated_prompts(tmp_path: Path) -> None:
    train = rows(tmp_path / "mine.jsonl", '"STONE"', '"STONE"')
    found = first_finding(tmp_path, "prompts", data={"train": train})
    assert found.level == "warn"
    assert "1 training prompts are duplicated: '\"stone\"'. In 1 of 1 batches" in found.advice


def test_training_prompts_in_validation(tmp_path: Path) -> None:
    found = examined(tmp_path, data={"validation": rows(tmp_path / "mine.jsonl", '"BREAD"')})
    assert found["prompts"].level == "FAIL"
    assert "train and validation share 1 prompts" in found["prompts"].advice
    assert found["gradients"].level == "pass", "the other checks go on"


@pytest.mark.parametrize(
    ("data", "told"),
    [({"train": "nowhere.jsonl"}, "cannot read the prompt file nowhere.jsonl"), ({"batch_size": 5}, "only 4 training prompts")],
    ids=["no file", "batches larger than the file"],
)
def test_prompts_that_make_no_batch(data: dict[str, Any], told: str, tmp_path: Path) -> None:
    found = examined(tmp_path, data=data)
    assert found["prompts"].level == "FAIL"
    assert told in found["prompts"].advice
    assert found["disk"].figure == found["gradients"].figure == "not checked"


# --- the disk -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "level", "told"),
    [(1_000_000, "FAIL", "The disk is full before the run ends"), (2_000_000, "warn", "Less than 2 times")],
)
def test_a_disk_without_room(
    free: int, level: str, told: str, clean: dict[str, Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    found = finding(tmp_path, "disk")
    assert found.level == level
    assert found.advice.startswith(told)
    assert clean["disk"].level == "pass"


def test_a_checkpoint_is_as_large_as_was_said(tmp_path: Path) -> None:
    patient = Patient(parsed(tmp_path))
    optimizer = patient.model.configure_optimizers()
    for p in patient.model.policy.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.save({"state_dict": patient.model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.ckpt")
    said = checkpoint_bytes(patient.model)
    assert said <= (tmp_path / "x.ckpt").stat().st_size < said + 500 * len(list(patient.model.parameters()))


def test_further_checkpoints_count(tmp_path: Path) -> None:
    kept = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_top_k": 3}}
    assert "needed: 2 checkpoints" in finding(tmp_path, "disk", trainer={"val_check_interval": 2}).figure
    assert "needed: 5 checkpoints" in finding(tmp_path, "disk", trainer={"val_check_interval": 2, "callbacks": [kept]}).figure


def test_a_run_folder_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(written(tmp_path)))
    assert main(["doctor", "--config", str(tmp_path / "x.yaml")]) == 1
    assert "is not a folder" in capsys.readouterr().err


# --- the optimizer and the Trainer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0}}, "With a learning rate of 0 no step changes anything"),
        ({"class_path": f"{HERE}.Forgetful"}, "It must hold all of them; it lacks transformer."),
    ],
    ids=["learning rate of 0", "forgets parameters"],
)
def test_an_optimizer_that_trains_nothing(optimizer: dict[str, Any], told: str, clean: dict[str, Finding], tmp_path: Path) -> None:
    found = finding(tmp_path, "optimizer", optimizer=optimizer)
    assert found.level == "FAIL"
    assert told in found.advice
    assert clean["optimizer"].level == "pass"


def test_a_schedule_that_warms_up_from_0_is_no_fault(tmp_path: Path) -> None:
    schedule = {"class_path": "varrl_lightning.learning_rates.WarmupCosine", "init_args": {"warmup": 5, "total": 100}}
    found = finding(tmp_path, "optimizer", lr_scheduler=schedule)
    assert found.level == "pass"
    assert "1.0e-06 at its highest" in found.figure


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_the_runs(clean: dict[str, Finding], tmp_path: Path) -> None:
    found = finding(tmp_path, "duration", trainer={"accelerator": "gpu"})
    assert found.level == "warn"
    assert found.advice == "Measured on another device than the run's: trainer.accelerator is gpu, and this is cpu."
    assert clean["duration"].level == "pass"
    assert "for 100 steps, without validation" in clean["duration"].figure


@pytest.mark.parametrize(
    ("given", "steps", "validations"),
    [
        ({"max_steps": 7}, 4, 0),
        ({"max_steps": 40, "val_check_interval": 5}, 20, 4),
        ({"max_epochs": 3}, 30, 3),
        ({"max_epochs": 3, "max_steps": 10, "val_check_interval": 0.5}, 5, 1),
        ({"limit_train_batches": 4, "max_epochs": 2}, 8, 2),
        ({}, 10_000, 1000),
        ({"max_epochs": -1}, None, 0),
        ({"max_epochs": 3, "limit_val_batches": 0}, 30, 0),
    ],
)
def test_the_length_of_a_run(given: dict[str, Any], steps: int | None, validations: int) -> None:
    own = {"max_steps": -1, "max_epochs": None, "max_time": None, "val_check_interval": None, "limit_val_batches": None}
    trainer = Namespace(**(own | {"limit_train_batches": None} | given))
    assert RunLength.of(trainer, 10, 2, validates=True) == RunLength(steps, validations)
    assert RunLength.of(trainer, 10, 2, validates=False).validations == 0
