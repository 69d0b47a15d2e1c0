"""`--ckpt_path last` and `best` are those of the configuration's run folder, for the commands that have no Trainer too."""

from __future__ import annotations

from pathlib import Path

import pytest

from varrl_lightning.__main__ import main

QUICK = ["--model.reward", "tiny.LeftBright", "--model.mask_source", "full", "--model.m", "2", "--model.group_size", "2"]


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize(
    "command", [["export", "--output", "w.pth"], ["doctor"], ["agreement", "--batches", "2"]], ids=lambda c: c[0]
)
def test_a_run_without_it_is_named(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/c/checkpoints").mkdir(parents=True)
    Path("runs/c/checkpoints/other.ckpt").touch()
    Path("c.yaml").write_text(
        "model: {policy: {class_path: tiny.tiny_policy}}\ndata: {train: builtin:lettering/train.jsonl, batch_size: 2}\n"
    )
    assert main([*command, "--config", "c.yaml", *QUICK, "--ckpt_path", name]) == 1
    assert f"--ckpt_path {name}: there is no runs/c/checkpoints/{name}.ckpt; found there: other.ckpt" in capsys.readouterr().err
    assert not Path("w.pth").exists()
