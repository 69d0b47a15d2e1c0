"""The doctor says whether drafts may be trained on, and asks only where they are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import PROMPTS, LeftBright, tiny_module
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_drafts import draft_stages, drafts_rank_branches
from varrl_lightning.types import Prompt

MANY = [Prompt(f'"{word}"', id=str(i)) for i, word in enumerate(p.words[0] for p in PROMPTS * 4)]


class Contrary(LeftBright):
    """Finds drafts, which it knows by their number, as bad as they are good."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        values = super().__call__(images, prompts)
        return -values if len(images) == 8 else values


class Blind(LeftBright):
    """Finds all drafts alike."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__(images, prompts) * (len(images) != 8)


class Dice:
    """Chance, whatever the image."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.rand(len(images), generator=self.generator)


def finding(reward: Any, prompts: Sequence[Prompt] = MANY, m: int = 3, **options: Any) -> Finding:
    module = tiny_module(reward=reward, num_continuations=0, m=m, group_size=12)
    stage = draft_stages(module.cycle)[0]
    with torch.no_grad():
        return drafts_rank_branches(module.policy, module.grpo, prompts, stage, 0, None, **options)


def test_drafts_that_rank_as_whole_images_pass() -> None:
    found = finding(LeftBright())
    assert (found.passed, found.advice) == (True, "")
    assert found.figure.startswith("drafts rank the branches as whole images do: tau-b of a draft with a whole image 0.")
    assert "16 of 16 groups of 8 branches had an order" in found.figure


@pytest.mark.parametrize("reward", [Contrary(), Blind()])
def test_drafts_that_rank_otherwise_or_not_at_all_fail(reward: LeftBright) -> None:
    found = finding(reward)
    assert not found.passed
    assert found.figure.startswith("drafts rank the branches worse than whole images do")
    assert "num_continuations 1, or a larger m" in found.advice


def test_of_few_groups_it_cannot_be_told() -> None:
    for found in (finding(LeftBright(), MANY[:4]), finding(LeftBright(), clock=itertools.count(step=25.0).__next__)):
        assert found.passed
        assert found.figure.startswith("it cannot be told")
        assert "it takes 8 groups" in found.advice
    assert "5 of 5 groups" in found.figure, "the sixth would have begun after two minutes"


def test_where_it_cannot_be_told_more_prompts_are_drawn() -> None:
    found = finding(Dice())
    assert found.passed
    assert found.figure.startswith("it cannot be told")
    assert "24 of 24 groups of 8 branches" in found.figure, "16 where it can be told"
    assert "within the interval" in found.advice or "do not agree either" in found.advice


def test_the_command_asks_only_where_drafts_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    model = {"policy": {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "mask_source": "full", "m": 2}
    data = {"train": "words.jsonl", "batch_size": 2}
    Path("x.yaml").write_text(yaml.safe_dump({"model": model | {"group_size": 4, "score": "sampler"}, "data": data}))
    assert main(["doctor", "--config", "x.yaml", "--model.num_continuations=0", "--trainer.accelerator=cpu"]) == 0
    last = capsys.readouterr().out.splitlines()[-2]
    assert last.startswith("warn  draft    it cannot be told")
    assert "6 of 6 groups of 4 branches" in last
    assert draft_stages(tiny_module(num_continuations=2).cycle) == []
