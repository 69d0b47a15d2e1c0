"""How many prompts the evaluation before and after takes. Costs about three seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.callbacks import Checkpoints, Summary


def summary_of(folder: Path, max_prompts: int | None, steps: int = 1, ckpt_path: Path | None = None) -> dict[str, Any]:
    callbacks = [Summary(max_prompts), Checkpoints()]
    fit = trainer(folder, callbacks, steps, limit_val_batches=0)
    fit.fit(small_module(), datamodule=datamodule(folder / "data"), ckpt_path=ckpt_path)
    return json.loads((folder / "summary.json").read_text())


def test_the_evaluation_can_be_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(tmp_path, 3)
    assert summary["eval_samples"] == 3
    assert summary["reward_before"] is not None
    assert "Evaluating 3 prompts before the first step" in capsys.readouterr().out


def test_the_evaluation_can_be_switched_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = summary_of(tmp_path, 0)
    assert (summary["eval_samples"], summary["reward_before"], summary["reward_after"], summary["steps"]) == (0, None, None, 1)
    assert "Evaluating" not in capsys.readouterr().out


def test_results_of_other_prompts_are_not_set_side_by_side(tmp_path: Path) -> None:
    summary_of(tmp_path, 3)
    with pytest.warns(UserWarning, match="on 3 prompts before its first step and on 2 after the last"):
        summary = summary_of(tmp_path, 2, steps=2, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert summary["reward_before"] is None
    assert summary["reward_after"] is not None


def test_a_negative_number_of_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="max_prompts must be at least 0, or None for all prompts, got -1"):
        Summary(-1)
