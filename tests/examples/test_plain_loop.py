"""The plain loop trains; one update, since a picture is read by the real OCR engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


def test_the_plain_loop_trains_without_a_trainer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    lightning = {name for name in sys.modules if name.startswith("lightning.pytorch.trainer")}
    import plain_loop

    means = plain_loop.train(updates=2, prompts_at_once=2)
    assert len(means) == 2
    assert all(0 < mean < 3 for mean in means)
    assert capsys.readouterr().out.count("update ") == 2
    assert {name for name in sys.modules if name.startswith("lightning.pytorch.trainer")} == lightning
