"""A reward in place of which only its order within a group counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.registry import REWARDS, build, name_of
from varrl_lightning.rewards.base import BaseReward, Reading, Reward, score_images
from varrl_lightning.types import Prompt, Scores


class RankOf(BaseReward):
    """The share of its group's other images that an image beats by another reward; a tie counts half.

        R_i = ( #{j != i: r_j < r_i} + 1/2 #{j != i: r_j = r_i} ) / (n - 1)

    In [0, 1], over the n images of a prompt that have a score. It is the image's win rate within its group, and its rank brought to
    [0, 1]. The reward's own scale and outliers drop out. The mean of a group is always 1/2, so that this number cannot rise over
    training: watch the component `value`, the other reward's own number, logged as `rewards/rank_of/value`.

    An image alone, as in validation and test, has no one to beat: there it has the other reward's own number. So does `val/reward`.

    Args:
        reward: the other reward: a plugin's name, a class path, `{class_path, init_args}`, or an object.

    Raises:
        PluginError: when the other reward cannot be found or built.
    """

    takes_rewards = ("reward",)
    whole_groups = True

    def __init__(self, reward: Any) -> None:
        self.reward: Reward = build(REWARDS, reward)
        self.reads_words, self.scores_alone = self.reward.reads_words, self.reward.scores_alone

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score the images of one prompt; texts, regions and components are the other reward's."""
        scores = score_images(self.reward, images, prompts, name_of(self.reward))
        known = scores.usable
        values = scores.values.clone()
        if len(images) > 1:
            values[known] = win_rates(values[known])
            known = known & (known.sum() > 1)
        components = {**scores.components, "value": scores.values}
        return Scores(values, components, regions=scores.regions, valid=known, texts=scores.texts, case=scores.case)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Ask the other reward."""
        self.reward.check_prompts(prompts)

    def can_score(self, prompt: Prompt) -> bool:
        """Ask the other reward."""
        return self.reward.can_score(prompt)

    def counters(self) -> Mapping[str, float]:
        """Ask the other reward."""
        return self.reward.counters()

    def prepare(self) -> None:
        """Let the other reward load what is large."""
        self.reward.prepare()

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """Ask the other reward."""
        return self.reward.unreadable(words)

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None] | None:
        """Ask the other reward."""
        return self.reward.read_back(images, prompts)


def win_rates(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The share of the others that each value is above, ties as half; 0 for a value without others.

    Examples:
        >>> import torch
        >>> win_rates(torch.tensor([3.0, 1.0, 3.0, 9.0]))
        tensor([0.5000, 0.0000, 0.5000, 1.0000])
    """
    above = (values[:, None] > values[None]).sum(dim=1)
    equal = (values[:, None] == values[None]).sum(dim=1) - 1
    return (above + 0.5 * equal) / max(len(values) - 1, 1)
