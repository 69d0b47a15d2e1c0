"""A reward that compares the images of a group is called with whole groups, however they are sampled and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import PROMPTS, LeftBright, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from varrl_lightning.commands.doctor_checks import reward_runs
from varrl_lightning.gradient_agreement.meter import AgreementMeter
from varrl_lightning.gradient_agreement.variants import Variant
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.module import VARGRPO
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.rewards.groups import whole_groups
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards, ask_for_groups
from varrl_lightning.types import Box, Prompt, Scores, Stage

STAGE = Stage(0, 2, branches=4, continuations=2, name="prefix")


class Rank:
    """The rank of an image's brightness within what it is called with; notes the prompts of each call."""

    whole_groups = True

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls.append([prompt.text for prompt in prompts])
        return images.mean(dim=(1, 2, 3)).argsort().argsort().float()


class Listing(Rank):
    """`Rank` with regions and words, by which its rows can be told apart."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        ranks = super().__call__(images, prompts)
        boxes = [[Box(i, 0, i + 1, 1)] for i in range(len(images))]
        return Scores(ranks, {"rank": ranks}, boxes, texts=[[f"{p.text} {i}"] for i, p in enumerate(prompts)])


def ranks(images: Tensor, each: int) -> Tensor:
    """What `Rank` should say of groups of `each` images."""
    return images.mean(dim=(1, 2, 3)).unflatten(0, (-1, each)).argsort(dim=1).argsort(dim=1).flatten().float()


def test_no_reward_asks_for_groups_unless_it_says_so() -> None:
    assert BaseReward.whole_groups is False
    assert build(REWARDS, lambda images, prompts: [0.0]).whole_groups is False
    assert build(REWARDS, Rank()).whole_groups is True
    assert WeightedRewards.from_spec(Rank()).whole_groups is True
    assert WeightedRewards.from_spec(LeftBright()).whole_groups is False


RANK = f"{__name__}.Rank"


@pytest.mark.parametrize(
    ("spec", "asks"),
    [
        (RANK, True),
        (Rank, True),
        (Rank(), True),
        ({"class_path": RANK}, True),
        ({"tests.tiny.LeftBright": 1.0, RANK: 0.5}, True),
        ({"light": {"reward": {"class_path": RANK}, "weight": 0.5}}, True),
        ({"class_path": "http", "init_args": {"url": "http://127.0.0.1:1", "whole_groups": True}}, True),
        ({"class_path": "http", "init_args": {"url": "http://127.0.0.1:1"}}, False),
        ("tests.tiny.LeftBright", False),
        ("not_installed.Reward", False),
    ],
)
def test_whether_a_reward_asks_for_groups_is_known_before_it_is_built(spec: Any, asks: bool) -> None:
    assert ask_for_groups(spec) is asks


@pytest.mark.parametrize("images_at_once", [None, 2, 3, 5, 6, 100])
def test_training_calls_it_with_whole_groups(images_at_once: int | None) -> None:
    """Two prompts, the second twice, so that groups of equal prompts follow each other."""
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[1]]
    rewards = {"rank": {"reward": (rank := Listing()), "weight": 1.0}, "light": {"reward": LeftBright(), "weight": 1.0}}
    module = tiny_module(reward=rewards)
    keys = prompt_keys(0, 0, prompts, torch.device("cpu"))
    rollout, scores = module.grpo.sample_and_score(module.policy, prompts, STAGE, keys, images_at_once=images_at_once)
    assert rank.calls == [[prompt.text] * 8 for prompt in prompts]
    assert list(scores) == ["rank", "light"]
    assert torch.equal(scores["rank"].values, ranks(rollout.images, 8))
    assert torch.equal(scores["rank"].components["rank"], scores["rank"].values)
    assert scores["rank"].texts == [[f"{prompt.text} {i}"] for prompt in prompts for i in range(8)]
    assert [boxes[0].x0 for boxes in scores["rank"].regions or ()] == [*range(8)] * 3
    assert torch.equal(scores["light"].values, LeftBright()(rollout.images, []))


def test_a_group_that_is_sampled_in_part_is_refused() -> None:
    module = tiny_module(reward=Rank())
    keys = prompt_keys(0, 0, PROMPTS[:2], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'Rank' compares the images of a group .*groups \[1\] only a part of the 4 branches"):
        module.grpo.sample(module.policy, PROMPTS[:2], STAGE, keys, branches=range(6))
    rollout, scores = module.grpo.sample_and_score(module.policy, PROMPTS[:2], STAGE, keys, branches=(4, 5, 6, 7, 7))
    assert scores["Rank"].values.tolist() == [*(own := ranks(rollout.images[:8], 8).tolist()), *own[-2:]]


@pytest.mark.parametrize(
    ("branches", "found"),
    [
        (range(8), {0: range(8), 1: range(8, 16)}),
        (range(2, 10), {1: range(4, 12)}),
        (range(1, 4), {}),
        ((6, 7, 7, 7), {}),
        ((4, 5, 6, 7, 7, 7), {1: range(8)}),
        ((4, 6, 5, 7), {}),
    ],
)
def test_which_groups_are_whole(branches: Sequence[int], found: dict[int, range]) -> None:
    assert whole_groups(branches, STAGE) == found


@pytest.mark.parametrize("parts", [(8,), (3, 3, 2), (1,) * 8, (5, 3)])
def test_without_a_stage_equal_prompts_are_a_group(parts: Sequence[int]) -> None:
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    prompts = [PROMPTS[0]] * 5 + [PROMPTS[1]] * 3
    rewards = WeightedRewards({"rank": WeightedReward(rank := Rank())})
    with BackgroundScoring(rewards) as scoring:
        for rows in torch.arange(8).split(list(parts)):
            scoring.add(images[rows], [prompts[i] for i in rows])
        found = scoring.result()["rank"].values
    assert torch.equal(found, torch.cat([ranks(images[:5], 5), ranks(images[5:], 3)]))
    assert torch.equal(rewards.score_all(images, prompts)["rank"].values, found)
    assert [len(call) for call in rank.calls] == [5, 3] * 2


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_a_run_is_the_same_in_parts_and_an_evaluation_has_groups_of_one_image() -> None:
    trained = []
    for images_at_once in (None, 3):
        rewards = {"rank": {"reward": (rank := Rank()), "weight": 1.0}, "light": {"reward": LeftBright(), "weight": 0.5}}
        sgd: dict[str, Any] = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
        module = tiny_module(reward=rewards, images_at_once=images_at_once, evaluate_with=(judge := Rank()), **sgd)
        trainer = tiny_trainer(max_steps=2, val_check_interval=2, num_sanity_val_steps=0)
        trainer.fit(module, tiny_loader(), tiny_loader(PROMPTS[:3], batch_size=3))
        trained.append(weights(module))
        assert [len(call) for call in rank.calls] == [8] * 4 + [1] * 3
        assert [len(call) for call in judge.calls] == [1] * 3, "it never sees training"
        assert float(trainer.callback_metrics["val/judges/Rank/reward"]) == 0
        trainer.test(module, tiny_loader(PROMPTS[:3], batch_size=3), verbose=False)
        assert [len(call) for call in judge.calls] == [1] * 9
        for way in ("test", "test/greedy"):
            assert float(trainer.callback_metrics[f"{way}/judges/Rank/reward"]) == 0
    torch.testing.assert_close(trained[0], trained[1], atol=1e-6, rtol=0)


def test_doctor_calls_it_with_whole_groups() -> None:
    module = tiny_module(reward=(rank := Rank()))
    keys = prompt_keys(0, 0, PROMPTS[:2], torch.device("cpu"))
    rollout, _ = module.grpo.sample_and_score(module.policy, PROMPTS[:2], STAGE, keys)
    rank.calls.clear()
    assert reward_runs(module.rewards, rollout).passed
    assert [len(call) for call in rank.calls] == [8, 8, 8]


def variants(module: VARGRPO, continuations: Sequence[int]) -> list[Variant]:
    return [Variant(f"K = {K}", replace(module.grpo, cycle=(replace(STAGE, continuations=K),))) for K in continuations]


def test_agreement_compares_the_images_that_a_variant_has() -> None:
    """Images are shared with a variant of more continuations, among which a rank is another one."""
    module = tiny_module(tiny_policy(), reward=Rank())
    found = []
    for continuations in ((1,), (1, 4)):
        meter = AgreementMeter(module.policy, variants(module, continuations))
        for prompts in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]):
            meter.add(prompts)
        found.append(meter.measured()[0].cosine)
    assert found[0] == pytest.approx(found[1], abs=2e-5)
