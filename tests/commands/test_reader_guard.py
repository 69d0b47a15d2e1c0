"""A run whose reader cannot read the words of its prompts does not start; `doctor` says so too."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from torch import Tensor

from tests.tiny import TinyPolicy, tiny_policy
from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_checks import reader_reads
from varrl_lightning.policies.state import Cond
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.rewards.ocr_engines import Word
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.training.guards import Guards
from varrl_lightning.training.reader_guard import require_readers
from varrl_lightning.types import Box, Prompt

GARBAGE = {"class_path": "ocr", "init_args": {"engine": {"class_path": f"{__name__}.Garbage"}}}
RAPIDOCR = {"class_path": "ocr", "init_args": {"detect": False, "threads": 1}}
WORDS = ["STONE", "RIVER", "BREAD", "CLOUD"]
LINES = [*WORDS * 2, "RIVER", "CLOUD", "МИР"]
PROMPTS = [Prompt(f'a sign "{word}"') for word in WORDS]


class Garbage:
    detect = True

    def read(self, images: Sequence[Any]) -> list[list[Word]]:
        return [[Word("".join(random.choices("abcdefgh", k=5)), 0.9, Box(0, 0, 1, 1))] for _ in images]


class Reads(BaseReward):
    """Reads words that begin with one of these letters, and scores by chance."""

    def __init__(self, letters: str) -> None:
        self.letters = letters

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean(dim=(1, 2, 3))

    def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None]:
        return [Reading(p.words[0].lower(), p.words[0][0] in self.letters) for p in prompts]


def reads(letters: str) -> dict[str, Any]:
    return {"class_path": f"{__name__}.Reads", "init_args": {"letters": letters}}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": f'{i} "{word}"'}) + "\n" for i, word in enumerate(LINES)))


class Polyglot(TinyPolicy):
    """A policy that takes words of any script."""

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        return super().encode_prompts([p if p.text.isascii() else Prompt('"STONE"', id=p.id) for p in prompts])


def polyglot() -> TinyPolicy:
    return tiny_policy(kind=Polyglot)


def run(command: str, reward: Any, *options: str, policy: str = "tiny.tiny_policy") -> int:
    model = {"policy": {"class_path": policy}, "reward": reward, "mask_source": "full", "m": 2, "group_size": 2}
    data = {"train": "words.jsonl", "batch_size": 2}
    trainer = {"accelerator": "cpu", "max_steps": 1, "logger": False, "callbacks": [], "enable_progress_bar": False}
    trainer |= {"default_root_dir": "run", "limit_val_batches": 0, "enable_checkpointing": False, "enable_model_summary": False}
    Path("x.yaml").write_text(yaml.safe_dump({"model": model | {"score": "sampler"}, "data": data, "trainer": trainer}))
    return main([command, "--config", "x.yaml", *options])


def require(reward: Any, **guards: Any) -> list[str]:
    return require_readers(WeightedRewards.from_spec(reward), PROMPTS, Guards(**guards))


# --- the commands -----------------------------------------------------------------------------------------------------------


def test_fit_does_not_start_with_garbage_unless_it_is_to_be_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    assert run("fit", GARBAGE) == 1
    printed = capsys.readouterr().err
    assert "varrl: the reward 'ocr' reads 0 of 4 drawn words right (0.00); reads '" in printed
    assert "guards.reader_check: warn" in printed
    assert not Path("run").exists(), "nothing was written"
    with pytest.warns(UserWarning, match="the reward 'ocr' reads 0 of 4 drawn words right"):
        assert run("fit", GARBAGE, "--model.guards.reader_check", "warn") == 0
    assert "reader: the reward 'ocr' reads 0 of 4" in capsys.readouterr().out


def test_the_doctor_names_characters_and_prompts_of_the_whole_file(capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor", RAPIDOCR, "--json", policy=f"{__name__}.polyglot")
    findings = {f["check"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["prompts"]["level"] == "warn"
    assert re.search(r"'М' \(U\+041C.*1 of 11 prompts: '10 \"МИР\"' \('МИР'\)", findings["prompts"]["advice"])
    found = findings["reader"]
    assert found["passed"]
    assert "reads 4 of 5 drawn words right (0.80); cannot write 'МИР' of 'МИР'" in found["figure"]
    assert "wrong below 0.9" in found["advice"]


# --- what they decide -------------------------------------------------------------------------------------------------------


def test_the_share_is_said_and_below_nine_tenths_is_a_warning() -> None:
    assert require(reads("SRBC")) == ["reader: the reward 'Reads' reads 4 of 4 drawn words right (1.00)"]
    with pytest.warns(UserWarning, match=r"'Reads' reads 2 of 4 drawn words right \(0\.50\).*wrong below 0\.9"):
        require(reads("SR"))
    with pytest.raises(ValueError, match=r"'Reads' reads 1 of 4 drawn words right \(0\.25\)(.|\n)*wrong below 0\.5"):
        require(reads("S"))


def test_a_mode_for_each_taste() -> None:
    assert require(GARBAGE, reader_check="ignore") == []
    with pytest.warns(UserWarning, match="reads 0 of 4"):
        assert len(require(GARBAGE, reader_check="warn")) == 1
    other = Guards()
    object.__setattr__(other, "reader_check", "off")
    with pytest.raises(ValueError, match=r"reader_check must be one of error, warn, ignore, got 'off'"):
        other.__post_init__()


def test_a_reward_that_does_not_train_stops_nothing() -> None:
    with pytest.warns(UserWarning, match="the reward 'log' reads 0 of 4"):
        require({"train": {"reward": reads("SRBC")}, "log": {"reward": reads(""), "weight": 0}})
    with pytest.raises(ValueError, match="the reward 'train' reads 1 of 4"):
        require({"train": {"reward": reads("S")}, "log": {"reward": reads("SRBC"), "weight": 0}})
    with pytest.raises(ValueError, match="the reward 'penalty' reads 0 of 4"):
        require({"train": {"reward": reads("SRBC")}, "penalty": {"reward": reads(""), "weight": -1}})


def test_words_of_another_script_do_not_start() -> None:
    prompts = [Prompt(f'"{word}"') for word in ("ОТКРЫТО", "영업", "שלום")]
    with pytest.raises(ValueError, match="reads 0 of 3 drawn words right"):
        require_readers(WeightedRewards.from_spec(RAPIDOCR), prompts, Guards())


def test_the_doctor_tries_judges_too() -> None:
    rewards = WeightedRewards.from_spec(reads("SRBC"))
    found = reader_reads(rewards, {"second": build(REWARDS, reads(""))}, PROMPTS, Guards())
    assert found.passed, "it decides nothing in training"
    assert "the reward 'Reads' reads 4 of 4" in found.figure
    assert "the judge 'second' reads 0 of 4 drawn words right" in found.figure
    assert "wrong below 0.5" in found.advice
    garbage = reader_reads(WeightedRewards.from_spec(GARBAGE), {}, PROMPTS, Guards())
    assert not garbage.passed
    assert "Either the reader does not work" in garbage.advice


def test_the_font_is_an_option() -> None:
    serif = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf")
    assert "reads 4 of 4" in require(RAPIDOCR, font=str(serif))[0]
    with pytest.raises(ValueError, match=r"font must be a TrueType or OpenType file, got 'words\.jsonl'"):
        require(RAPIDOCR, font="words.jsonl")
