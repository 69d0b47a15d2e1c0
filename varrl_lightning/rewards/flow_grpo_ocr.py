"""The OCR reward of Flow-GRPO and those that follow it, to compare with: is one string in the image, or nearly?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.ocr_score import edit_distance
from varrl_lightning.errors import listed
from varrl_lightning.rewards.alphabets import unreadable_words, warn_of_unreadable
from varrl_lightning.rewards.base import BaseReward, Reading
from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine, one_of
from varrl_lightning.rewards.ocr_reading import read_words
from varrl_lightning.types import Prompt, Scores
from varrl_lightning.types.normal_form import normal_words

WithoutWords = Literal["error", "skip"]


def flow_grpo_score(target: str, read: str) -> float:
    """How nearly a string can be read, both in their normal form (`normal_form`), whitespace aside.

        R = 1                              if the target is part of what was read
        R = 1 - min(Lev(read, t), |t|) / |t|   otherwise

    In [0, 1]. Text beyond the target is free once the target is whole; the engine's confidence plays no part.

    Raises:
        ValueError: when the target is blank.
    """
    target, read = ("".join(normal_words([text])) for text in (target, read))
    if not target:
        raise ValueError("the target is blank; expected text to look for")
    if target in read:
        return 1.0
    return 1 - min(edit_distance(read, target), len(target)) / len(target)


class FlowGRPOOCR(BaseReward):
    """`flow_grpo_score` of the first quoted string of the prompt (the first of its `words`) and all text that is read.

    As the peers define it, but for two things: an image that the engine fails on has no score, where theirs has 0; and texts are
    compared in their normal form, where theirs are lower-cased only.

    Args:
        detect: look for the text first. False when each image is one line, or each of its prompt's regions is.
        threads: number of threads of the engine; torch's when None.
        engine: another `OCREngine`; it ignores `detect` and `threads`.
        without_words: prompts without words are an `error` before training; `skip` leaves them to other rewards.
    """

    reads_words = True

    def __init__(
        self,
        detect: bool = True,
        *,
        threads: int | None = None,
        engine: OCREngine | None = None,
        without_words: WithoutWords = "error",
    ) -> None:
        one_of("without_words", without_words, WithoutWords)
        self.engine = engine if engine is not None else RapidOCREngine(detect, threads=threads)
        self.without_words = without_words

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise a ValueError that names the prompts without words; warn of those with characters that the reader cannot write."""
        missing = [p.id for p in prompts if not _has_target(p)]
        if missing and self.without_words == "error":
            raise ValueError(
                f"the flow_grpo_ocr reward needs a quoted string to look for, and {len(missing)} of {len(prompts)} prompts have "
                f"none: {listed(missing)}. Quote it in the text, list it under 'words', or set without_words to 'skip'."
            )
        warn_of_unreadable(prompts, lambda prompt: prompt.words[:1], self.unreadable, self.engine)

    def unreadable(self, words: Iterable[str]) -> dict[str, str]:
        """The words with characters that the engine cannot write; see `unreadable_words`."""
        return unreadable_words(self.engine, words)

    def read_back(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[Reading | None]:
        """What the engine reads, and whether the string that is looked for is part of it."""
        scores = self(images, prompts)
        texts = ["".join(of_image) for of_image in scores.texts or ()]
        return [Reading(text, value == 1) for text, value in zip(texts, scores.values.tolist(), strict=True)]

    def can_score(self, prompt: Prompt) -> bool:
        """Whether there is a string to look for."""
        return bool(prompt.words)

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images, in [0, 1]; no score where the engine failed, or where the prompt has no words."""
        words = read_words(self.engine, images, prompts)
        texts = [[word.text for word in of_image or ()] for of_image in words]
        values = torch.tensor(
            [
                flow_grpo_score(prompt.words[0], " ".join(read)) if of_image is not None and _has_target(prompt) else math.nan
                for of_image, prompt, read in zip(words, prompts, texts, strict=True)
            ]
        )
        return Scores(
            values.float(),
            regions=[[word.box for word in of_image or ()] for of_image in words],
            valid=values.isfinite(),
            texts=texts,
        )


def _has_target(prompt: Prompt) -> bool:
    return bool(normal_words(prompt.words[:1]))
