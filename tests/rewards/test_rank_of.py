"""A reward of which only the order within its group counts. Costs three seconds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.tiny import PROMPTS, LeftBright, tiny_module, tiny_policy
from varrl_lightning.errors import PluginError, RewardError
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.groups import single_images
from varrl_lightning.rewards.rank_of import RankOf, win_rates
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Box, Prompt, Scores


class Reads:
    """The mean of an image, with all that a reward may say; none for black images."""

    reads_words = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        means = images.mean(dim=(1, 2, 3))
        regions = [[Box(i, 0, i + 1, 1)] for i in range(len(images))]
        return Scores(100 * means, {"mean": means}, regions, means > 0, [["word", str(i)] for i in range(len(images))], "keep")

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        raise ValueError("no prompts, please")

    def can_score(self, prompt: Prompt) -> bool:
        return prompt.text != "no"


def grey(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 4, 4)


def test_win_rates_by_counting() -> None:
    torch.manual_seed(0)
    values = torch.randint(0, 5, (9,)).float()
    counted = [sum((v > w) + 0.5 * (v == w) for j, w in enumerate(values) if j != i) / 8 for i, v in enumerate(values)]
    torch.testing.assert_close(win_rates(values), torch.tensor(counted))
    assert win_rates(values).mean() == pytest.approx(0.5)
    torch.testing.assert_close(win_rates(values.exp()), win_rates(values))


@pytest.mark.filterwarnings("ignore:the reward 'Reads' gave no score")
def test_images_without_a_score_are_left_out_and_the_rest_is_passed_on() -> None:
    scores = RankOf(Reads())(grey(0.2, 0.0, 0.9, 0.5), [Prompt("a")] * 4)
    assert scores.usable.tolist() == [True, False, True, True]
    assert scores.values[scores.usable].tolist() == [0.0, 1.0, 0.5]
    torch.testing.assert_close(scores.components["value"][scores.usable], torch.tensor([20.0, 90.0, 50.0]))
    assert scores.components["mean"][2] == pytest.approx(0.9)
    assert scores.regions is not None
    assert scores.regions[3] == [Box(3, 0, 4, 1)]
    assert (scores.texts or ())[2] == ["word", "2"]
    assert scores.case == "keep"


def test_an_image_alone_has_the_rewards_own_number() -> None:
    rewards = WeightedRewards({"order": WeightedReward(RankOf(Reads()))})
    images = grey(0.2, 0.9)
    assert rewards(images[:1], [Prompt("a")]).values.tolist() == pytest.approx([20.0])
    found = rewards.score_all(images, [Prompt("a")] * 2, single_images(2))
    assert found["order"].values.tolist() == pytest.approx([20.0, 90.0])


@pytest.mark.filterwarnings("ignore:the reward 'Reads' gave no score")
def test_one_score_in_a_group_says_nothing() -> None:
    assert not RankOf(Reads())(grey(0.0, 0.3, 0.0), [Prompt("a")] * 3).usable.any()


def test_it_asks_the_other_reward() -> None:
    reward = build(REWARDS, {"class_path": "rank_of", "init_args": {"reward": "tests.rewards.test_rank_of.Reads"}})
    assert reward.whole_groups
    assert reward.reads_words
    assert not reward.can_score(Prompt("no"))
    with pytest.raises(ValueError, match="no prompts, please"):
        reward.check_prompts([])
    assert reward.unreadable(["x"]) == {}
    assert reward.read_back(grey(0.1), [Prompt("a")]) is None


def test_a_reward_that_does_not_exist_is_named() -> None:
    with pytest.raises(PluginError, match=r"no reward named 'clip_scor'\. Did you mean 'clip_score'"):
        RankOf("clip_scor")


def test_an_error_of_the_other_reward_is_named() -> None:
    def broken(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(RewardError, match=r"the reward .* raised RuntimeError: out of order"):
        RankOf(broken)(grey(0.1, 0.2), [Prompt("a")] * 2)


@pytest.mark.parametrize("images_at_once", [None, 2])
def test_it_sees_whole_groups_in_training(images_at_once: int | None) -> None:
    """Sampled two at a time or all at once, each image is compared with all A * K of its prompt."""
    module = tiny_module(reward=RankOf(LeftBright()), group_size=4, images_at_once=images_at_once)
    grpo, prompts = module.grpo, PROMPTS[:2]
    rollout, scores = grpo.sample(tiny_policy(), prompts, grpo.cycle[0], prompt_keys(0, 0, prompts, torch.device("cpu")))
    (values,) = scores.values.values()
    own = LeftBright()(rollout.images, rollout.image_prompts).view(2, -1)
    torch.testing.assert_close(values.view(2, -1), torch.stack([win_rates(row) for row in own]))
