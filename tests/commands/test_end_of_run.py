"""What `varrl fit` says at its end: numbers of the run, and commands that can be pasted and that run."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from varrl_lightning.__main__ import main

RUN = "runs/it's a run"
CONFIG: dict[str, Any] = {
    "model": {
        "policy": {"class_path": "tiny.tiny_policy"},
        "reward": "tests.callbacks.running.Watched",
        "mask_source": "full",
        "m": 2,
        "group_size": 2,
        "num_continuations": 2,
    },
    "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl", "batch_size": 1},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "val_check_interval": 1,
        "enable_progress_bar": False,
        "default_root_dir": RUN,
    },
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name, word in (("train", "STONE"), ("validation", "RIVER"), ("test", "BREAD")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": f'a sign "{word}"'}) + "\n")
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(CONFIG))
    yield
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


def end_of(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["fit", "--config", "t.yaml", *options]) == 0
    return capsys.readouterr().out.partition("\nReached\n")[2]


def commands(said: str) -> list[list[str]]:
    return [shlex.split(line) for line in said.splitlines() if line.strip().startswith("varrl ")]


def test_the_numbers_are_those_of_the_run_and_the_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    said = end_of(capsys)
    found = json.loads((Path(RUN) / "summary.json").read_text())
    before, after = found["word_accuracy_before"], found["word_accuracy_after"]
    assert f"  word accuracy {before:.3f} -> {after:.3f}, on 1 test prompts, after 2 steps\n" in said
    highest = rf"{RUN}/checkpoints/best\.ckpt  val/word_accuracy \d\.\d+, the highest of all validations(; the last had \d\.\d+)?\n"
    assert re.search(highest, said)
    assert f"{RUN}/checkpoints/last.ckpt  after step 2\n" in said
    asked = commands(said)
    assert [words[:2] for words in asked] == [["varrl", "predict"], ["varrl", "test"], ["varrl", "export"]]
    assert all(words[words.index("--ckpt_path") + 1] == f"{RUN}/checkpoints/best.ckpt" for words in asked)
    assert asked[0][asked[0].index("--prompt") + 1] == 'a sign "STONE"'
    for words in asked[:2]:
        assert main(words[1:]) == 0
    assert len(list((Path(RUN) / "pictures").glob("*STONE*.png"))) == 1
    assert (Path(RUN) / "test" / "test.json").is_file()
    # The tiny policy has no published layout: what is asked for was understood.
    assert main([*asked[2][1:], "--dtype", "bfloat16"]) in (0, 1)


def test_without_summary_and_test_prompts_validation_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    off = ["--trainer.callbacks+=Summary", "--trainer.callbacks.max_prompts=0", "--data.test=null"]
    said = end_of(capsys, *off)
    assert " -> " not in said
    assert "the highest of all validations" in said
    assert [words[1] for words in commands(said)] == ["predict", "validate", "export"]


def test_without_validation_the_last_checkpoint_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    said = end_of(capsys, "--trainer.limit_val_batches=0")
    assert "word accuracy" in said
    assert "best.ckpt" not in said
    assert all(f"{RUN}/checkpoints/last.ckpt" in words for words in commands(said))
    assert len(commands(said)) == 3


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=true", "--trainer.enable_checkpointing=false"])
def test_a_run_that_leaves_no_checkpoint_says_nothing(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert end_of(capsys, option) == ""
