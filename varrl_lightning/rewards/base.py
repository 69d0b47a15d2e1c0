"""The protocol of a reward, the defaults of its optional members, and its answers as `Scores`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import RewardError
from varrl_lightning.types import Prompt, Scores

RewardResult: TypeAlias = "Scores | Tensor | list[float | None]"
RewardFunction: TypeAlias = "Callable[[Tensor, Sequence[Prompt]], RewardResult]"
DifferentiableFunction: TypeAlias = "Callable[[Tensor, Sequence[Prompt]], Scores | Tensor]"


@dataclass(frozen=True)
class Reading:
    """The text that a reward read in an image, and whether the prompt's words are in it, as the reward compares them."""

    text: str
    right: bool


@runtime_checkable
class Reward(Protocol):
    """Scores images against their prompts: any number, the higher the better.

    A user's reward needs `__call__` alone; a plain function will do. `registry.build` adds the other members, with the defaults
    that `BaseReward` has.
    """

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """One return per image, RGB in [0, 1]; NaN or None where there is none; a tensor has the shape (N,)."""
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

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Accept all prompts."""

    def can_score(self, prompt: Prompt) -> bool:
        """Score them all."""
        return True

    def prepare(self) -> None:
        """Load nothing."""

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """Know of no words that cannot be read."""
        return {}

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None] | None:
        """Read no text."""
        return None


@torch.no_grad()
def score_images(reward: RewardFunction, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt], name: str) -> Scores:
    """Call a reward and return its answer as `Scores` in float32 on the images' device.

    Where it gave NaN, infinity or None, `valid` is False and the value stays NaN, so that using it by mistake is seen.

    Raises:
        RewardError: when it raises, or answers with the wrong type, length or shape; names the reward.
    """
    try:
        answer = reward(images.detach(), prompts)
    except Exception as error:  # a user's reward may raise anything
        raise RewardError(f"the reward {name!r} raised {type(error).__name__}: {error}") from error
    scores = _as_scores(answer, len(images), name)
    values = scores.values.detach().to(images.device, torch.float32)
    valid = torch.isfinite(values)
    if scores.valid is not None:
        valid &= scores.valid.to(images.device)
    if not valid.all():
        # The same text each time, so that Python's default filter shows it once.
        warnings.warn(f"the reward {name!r} gave no score to some images; they are left out of their groups", stacklevel=3)
    return replace(
        scores,
        values=values.masked_fill(~valid, torch.nan),
        components={k: v.detach().to(images.device, torch.float32) for k, v in scores.components.items()},
        valid=valid,
    )


def _as_scores(answer: Any, n: int, name: str) -> Scores:
    if isinstance(answer, Scores):
        _check_lengths(answer, n, name)
        return answer
    if isinstance(answer, (list, tuple)):
        try:
            answer = torch.tensor([torch.nan if value is None else float(value) for value in answer], dtype=torch.float32)
        except (TypeError, ValueError) as error:
            raise RewardError(f"the reward {name!r} returned a list with {error}; expected numbers and None") from error
    if isinstance(answer, Tensor):
        _check_shape(answer, n, f"the reward {name!r} returned values")
        return Scores(values=answer.float())
    raise RewardError(
        f"the reward {name!r} returned a {type(answer).__name__}; "
        "expected Scores, a tensor of shape (N,) or a list of floats and None"
    )


def _check_lengths(scores: Scores, n: int, name: str) -> None:
    _check_shape(scores.values, n, f"the reward {name!r} returned values")
    for part, tensor in scores.components.items():
        _check_shape(tensor, n, f"the reward {name!r} returned the component {part!r}")
    if scores.valid is not None:
        _check_shape(scores.valid, n, f"the reward {name!r} returned valid")
    for what, lists in (("regions", scores.regions), ("texts", scores.texts)):
        if lists is not None and len(lists) != n:
            raise RewardError(f"the reward {name!r} returned {what} for {len(lists)} of {n} images; expected a list each")


def _check_shape(tensor: Tensor, n: int, what: str) -> None:
    if tuple(tensor.shape) != (n,):
        raise RewardError(f"{what} of shape {tuple(tensor.shape)} for {n} images; expected ({n},), one per image")
