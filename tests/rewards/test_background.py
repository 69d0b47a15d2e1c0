"""Scores made beside the sampler are those made after it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_trainer, weights
from torch import Tensor

from varrl_lightning.errors import RewardError
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Box, Prompt, Scores


class Noting:
    """Mean brightness; notes which thread asked, and how many images there were."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self.fail_at = fail_at

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if len(self.calls) == self.fail_at:
            raise OSError("no connection")
        self.calls.append((threading.current_thread().name, len(images)))
        boxes = [[Box(i, 0, i + 1, 1)] for i in range(len(images))]
        return Scores(images.mean((1, 2, 3)), {"third": images[:, 2].mean((1, 2))}, boxes, texts=[[p.text] for p in prompts])


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_parts_are_joined_in_their_order() -> None:
    images, rewards = pictures(6), WeightedRewards.from_spec(noting := Noting())
    whole = rewards.score_all(images, PROMPTS)["Noting"]
    noting.calls.clear()
    with BackgroundScoring(rewards) as scoring:
        for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
            scoring.add(images[part], PROMPTS[part])
        found = scoring.result()["Noting"]
    assert torch.equal(found.values, whole.values)
    assert torch.equal(found.components["third"], whole.components["third"])
    assert found.texts == whole.texts
    assert [len(boxes) for boxes in found.regions or ()] == [1] * 6
    main = threading.current_thread().name
    assert [(name == main, count) for name, count in noting.calls] == [(False, 1), (False, 3), (True, 2)]
    assert scoring.seconds > 0


def test_one_part_is_scored_in_the_callers_thread() -> None:
    with BackgroundScoring(WeightedRewards.from_spec(noting := Noting())) as scoring:
        scoring.add(pictures(2), PROMPTS[:2])
        scoring.result()
    assert noting.calls == [(threading.current_thread().name, 2)]


def test_a_part_is_scored_before_the_next_is_there() -> None:
    scored = threading.Event()

    class Telling(Noting):
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
            scores = super().__call__(images, prompts)
            scored.set()
            return scores

    with BackgroundScoring(WeightedRewards.from_spec(Telling())) as scoring:
        scoring.add(pictures(1), PROMPTS[:1])
        assert not scored.is_set()
        scoring.add(pictures(1), PROMPTS[1:2])
        assert scored.wait(timeout=30), "the first part must be scored while the caller goes on"
        scoring.result()


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_a_failure_reaches_the_caller(fail_at: int) -> None:
    with BackgroundScoring(WeightedRewards.from_spec(Noting(fail_at))) as scoring:
        for i in range(3):
            scoring.add(pictures(1), PROMPTS[i : i + 1])
        with pytest.raises(RewardError, match="the reward 'Noting' raised OSError: no connection"):
            scoring.result()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*does not have many workers.*")
def test_training_is_the_same_in_parts_as_in_one() -> None:
    found = []
    for images_at_once in (None, 1):
        sgd = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
        module = tiny_module(reward=(noting := Noting()), images_at_once=images_at_once, **sgd)
        tiny_trainer(max_steps=4).fit(module, tiny_loader())
        found.append(weights(module))
        assert sum(count for _, count in noting.calls) == 3 * 2 * 8 + 2 * 4
        assert len(noting.calls) == (4 if images_at_once is None else 3 * 2 * 4 + 2 * 4)
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)


def test_a_part_that_could_not_be_scored_takes_nothing_from_the_others() -> None:
    scored = Scores(torch.zeros(1), {"a": torch.ones(1)}, [[Box(0, 0, 1, 1)]], texts=[["STONE"]])
    joined = Scores.join([scored, Scores(torch.full((2,), torch.nan), {"b": torch.ones(2)})])
    assert [len(boxes) for boxes in joined.regions or ()] == [1, 0, 0]
    assert [list(words) for words in joined.texts or ()] == [["STONE"], [], []]
    assert joined.usable.tolist() == [True, False, False]
    assert joined.components["a"].isnan().tolist() == [False, True, True]
    assert joined.components["b"].isnan().tolist() == [True, False, False]


def test_what_a_scored_part_does_not_tell_is_told_of_none() -> None:
    joined = Scores.join([Scores(torch.zeros(1), regions=[[Box(0, 0, 1, 1)]]), Scores(torch.zeros(2))])
    assert joined.regions is None
    assert joined.texts is None
