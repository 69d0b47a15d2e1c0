"""How well the wanted words can be read in an image, as the CVTG-2K benchmark counts it, with its form of words or ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from varrl_lightning.algorithms.word_metrics import split_words, word_closeness, words_found
from varrl_lightning.types.normal_form import normal_words

Match = Literal["difflib", "levenshtein"]
"""By what the most similar word is found: difflib's matching blocks, or edit distance."""
Form = Literal["cvtg", "lower", "keep"]
"""How words are compared: `cvtg` by the benchmark's definition, lower-cased and nothing else; `lower` and `keep` in the normal
form of rewards, with that case."""


def _words(texts: Sequence[str], form: Form) -> list[str]:
    return split_words(texts) if form == "cvtg" else normal_words(texts, form)


class _MeanOverWords(Metric):
    """A sum over all wanted words of all images, divided by their number: no image counts more than its words.

    Args:
        form: how words are compared.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    score: Tensor
    words: Tensor

    def __init__(self, form: Form = "cvtg", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if form not in get_args(Form):
            raise ValueError(f"form must be 'cvtg', 'lower' or 'keep', got {form!r}")
        self.form: Form = form
        self.add_state("score", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("words", torch.tensor(0, dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        """Return the sum of the scores of one image's words, in their form already, and their number."""

    def update(self, wanted: Sequence[Sequence[str]], read: Sequence[Sequence[str]]) -> None:
        """Add images: the strings that each should show and those that were read in it; both are split into words.

        Raises:
            ValueError: when the two do not hold the same number of images.
        """
        if len(wanted) != len(read):
            raise ValueError(f"got the wanted words of {len(wanted)} images and the read words of {len(read)}; expected as many")
        for of_image in zip(wanted, read, strict=True):
            score, words = self._count(*(_words(texts, self.form) for texts in of_image))
            self.score += score
            self.words += words

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over words, in [0, 1]; NaN when no word was wanted."""
        return (self.score / self.words).float()


class WordAccuracy(_MeanOverWords):
    """Share of the wanted words that are among the words read in their image.

    Args:
        form: how words are compared, see `Form`.

    Examples:
        >>> metric = WordAccuracy()
        >>> metric.update([["Hot Tea"], ["OPEN"]], [["hot", "tee"], ["open", "open"]])
        >>> round(metric.compute().item(), 3)
        0.667
    """

    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        return words_found(wanted, read), len(wanted)


class NormalizedEditDistance(_MeanOverWords):
    """Mean closeness (Eq. 11) of each wanted word to the most similar word read in its image; higher is better.

    Args:
        match: how the most similar word is chosen: by `difflib`, which is CVTG-2K's definition, or by `levenshtein`, whose metric
            is never lower.
        form: as for `WordAccuracy`.

    Examples:
        >>> metric = NormalizedEditDistance()
        >>> metric.update([["tea"]], [["tee", "coffee"]])
        >>> round(metric.compute().item(), 3)
        0.667
    """

    def __init__(self, match: Match = "difflib", form: Form = "cvtg", **kwargs: Any) -> None:
        super().__init__(form, **kwargs)
        if match not in get_args(Match):
            raise ValueError(f"match must be 'difflib' or 'levenshtein', got {match!r}")
        self.match: Match = match

    def _count(self, wanted: Sequence[str], read: Sequence[str]) -> tuple[float, int]:
        return sum(word_closeness(wanted, read, self.match)), len(wanted)
