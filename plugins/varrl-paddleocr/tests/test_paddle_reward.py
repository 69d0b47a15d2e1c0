"""The reward by its name: Eq. 11-15 of what PaddleOCR reads."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from varrl_paddleocr import PaddleOCREngine, PaddleOCRReward
from wheel_models import drawn

from varrl_lightning.registry import REWARDS, available, build
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.ocr_engines import RapidOCREngine
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt


def spec(directories: tuple[Path, Path], **options: Any) -> dict[str, Any]:
    det, rec = map(str, directories)
    init_args = {"engine": "onnxruntime", "det_dir": det, "rec_dir": rec, "threads": 1, **options}
    return {"class_path": "paddleocr", "init_args": init_args}


def images(*texts: str) -> torch.Tensor:
    return torch.stack([torch.from_numpy(drawn((t, 4, 4), width=90).copy()).permute(2, 0, 1) / 255 for t in texts])


def test_a_case_by_hand(directories: tuple[Path, Path]) -> None:
    """Wanted hot, tea; read HOT TEE, both at the line's confidence s.

    Comp = (s + 0) / 2; Sim = (1 s + (1 - 1/3) s) / 2; Pen = .6 (one e too many + one a missing) / (6 + 6) = .1.
    """
    prompts = [Prompt("a sign", words=words) for words in (("hot", "tea"), ("hot", "tee"), ("hot",))]
    for detect in (True, False):
        reward = build(REWARDS, spec(directories, detect=detect))
        scores = reward(images("HOT TEE", "HOT TEE", ""), prompts)
        s = scores.components["confidence"][0].item()
        assert 0.9 < s < 1
        assert scores.components["completeness"].tolist() == pytest.approx([s / 2, s, 0])
        assert scores.components["similarity"].tolist() == pytest.approx([5 / 6 * s, s, 0], abs=1e-5)
        assert scores.components["penalty"].tolist() == pytest.approx([0.1, 0, 0.6])
        assert scores.values.tolist() == pytest.approx([4 / 3 * s - 0.1, 2 * s, -0.6], abs=1e-5)
        assert scores.texts == [["HOT", "TEE"], ["HOT", "TEE"], []]


def test_it_is_found_by_name_and_weighed(directories: tuple[Path, Path]) -> None:
    assert available(REWARDS)["paddleocr"].replace("_", "-").startswith("varrl-paddleocr ")
    reward = WeightedRewards.from_spec(spec(directories, detect=False))
    scores = reward(images("HOT"), [Prompt("a sign", words=("hot",))])
    assert 1.8 < scores.values.item() <= 2


def test_every_argument_of_the_ocr_reward_is_here() -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (PaddleOCRReward, OCRReward))
    readers = inspect.signature(PaddleOCREngine).parameters
    of_the_engine = {*inspect.signature(RapidOCREngine).parameters, "engine"}
    scoring = {name: p for name, p in theirs.items() if name not in of_the_engine}
    for name, parameter in {**readers, **scoring}.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind)
    assert set(ours) == set(readers) | set(scoring)


def test_arguments_reach_the_score(directories: tuple[Path, Path]) -> None:
    options = {"lam": 0.1, "match": "ld*conf", "bag": "max", "duplicates": "multiset", "case": "keep", "without_words": "skip"}
    reward = build(REWARDS, spec(directories, **options))
    assert {name: getattr(reward, name) for name in options} == options
    assert (reward.engine.engine, reward.engine.threads, reward.engine.detect) == ("onnxruntime", 1, True)


def test_prompts_and_models_are_checked_before_training(directories: tuple[Path, Path]) -> None:
    reward = build(REWARDS, spec(directories))
    with pytest.raises(ValueError, match="1 of 1 prompts have none: 'a cat'"):
        reward.check_prompts([Prompt("a cat")])
    assert reward.engine._opened is None
    reward.check_prompts([Prompt("a sign", words=("hot",))])
    assert reward.engine._opened is not None
