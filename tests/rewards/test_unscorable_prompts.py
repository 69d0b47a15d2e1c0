"""Training prompts that no reward of a run can ever score are refused before training; those that some reward can are not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_loader, tiny_module, tiny_trainer
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.data import PromptDataModule
from varrl_lightning.rewards.flow_grpo_ocr import FlowGRPOOCR
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Prompt

SILENT, SPOKEN = Prompt("a red cube", id="cube"), Prompt('a sign "OPEN"', id="sign")


class Blind:
    """An engine that reads nothing."""

    detect = False

    def read(self, images: Tensor) -> list[Any]:
        return [[] for _ in images]


def brightness(images: Tensor, prompts: Any) -> Tensor:
    return images.mean(dim=(1, 2, 3))


class OfLabels:
    """A user's reward that says for itself what it can score."""

    def __call__(self, images: Tensor, prompts: Any) -> Tensor:
        return torch.zeros(len(images))

    def can_score(self, prompt: Prompt) -> bool:
        return prompt.label is not None


def weighted(**terms: tuple[Any, float]) -> WeightedRewards:
    return WeightedRewards({name: WeightedReward(reward, weight) for name, (reward, weight) in terms.items()})


def test_a_judge_is_asked_about_the_prompts_of_evaluations_alone() -> None:
    class Strict(OfLabels):
        def check_prompts(self, prompts: Sequence[Prompt]) -> None:
            if wrong := [prompt.id for prompt in prompts if not self.can_score(prompt)]:
                raise ValueError(f"without a label: {wrong}")

    module, labelled = tiny_module(evaluate_with={"second": Strict()}), replace(SPOKEN, label=3)
    with pytest.raises(
        ValueError, match=r"the reward 'second' of evaluate_with cannot score these prompts: without a label: \['sign'"
    ):
        module.check_prompts([labelled, SPOKEN])
    module.check_prompts([labelled, SPOKEN], evaluated=[labelled])
    module.check_prompts([SPOKEN], evaluated=[])


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_judge_is_loaded_before_training_where_there_is_a_validation() -> None:
    class Missing(OfLabels):
        def prepare(self) -> None:
            raise FileNotFoundError("no weights")

    for validates, done in ((True, 0), (False, 1)):
        module = tiny_module(evaluate_with=Missing())
        trainer = tiny_trainer(max_steps=1, num_sanity_val_steps=0, limit_val_batches=int(validates))
        with pytest.raises(FileNotFoundError) if validates else contextlib.nullcontext():
            trainer.fit(module, tiny_loader(), tiny_loader())
        assert module.rollouts_done == done


@pytest.mark.parametrize("kind", [OCRReward, FlowGRPOOCR])
def test_prompts_without_words_need_another_reward(kind: Any) -> None:
    ocr = kind(engine=Blind(), without_words="skip")
    alone = weighted(text=(ocr, 1.0))
    alone.check_prompts([SILENT, SPOKEN])  # no error of its own, and none in validation
    alone.check_training_prompts([SPOKEN])
    said = r"no reward that trains \(text\) can score images of 1 of 2 training prompts: 'cube'. Nothing can be learnt from them"
    with pytest.raises(ValueError, match=said):
        alone.check_training_prompts([SPOKEN, SILENT])
    weighted(text=(ocr, 1.0), light=(brightness, 0.1)).check_training_prompts([SILENT, SPOKEN])
    with pytest.raises(ValueError, match=r"\(text\) can score images of 1 of 1 training prompts: 'cube'"):
        weighted(text=(ocr, 1.0), light=(brightness, 0.0)).check_training_prompts([SILENT])  # weight 0 only logs


def test_several_rewards_share_the_prompts_between_them() -> None:
    ocr = OCRReward(engine=Blind(), without_words="skip")  # type: ignore[arg-type]
    rewards = weighted(text=(ocr, 1.0), labels=(OfLabels(), -1.0))
    rewards.check_training_prompts([SPOKEN, Prompt("a cube", label=3)])
    with pytest.raises(ValueError, match=r"\(text, labels\) can score images of 7 of 8 .*: ('cube', ){6}'cube'\. "):
        rewards.check_training_prompts([SPOKEN] + [SILENT] * 7)
    assert weighted(all=(rewards, 1.0)).can_score(SPOKEN)  # a weighted sum is a reward like any other
    assert not weighted(all=(rewards, 1.0)).can_score(SILENT)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_nor_does_one_in_a_trainer_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a cube", '"STONE"')))
    module = tiny_module(reward=OCRReward(engine=Blind(), without_words="skip"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no reward that trains \(OCRReward\) can score images of 1 of 2"):
        tiny_trainer(max_steps=1).fit(module, datamodule=PromptDataModule(tmp_path / "train.jsonl", batch_size=1))


@pytest.mark.parametrize("command", ["fit", "doctor"])
def test_a_run_does_not_begin(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    for name, labels in (("train", {"STONE": 1, "RIVER": 2, "CLOUD": None}), ("validation", {"BREAD": None})):
        rows = [json.dumps({"text": f'"{word}"', "label": label}) + "\n" for word, label in labels.items()]
        Path(f"{name}.jsonl").write_text("".join(rows))
    reward = f'{{"class_path": "{__name__.rpartition(".")[2]}.OfLabels"}}'
    monkeypatch.syspath_prepend(Path(__file__).parent)
    arguments = ["--config", "quickstart", "--model.policy", '{"class_path": "tests.tiny.tiny_policy"}', "--model.reward", reward]
    arguments += ["--model.m", "2", "--model.mask_source", "full", "--data.train", "train.jsonl"]
    arguments += ["--data.validation", "validation.jsonl", "--data.test", "null", "--data.batch_size", "2"]
    arguments += ["--trainer.val_check_interval", "1"]
    assert main([command, *arguments]) != 0
    said = "no reward that trains (OfLabels) can score images of 1 of 3 training prompts: '\"CLOUD\"'"
    assert said in "".join(capsys.readouterr())  # a finding of doctor's
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.jsonl", "validation.jsonl"]
