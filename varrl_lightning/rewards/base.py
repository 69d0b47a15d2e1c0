"""The protocol of a reward, the defaults of its optional members, and its answers as `Scores`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from varrl_lightning.errors import RewardError, raised_at
from varrl_lightning.rewards.answers import read_answer
from varrl_lightning.rewards.precision import full_precision
from varrl_lightning.types import Prompt, Scores

RewardResult: TypeAlias = "Scores | Tensor | NDArray[Any] | Sequence[float | None]"
"""What a reward may answer: a number per image, None or NaN where it has none."""
RewardFunction: TypeAlias = "Callable[[Tensor, Sequence[Prompt]], RewardResult]"
"""A reward that is a plain function of images (N, 3, H, W) and their N prompts."""
DifferentiableFunction: TypeAlias = "Callable[[Tensor, Sequence[Prompt]], Scores | Tensor]"
"""The same with a gradient from its answer to the images."""


@dataclass(frozen=True)
class Reading:
    """The text that a reward read in an image, and whether the prompt's words are in it, as the reward compares them."""

    text: str
    right: bool


@runtime_checkable
class Reward(Protocol):
    """Scores images against their prompts: any number, the higher the better.

    It is called in full precision, in any thread (see `full_precision`), with any part of a batch; with whole groups where it asks
    for them by `whole_groups`. A user's reward needs `__call__` alone; a plain function will do. `registry.build` adds the other
    members, with the defaults that `BaseReward` has.
    """

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """One return per image, RGB in [0, 1]; NaN or None where there is none; a tensor or array has the shape (N,)."""
        ...

    @property
    def whole_groups(self) -> bool:
        """Whether it compares the images of a group. By default False: each image is scored by itself.

        If True, a call has the A * K images of one prompt, branch by branch, each with its K continuations (with K = 0 the A
        drafts), wherever they were sampled. In validation and test there is one image per prompt, and a call has this one; it may
        be answered by None.
        """
        ...

    @property
    def scores_alone(self) -> bool:
        """Whether an image alone, as in validation and test, can have a score. By default True."""
        ...

    @property
    def differentiable(self) -> DifferentiableFunction | None:
        """A method `differentiable(images, prompts)`: the returns (N,) with a gradient to the images.

        None, the default, when `__call__` itself may have one.
        """
        ...

    @property
    def reads_words(self) -> bool:
        """Whether it looks for `Prompt.words`: two prompts that ask for the same words then overlap. By default it does not."""
        ...

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise a ValueError for prompts that cannot be scored; called before training begins. By default all can."""
        ...

    def can_score(self, prompt: Prompt) -> bool:
        """Whether images of this prompt can have a score at all; by default True.

        False for a prompt that is left to other rewards. Training prompts that no reward of a run can score are refused.
        """
        ...

    def counters(self) -> Mapping[str, float]:
        """What it has counted so far in this process, for the log: requests, failures, costs. By default nothing."""
        ...

    def prepare(self) -> None:
        """Load what is large; a service calls it before the first request. By default there is nothing to load."""
        ...

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """Those of these words that its reader can never read, each with the characters that the reader does not know.

        By default none: the reward does not read text, or does not know its reader's alphabet.
        """
        ...

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None] | None:
        """What it reads in images of its prompts' words, drawn plainly: a broken reader is found before training.

        None for an image that it gave no answer about. None in all, the default: the reward does not read text.
        """
        ...


class BaseReward:
    """The optional members of `Reward`, each with its default."""

    differentiable: DifferentiableFunction | None = None
    reads_words: bool = False
    whole_groups: bool = False
    scores_alone: bool = True

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Accept all prompts."""

    def can_score(self, prompt: Prompt) -> bool:
        """Score them all."""
        return True

    def counters(self) -> Mapping[str, float]:
        """Count nothing."""
        return {}

    def prepare(self) -> None:
        """Load nothing."""

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """Know of no words that cannot be read."""
        return {}

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None] | None:
        """Read no text."""
        return None


def score_images(reward: RewardFunction, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], name: str) -> Scores:
    """Call a reward in full precision and return its answer as `Scores` in float32 on the images' device.

    Where it gave NaN, infinity or None, `valid` is False and the value stays NaN, so that using it by mistake is seen.

    Raises:
        RewardError: when it raises, or answers with the wrong type, length or shape; names the reward, and the line of its code.
    """
    with torch.no_grad(), full_precision(images.device):
        try:
            # What inference mode has made can take no part in a gradient, which a reward may want.
            answer = reward(images.clone() if images.is_inference() else images.detach(), prompts)
        except Exception as error:  # a user's reward may raise anything
            message = f"the reward {name!r} raised {type(error).__name__}: {error}{raised_at(error)}"
            raise RewardError(message) from error
        scores = read_answer(answer, len(images), name, images.device)
    if not scores.usable.all():
        # The same text each time, so that Python's default filter shows it once.
        warnings.warn(f"the reward {name!r} gave no score to some images; they are left out of their groups", stacklevel=2)
    return scores


def score_groups(
    reward: Reward, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], name: str, groups: Iterable[range]
) -> Scores:
    """`score_images`, group by group if the reward asks for whole groups.

    Args:
        groups: the images of each group, in order; together they are all images.
    """
    if not reward.whole_groups:
        return score_images(reward, images, prompts, name)
    return Scores.join([score_images(reward, images[g.start : g.stop], prompts[g.start : g.stop], name) for g in groups])
