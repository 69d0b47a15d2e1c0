"""Several rewards at once, from what a user writes to one number per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from varrl_lightning.errors import PluginError, RewardError
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Box, Prompt, Scores

IMAGES = torch.rand(4, 3, 2, 2)
PROMPTS = [Prompt(text=f"p{i}") for i in range(4)]


class Constant:
    """A reward for these tests."""

    def __init__(self, *values: float | None, regions: Any = None, refuse: bool = False) -> None:
        self.values, self.regions, self.refuse = values or (1.0,) * 4, regions, refuse

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = torch.tensor([math.nan if v is None else float(v) for v in self.values])
        return Scores(values, regions=self.regions)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if self.refuse:
            raise ValueError("no words in p0")


def weighted(**terms: tuple[Any, float]) -> WeightedRewards:
    return WeightedRewards({name: WeightedReward(reward, weight) for name, (reward, weight) in terms.items()})


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("ocr", "ocr"),
        ("varrl_lightning.rewards.ocr.OCRReward", "OCRReward"),
        ({"class_path": "ocr", "init_args": {"detect": False}}, "ocr"),
        ({"class_path": "varrl_lightning.rewards.ocr.OCRReward"}, "OCRReward"),
        (OCRReward(), "OCRReward"),
    ],
)
def test_one_reward(spec: Any, name: str) -> None:
    rewards = WeightedRewards.from_spec(spec)
    assert list(rewards.terms) == [name]
    assert rewards.terms[name].weight == 1.0
    assert isinstance(rewards.terms[name].reward, OCRReward)


def test_a_mapping_of_rewards() -> None:
    inner = {"class_path": "ocr", "init_args": {"lam": 0.5}}
    mine = Constant()
    rewards = WeightedRewards.from_spec({"ocr": 2, "text": {"reward": inner, "weight": -0.5}, "mine": {"reward": mine}})
    assert {name: term.weight for name, term in rewards.terms.items()} == {"ocr": 2.0, "text": -0.5, "mine": 1.0}
    assert rewards.terms["mine"].reward is mine
    assert rewards.terms["text"].reward.lam == 0.5  # type: ignore[attr-defined]
    assert isinstance(WeightedRewards.from_spec({"ocr": {"weight": 3.0}}).terms["ocr"].reward, OCRReward)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({}, ValueError, "at least one reward needs a weight other than 0, got no reward"),
        ({"ocr": 0.0}, ValueError, r"at least one reward needs a weight other than 0, got \['ocr'\]"),
        ({"ocr": math.nan}, ValueError, "the weight of the reward 'ocr' must be finite, got nan"),
        ({"ocrr": 1.0}, PluginError, "no reward named 'ocrr'. Did you mean 'ocr'"),
        ({"ocr": "1.0"}, TypeError, "the reward 'ocr' needs a weight, or a mapping with 'reward' and 'weight', got '1.0'"),
        ({"ocr": True}, TypeError, "the reward 'ocr' needs a weight, .* got True"),
        ({"ocr": {"wieght": 1.0}}, ValueError, "'ocr' has no key 'wieght'. Did you mean 'weight'\\? It takes: reward, weight"),
        (3, TypeError, "a reward is called with .* got 3, which is not callable"),
        (None, TypeError, "a reward is called with .* got None, which is not callable"),
    ],
)
def test_wrong_specs(spec: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WeightedRewards.from_spec(spec)


@pytest.mark.filterwarnings("ignore:the reward")
def test_the_weighted_sum_against_a_loop() -> None:
    values = {"a": (1.0, 2.0, None, None), "b": (10.0, None, 5.0, None), "c": (100.0, 1.0, 1.0, 1.0)}
    weights = {"a": 2.0, "b": -0.5, "c": 0.0}
    rewards = weighted(**{name: (Constant(*values[name]), weights[name]) for name in values})
    total = rewards(IMAGES, PROMPTS)
    assert total.valid is not None
    assert total.valid.tolist() == [True, True, True, False]  # c weighs nothing: it cannot stand in for the others
    for i in range(3):
        there = [name for name in values if values[name][i] is not None]
        whole, left = sum(map(abs, weights.values())), sum(abs(weights[name]) for name in there)
        expected = sum(weights[name] * values[name][i] for name in there) * whole / left  # type: ignore[operator]
        assert total.values[i].item() == pytest.approx(expected)
    assert total.values[3].isnan()


def test_each_reward_is_also_reported_alone() -> None:
    scores = weighted(a=(Constant(1, 2, 3, 4), 2.0), b=(Constant(5, 6, 7, 8), 1.0)).score_all(IMAGES, PROMPTS)
    assert {name: s.values.tolist() for name, s in scores.items()} == {"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]}


def test_regions_come_from_the_first_that_has_some() -> None:
    boxes = [[[Box(0, 0, 1, 1)]] * 4, [[Box(0, 0, 2, 2)]] * 4]
    rewards = weighted(a=(Constant(), 1), b=(Constant(regions=boxes[0]), 1), c=(Constant(regions=boxes[1]), 1))
    assert rewards(IMAGES, PROMPTS).regions == boxes[0]
    assert weighted(a=(Constant(), 1))(IMAGES, PROMPTS).regions is None


def test_prompts_are_checked_by_those_that_can() -> None:
    weighted(a=(Constant(), 1), b=(lambda images, prompts: images.mean(dim=(1, 2, 3)), 1)).check_prompts(PROMPTS)
    with pytest.raises(ValueError, match="the reward 'b' cannot score these prompts: no words in p0"):
        weighted(a=(Constant(), 1), b=(Constant(refuse=True), 1)).check_prompts(PROMPTS)


def test_images_and_prompts_must_match() -> None:
    with pytest.raises(RewardError, match="got 4 images and 3 prompts; expected one prompt per image"):
        weighted(a=(Constant(), 1)).score_all(IMAGES, PROMPTS[:3])
