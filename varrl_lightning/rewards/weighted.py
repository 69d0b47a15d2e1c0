"""Several rewards at once, each with its weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.vmr import combine_rewards
from varrl_lightning.errors import PluginError, RewardError, did_you_mean, listed
from varrl_lightning.registry import REWARDS, build, name_of, named_class
from varrl_lightning.rewards.base import BaseReward, Reward, RewardFunction, score_groups, score_images
from varrl_lightning.rewards.groups import equal_prompts
from varrl_lightning.types import Prompt, Scores


@dataclass(frozen=True, init=False)
class WeightedReward:
    """One term of the sum; a plain function becomes a `Reward`."""

    reward: Reward
    weight: float

    def __init__(self, reward: RewardFunction, weight: float = 1.0) -> None:
        object.__setattr__(self, "reward", build(REWARDS, reward))
        object.__setattr__(self, "weight", weight)


class WeightedRewards(BaseReward):
    """Several rewards, each with a name and a weight.

    Args:
        terms: rewards by name; the first that has regions gives them. A negative weight makes a penalty, 0 only logs.

    Raises:
        ValueError: without a term, on a weight that is not finite, or when all are 0.
    """

    def __init__(self, terms: Mapping[str, WeightedReward]) -> None:
        for name, term in terms.items():
            if not math.isfinite(term.weight):
                raise ValueError(f"the weight of the reward {name!r} must be finite, got {term.weight}")
        if not any(term.weight for term in terms.values()):
            raise ValueError(f"at least one reward needs a weight other than 0, got {list(terms) or 'no reward'}")
        self.terms = dict(terms)
        self.whole_groups = any(term.reward.whole_groups for term in self.terms.values())

    @classmethod
    def from_spec(cls, spec: Any) -> WeightedRewards:
        """Build from a user's `reward`.

        One reward (a name, a class path, `{class_path, init_args}` or an object), or a mapping: `{"ocr": 1.0}`, where
        the name is the reward, or `{"text": {"reward": <one reward>, "weight": 0.5}}`, where it is the user's choice.

        Raises:
            PluginError: when a reward cannot be found or built.
            ValueError, TypeError: on an entry of another form.
        """
        if not isinstance(spec, Mapping) or "class_path" in spec:
            reward = build(REWARDS, spec)
            return cls({_name(spec, reward): WeightedReward(reward)})
        return cls({name: _term(name, entry) for name, entry in spec.items()})

    @property
    def reads_words(self) -> bool:  # type: ignore[override]
        """Whether any of them looks for words, if only for the log."""
        return any(term.reward.reads_words for term in self.terms.values())

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Ask each reward whether it can score these prompts.

        Raises:
            ValueError: whatever a reward objects to, with its name.
        """
        for name, term in self.terms.items():
            try:
                term.reward.check_prompts(prompts)
            except ValueError as error:
                raise ValueError(f"the reward {name!r} cannot score these prompts: {error}") from error

    def can_score(self, prompt: Prompt) -> bool:
        """Whether a reward that trains can: one of weight 0 only logs."""
        return any(term.weight and term.reward.can_score(prompt) for term in self.terms.values())

    def check_training_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that there is a reward to learn from in each of these prompts.

        Raises:
            ValueError: names the prompts that no reward can ever score.
        """
        hopeless = [prompt.id for prompt in prompts if not self.can_score(prompt)]
        if hopeless:
            trains = ", ".join(name for name, term in self.terms.items() if term.weight)
            raise ValueError(
                f"no reward that trains ({trains}) can score images of {len(hopeless)} of {len(prompts)} training prompts: "
                f"{listed(hopeless)}. Nothing can be learnt from them: leave them out, give them what the reward needs (one that "
                "reads needs words in quotes), or add a reward that scores any image, such as clip_score."
            )

    def prepare(self) -> None:
        """Let each reward load what is large."""
        for term in self.terms.values():
            term.reward.prepare()

    def score_all(
        self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], groups: Iterable[range] | None = None
    ) -> dict[str, Scores]:
        """The scores of each reward, by name.

        Args:
            groups: the images of each group, for rewards that compare them; by default those of one prompt that follow each other.

        Raises:
            RewardError: see `score_images`; also when there is not one prompt per image.
        """
        _check_prompts_of(images, prompts)
        groups = equal_prompts(prompts) if groups is None else list(groups)
        return {name: score_groups(term.reward, images, prompts, name, groups) for name, term in self.terms.items()}

    def score_part(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], whole_group: bool) -> dict[str, Scores]:
        """The scores of some of the rewards, each of which is called once.

        Args:
            whole_group: whether the images are one whole group, for the rewards that compare its images, and not any images, for
                the other rewards.

        Raises:
            RewardError: as for `score_all`.
        """
        _check_prompts_of(images, prompts)
        asked = {name: term.reward for name, term in self.terms.items() if term.reward.whole_groups == whole_group}
        return {name: score_images(reward, images, prompts, name) for name, reward in asked.items()}

    def total(self, scores: Mapping[str, Scores]) -> Scores:
        """The weighted sum; where a reward gave no score, its weight goes to the others.

        See `combine_rewards`. Its range is the weighted sum of the rewards' ranges. Regions and texts are those of the first reward
        that has any; `parts` holds all.
        """
        values, usable = combine_rewards(
            {name: s.values[:, None, None] for name, s in scores.items()},
            {name: s.usable[:, None, None] for name, s in scores.items()},
            {name: self.terms[name].weight for name in scores},
        )
        reader = next((s for s in scores.values() if s.texts is not None), None)
        return Scores(
            values.flatten().masked_fill(~usable.flatten(), torch.nan),
            regions=next((s.regions for s in scores.values() if s.regions is not None), None),
            valid=usable.flatten(),
            texts=None if reader is None else reader.texts,
            case="lower" if reader is None else reader.case,
            parts=dict(scores),
        )

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """`total` of `score_all`: a weighted sum is a reward like any other."""
        return self.total(self.score_all(images, prompts))


def ask_for_groups(spec: Any) -> bool:
    """Whether a user's `reward` compares the images of a group, as far as its class and arguments tell without building it.

    A reward that cannot be found is taken to compare none.
    """
    if isinstance(spec, Mapping) and "class_path" not in spec:
        named = {name: entry.get("reward", name) if isinstance(entry, Mapping) else name for name, entry in spec.items()}
        return any(ask_for_groups(reward) for reward in named.values())
    try:
        found, arguments = named_class(REWARDS, spec)
    except PluginError:
        return False
    return True in (arguments.get("whole_groups"), arguments.get("pairwise")) or getattr(found, "whole_groups", False) is True


def _check_prompts_of(images: Tensor, prompts: Sequence[Prompt]) -> None:
    if len(images) != len(prompts):
        raise RewardError(f"got {len(images)} images and {len(prompts)} prompts; expected one prompt per image")


def _name(spec: Any, reward: Reward) -> str:
    """The name of a single reward in the log: its plugin name or its class."""
    path = spec.get("class_path") if isinstance(spec, Mapping) else spec
    return path.rpartition(".")[2] if isinstance(path, str) else name_of(reward)


def _term(name: str, entry: Any) -> WeightedReward:
    if isinstance(entry, (int, float)) and not isinstance(entry, bool):
        return WeightedReward(build(REWARDS, name), float(entry))
    if not isinstance(entry, Mapping):
        raise TypeError(f"the reward {name!r} needs a weight, or a mapping with 'reward' and 'weight', got {entry!r}")
    known = ("reward", "weight")
    for key in entry:
        if key not in known:
            raise ValueError(f"the reward {name!r} has no key {key!r}.{did_you_mean(key, known)} It takes: reward, weight.")
    spec = entry.get("reward", name)
    return WeightedReward(build(REWARDS, spec), float(entry.get("weight", 1.0)))
