"""How well the wanted words can be read in an image, as the CVTG-2K benchmark counts it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from varrl_lightning.algorithms.word_metrics import split_words, word_closeness, words_found

Match = Literal["difflib", "levenshtein"]


def _word_accuracy_update(wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
    words = split_words(wanted)
    return words_found(words, split_words(read)), len(words)


def _ned_update(wanted: Sequence[str], read: Sequence[str], match: Match) -> tuple[float, int]:
    words = split_words(wanted)
    return sum(word_closeness(words, split_words(read), match)), len(words)


class _MeanOverWords(Metric):
    """A sum over all wanted words of all images, divided by their number: no image counts more than its words."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    score: Tensor
    words: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("score", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("words", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        """Return the sum of the scores of one image's words, and their number."""

    def update(self, wanted: Sequence[Sequence[str]], read: Sequence[Sequence[str]]) -> None:
        """Add images: the strings that each should show and those that were read in it; both are lower-cased and split.

        Raises:
            ValueError: when the two do not hold the same number of images.
        """
        if len(wanted) != len(read):
            raise ValueError(f"got the wanted words of {len(wanted)} images and the read words of {len(read)}; expected as many")
        for of_image in zip(wanted, read, strict=True):
            score, words = self._count(*of_image)
            self.score += score
            self.words += words

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over words, in [0, 1]; NaN when no word was wanted."""
        return (self.score / self.words).float()


class WordAccuracy(_MeanOverWords):
    """Share of the wanted words that are among the words read in their image.

    Examples:
        >>> metric = WordAccuracy()
        >>> metric.update([["Hot Tea"], ["OPEN"]], [["hot", "tee"], ["open", "open"]])
        >>> round(metric.compute().item(), 3)
        0.667
    """

    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        return _word_accuracy_update(wanted, read)


class NormalizedEditDistance(_MeanOverWords):
    """Mean closeness (Eq. 11) of each wanted word to the most similar word read in its image; higher is better.

    Args:
        match: how the most similar word is chosen: by `difflib`, which is CVTG-2K's definition, or by `levenshtein`, whose metric
            is never lower.

    Examples:
        >>> metric = NormalizedEditDistance()
        >>> metric.update([["tea"]], [["tee", "coffee"]])
        >>> round(metric.compute().item(), 3)
        0.667
    """

    def __init__(self, match: Match = "difflib", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if match not in get_args(Match):
            raise ValueError(f"match must be 'difflib' or 'levenshtein', got {match!r}")
        self.match: Match = match

    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        return _ned_update(wanted, read, self.match)
