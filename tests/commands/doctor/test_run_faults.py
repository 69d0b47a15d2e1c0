"""Faults planted in prompts, disk, optimizer and Trainer: each is found by its check, which a clean configuration passes.

Here: prompts without words, duplicated prompts, training prompts in validation, no prompt file, batches larger than the file, a
full disk, a disk that is nearly full, a run folder that cannot be used, a learning rate of 0, an optimizer that forgets
parameters, a device that is not the run's. It takes about 8 s.
"""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace

from tests import faults
from tests.faults import examined, finding, findings, patient, written
from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_disk import LOGGED, checkpoint_bytes
from varrl_lightning.commands.doctor_run import RunLength
from varrl_lightning.learning_rates import WarmupCosine
from varrl_lightning.training.updater import OptimizerFactory


def rows(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


# --- prompts ------------------------------------------------------------------------------------------------------------------


def test_the_prompts_of_a_clean_configuration(clean: dict[str, Finding]) -> None:
    assert clean["prompts"].level == "pass"
    assert clean["prompts"].figure == "prompts: 4 of train, 2 of validation; all of training differ"


def test_prompts_without_words(tmp_path: Path) -> None:
    train = rows(tmp_path / "mine.jsonl", "a red sign", '"STONE"', '"RIVER"')
    found = finding(tmp_path, "prompts", reward=faults.ReadsWords(), data={"train": train})
    assert found.level == "FAIL"
    assert "can score images of 1 of 3 training prompts: 'a red sign'" in found.advice


def test_duplicated_prompts(tmp_path: Path) -> None:
    train = rows(tmp_path / "mine.jsonl", '"STONE"', '"STONE"')
    found = finding(tmp_path, "prompts", data={"train": train})
    assert found.level == "warn"
    assert "1 training prompts are duplicated: '\"stone\"'. In 1 of 1 batches" in found.advice


def test_training_prompts_in_validation(tmp_path: Path) -> None:
    found = examined(tmp_path, data={"validation": rows(tmp_path / "mine.jsonl", '"BREAD"')})
    assert found["prompts"].level == "FAIL"
    assert "train and validation share 1 prompts" in found["prompts"].advice
    assert found["gradients"].level == "pass", "the other checks go on"


def test_no_prompt_file(tmp_path: Path) -> None:
    found = examined(tmp_path, data={"train": "nowhere.jsonl"})
    assert found["prompts"].level == "FAIL"
    assert "cannot read the prompt file nowhere.jsonl" in found["prompts"].advice
    assert found["disk"].figure == found["gradients"].figure == "not checked"


def test_batches_larger_than_the_file(tmp_path: Path) -> None:
    found = finding(tmp_path, "prompts", data={"batch_size": 5})
    assert found.level == "FAIL"
    assert "only 4 training prompts" in found.advice


# --- the disk -----------------------------------------------------------------------------------------------------------------


def test_a_disk_without_room(clean: dict[str, Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = patient(tmp_path, data={"validation": None})  # one checkpoint is kept, and no picture
    for free, level, told in (
        (1.5, "FAIL", "The disk is full before the run ends"),
        (3.0, "warn", "Less than 2 times what is needed"),
        (20.0, "pass", ""),
    ):
        room = int(free * checkpoint_bytes(of.model)) + 100 * LOGGED
        monkeypatch.setattr(shutil, "disk_usage", lambda _, room=room: SimpleNamespace(free=room))
        found = findings(of, "disk")["disk"]
        assert found.level == level
        assert found.advice.startswith(told)
    assert clean["disk"].level == "pass"


def test_a_checkpoint_is_as_large_as_was_said(tmp_path: Path) -> None:
    model = patient(tmp_path).model
    optimizer = model.configure_optimizers()
    for p in model.policy.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.ckpt")
    said = checkpoint_bytes(model)
    tensors = 3 * len(list(model.policy.parameters()))
    assert said <= (tmp_path / "x.ckpt").stat().st_size < said + 1000 * tensors


def test_further_checkpoints_count(tmp_path: Path) -> None:
    kept = Namespace(save_top_k=3, monitor="val/reward")
    spec = Namespace(class_path="lightning.pytorch.callbacks.ModelCheckpoint", init_args=kept)
    assert "needed: 2 checkpoints" in finding(tmp_path, "disk", trainer={"val_check_interval": 2}).figure
    assert "needed: 5 checkpoints" in finding(tmp_path, "disk", trainer={"val_check_interval": 2, "callbacks": [spec]}).figure


def test_a_run_folder_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file is in the way")
    assert main(["doctor", "--config", str(written(tmp_path))]) == 1
    assert "is not a folder" in capsys.readouterr().err


# --- the optimizer and the Trainer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (lambda parameters: torch.optim.AdamW(parameters, lr=0.0), "With a learning rate of 0 no step changes anything"),
        (faults.Forgetful, "It must hold all of them; it lacks transformer."),
    ],
    ids=["learning rate of 0", "forgets parameters"],
)
def test_an_optimizer_that_trains_nothing(
    optimizer: OptimizerFactory, told: str, clean: dict[str, Finding], tmp_path: Path
) -> None:
    found = finding(tmp_path, "optimizer", optimizer=optimizer)
    assert found.level == "FAIL"
    assert told in found.advice
    assert clean["optimizer"].level == "pass"


def test_a_schedule_that_warms_up_from_0_is_no_fault(tmp_path: Path) -> None:
    found = finding(tmp_path, "optimizer", lr_scheduler=partial(WarmupCosine, warmup=5, total=100))
    assert found.level == "pass"
    assert "1.0e-03 at its highest" in found.figure


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
