"""The paper's text-rendering reward: can the words be read (Eq. 11-15)?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.ocr_score import ocr_score
from varrl_lightning.algorithms.word_metrics import word_closeness, words_found
from varrl_lightning.errors import listed
from varrl_lightning.rewards.alphabets import unreadable_words, warn_of_unreadable
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine, Word, one_of
from varrl_lightning.rewards.ocr_lines import MAX_WIDTH
from varrl_lightning.rewards.ocr_reading import read_words
from varrl_lightning.types import Prompt, Scores
from varrl_lightning.types.normal_form import Case, normal_words

Match = Literal["ld", "ld*conf"]
Bag = Literal["symmetric", "max"]
Duplicates = Literal["set", "multiset"]
WithoutWords = Literal["error", "skip"]

COMPONENTS = (
    "completeness",
    "similarity",
    "penalty",
    "extra_ratio",
    "in_order",
    "word_accuracy",
    "ned",
    "confidence",
)


class OCRReward(BaseReward):
    """Completeness + similarity - penalty of the words that an OCR engine reads: 2 is perfect, -lam is an empty image.

    Args:
        detect: look for the text first. False when each image is one line, or each of its prompt's regions is: many
            times faster, which the inner loop of a small model needs.
        threads: number of threads of the engine; torch's when None.
        confidence: which one a word gets: that of its `line`, as in the paper, or that of the `word` itself.
        max_line_width, min_confidence: see `RapidOCREngine`.
        engine: another `OCREngine`; it ignores all arguments before this one.
        lam: weight of the penalty, >= 0.
        match, bag, duplicates: see `ocr_score`.
        case: `lower` compares without upper and lower case, `keep` with: for the reward, word accuracy, NED and marks on pictures.
        without_words: prompts without words are an `error` before training; `skip` leaves them to other rewards.
    """

    reads_words = True

    def __init__(
        self,
        detect: bool = True,
        *,
        threads: int | None = None,
        confidence: Literal["line", "word"] = "line",
        max_line_width: int = MAX_WIDTH,
        min_confidence: float = 0.0,
        engine: OCREngine | None = None,
        lam: float = 0.6,
        match: Match = "ld",
        bag: Bag = "symmetric",
        duplicates: Duplicates = "set",
        case: Case = "lower",
        without_words: WithoutWords = "error",
    ) -> None:
        if not lam >= 0:
            raise ValueError(f"lam must be >= 0, got {lam}")
        one_of("match", match, Match)
        one_of("bag", bag, Bag)
        one_of("duplicates", duplicates, Duplicates)
        one_of("case", case, Case)
        one_of("without_words", without_words, WithoutWords)
        self.engine = RapidOCREngine(detect, threads, confidence, max_line_width, min_confidence) if engine is None else engine
        self.lam, self.match, self.bag, self.duplicates, self.case = lam, match, bag, duplicates, case
        self.without_words = without_words

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise a ValueError that names the prompts without words; warn of those with characters that the reader cannot write."""
        missing = [p.id for p in prompts if not normal_words(p.words)]
        if missing and self.without_words == "error":
            raise ValueError(
                f"the OCR reward needs words to look for, and {len(missing)} of {len(prompts)} prompts have none: "
                f"{listed(missing)}. Quote them in the text, list them under 'words', or set without_words to 'skip'."
            )
        warn_of_unreadable(prompts, lambda prompt: prompt.words, self.unreadable, self.engine)

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """The words with characters that the engine cannot write; see `unreadable_words`."""
        return unreadable_words(self.engine, words, self.case)

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None]:
        """What the engine reads, and whether it is the prompt's one word as `completeness` (Eq. 12) compares it."""
        words = self.read(images, prompts)
        complete = self.score(words, prompts).components["completeness"]
        texts = [" ".join(word.text for word in of_image or ()) for of_image in words]
        return [Reading(text, share > 0) for text, share in zip(texts, complete.tolist(), strict=True)]

    def can_score(self, prompt: Prompt) -> bool:
        """Whether there are words to look for."""
        return bool(normal_words(prompt.words))

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images, in [-lam, 2]; those that the engine failed on are invalid, not 0."""
        return self.score(self.read(images, prompts), prompts)

    def read(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[list[Word] | None]:
        """The words of each image, None where the engine failed; see `read_words`."""
        return read_words(self.engine, images, prompts)

    def score(self, words: Sequence[Sequence[Word] | None], prompts: Sequence[Prompt]) -> Scores:
        """Eq. 15 for what was read; value and components are NaN where it was not, or where the prompt has no words."""
        rows = [self._row(of_image, prompt) for of_image, prompt in zip(words, prompts, strict=True)]
        table = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 1 + len(COMPONENTS))
        return Scores(
            values=table[:, 0],
            components=dict(zip(COMPONENTS, table[:, 1:].unbind(dim=1), strict=True)),
            regions=[[word.box for word in of_image or ()] for of_image in words],
            valid=table[:, 0].isfinite(),
            texts=[[word.text for word in of_image or ()] for of_image in words],
            case=self.case,
        )

    def _row(self, words: Sequence[Word] | None, prompt: Prompt) -> list[float]:
        wanted = normal_words(prompt.words, self.case)
        if words is None or not wanted:
            return [math.nan] * (1 + len(COMPONENTS))
        score = ocr_score(
            prompt.words,
            [(word.text, word.confidence) for word in words],
            lam=self.lam,
            match=self.match,
            bag=self.bag,
            duplicates=self.duplicates,
            case=self.case,
        )
        read = normal_words((word.text for word in words), self.case)
        return [
            score.reward,
            score.completeness,
            score.similarity,
            score.penalty,
            score.extra_ratio,
            score.in_order,
            words_found(wanted, read) / len(wanted),
            statistics.fmean(word_closeness(wanted, read)),
            statistics.fmean(word.confidence for word in words) if words else 0.0,
        ]
