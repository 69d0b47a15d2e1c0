"""Whether rewards that read text can read the words of the prompts, drawn plainly: tried before training."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.base import BaseReward, Reading, Reward
from varrl_lightning.rewards.precision import full_precision
from varrl_lightning.rewards.word_pictures import GROUND, WordPicture, draw_word, load_face, why_not_drawn
from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import normal_words

MOST_WORDS = 64
SECONDS = 5.0
"""The longest that all rewards together may take; a batch of words that has been begun is finished."""
WARNS_BELOW, FAILS_BELOW = 0.9, 0.5
"""Shares of the words that are read right."""
_AT_ONCE = 4
_SHOWN = 5


@dataclass(frozen=True)
class ReaderCheck:
    """What one reward read of the words.

    Args:
        reward: its name.
        trains: whether its weight is not 0.
        words: number of distinct words of the prompts.
        chosen: number of words that were to be read, at most `MOST_WORDS`.
        read: the words that were tried, each with what was read.
        lacking: those of the chosen words that hold characters which the reader cannot write; they count as read wrong.
        undrawn: the words that could not be drawn, each with the reason; they are not checked.
        problem: the error that the reward raised; empty when there was none.
    """

    reward: str
    trains: bool
    words: int
    chosen: int = 0
    read: Mapping[str, Reading] = field(default_factory=dict)
    lacking: Mapping[str, str] = field(default_factory=dict)
    undrawn: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def checked(self) -> int:
        """How many words were tried, or need not be."""
        return len(self.read) + len(self.lacking)

    @property
    def share(self) -> float | None:
        """The share of the checked words that are read right, in [0, 1]; None where none was checked."""
        return sum(reading.right for reading in self.read.values()) / self.checked if self.checked else None

    @property
    def verdict(self) -> Literal["passed", "doubtful", "failed"]:
        """Failed below `FAILS_BELOW`, or where the reward raised an error; doubtful below `WARNS_BELOW`."""
        if self.problem or (self.share is not None and self.share < FAILS_BELOW):
            return "failed"
        return "doubtful" if self.share is not None and self.share < WARNS_BELOW else "passed"

    def __str__(self) -> str:
        """The result in a line: what was read right, wrong, and not checked."""
        if self.problem:
            return f"{self.reward} failed on drawn words: {self.problem}"
        right = sum(reading.right for reading in self.read.values())
        parts = [f"{self.reward} reads {right} of {self.checked} drawn words right ({self.share or 0:.2f})"]
        if not self.checked:
            parts = [f"{self.reward} was given no drawn word"]
        if self.checked < self.chosen:
            parts.append(f"{self.chosen - self.checked} more of the {self.chosen} chosen not checked: no time, or no answer")
        wrong = [f"{word!r} as {reading.text!r}" for word, reading in self.read.items() if not reading.right]
        if wrong:
            parts.append(f"reads {_first(wrong)}")
        if self.lacking:
            named = [f"{characters!r} of {word!r}" for word, characters in self.lacking.items()]
            parts.append(f"cannot write {_first(named)}")
        for reason in dict.fromkeys(self.undrawn.values()):
            named = [repr(word) for word, why in self.undrawn.items() if why == reason]
            parts.append(f"not checked, since {reason}: {_first(named)}")
        return "; ".join(parts)


def distinct_words(prompts: Iterable[Prompt]) -> list[str]:
    """The words that prompts ask for, each once, whatever its case, as it is first written."""
    words: dict[str, str] = {}
    for prompt in prompts:
        for word in (word for text in prompt.words for word in text.split()):
            if compared := " ".join(normal_words([word])):
                words.setdefault(compared, word)
    return list(words.values())


def check_readers(
    rewards: Mapping[str, tuple[Reward, bool]],
    prompts: Sequence[Prompt],
    font: str | None = None,
    seconds: float = SECONDS,
) -> list[ReaderCheck]:
    """Try each reward that reads text on words of the prompts; the same words for the same prompts.

    Words are drawn in `font`, or in DejaVu Sans where the font has no glyphs for them or is None. Of more than `MOST_WORDS` words,
    that many are chosen at random, by a fixed seed.

    Args:
        rewards: by name, each with whether it trains.
        seconds: for all of them together; what is left of it is shared among those still to come.

    Raises:
        ValueError: when the font is no font.
    """
    rewards = {name: given for name, given in rewards.items() if _may_read(given[0])}
    if not rewards:
        return []
    faces = (load_face(font), load_face()) if font else (load_face(),)
    words, start = distinct_words(prompts), time.monotonic()
    undrawn = {word: reason for word in words if (reason := why_not_drawn(word, faces))}
    checks = []
    for place, (name, (reward, trains)) in enumerate(rewards.items()):
        now = time.monotonic()
        deadline = now + (start + seconds - now) / (len(rewards) - place)
        try:
            lacking = reward.unreadable(words)
            choice = [word for word in words if word in lacking or word not in undrawn]
            chosen = random.Random(0).sample(choice, min(MOST_WORDS, len(choice)))
            pictures = {word: draw_word(word, faces) for word in chosen if word not in lacking}
            read = _read(reward, pictures, deadline)
        except Exception as error:  # a user's reward may raise anything
            checks.append(ReaderCheck(name, trains, len(words), problem=f"{type(error).__name__}: {error}"))
            continue
        if read is not None:
            lacking = {word: characters for word, characters in lacking.items() if word in chosen}
            left_out = {word: reason for word, reason in undrawn.items() if word not in lacking}
            checks.append(ReaderCheck(name, trains, len(words), len(chosen), read, lacking, left_out))
    return checks


def _may_read(reward: Reward) -> bool:
    """Whether a reward has a `read_back` of its own."""
    return getattr(reward.read_back, "__func__", None) is not BaseReward.read_back


@torch.no_grad()
def _read(reward: Reward, pictures: Mapping[str, WordPicture], deadline: float) -> dict[str, Reading] | None:
    """What a reward reads of drawn words until the deadline; None if it does not read text."""
    words, read = list(pictures), dict[str, Reading]()
    for first in range(0, len(words), _AT_ONCE):
        if first and time.monotonic() > deadline:
            break
        batch = words[first : first + _AT_ONCE]
        prompts = [Prompt(f'a sign that says "{w}"', words=(w,), regions=(pictures[w].region,)) for w in batch]
        images = _stacked([pictures[word] for word in batch])
        with full_precision(images.device):
            readings = reward.read_back(images, prompts)
        if readings is None:
            return None
        read |= {word: reading for word, reading in zip(batch, readings, strict=True) if reading is not None}
    return read


def _stacked(pictures: Sequence[WordPicture]) -> Float[Tensor, "N 3 H W"]:
    """Pictures on one size of ground, in [0, 1]."""
    height, width = (max(picture.pixels.shape[side] for picture in pictures) for side in (0, 1))
    images = torch.tensor(GROUND, dtype=torch.uint8)[None, :, None, None].repeat(len(pictures), 1, height, width)
    for image, picture in zip(images, pictures, strict=True):
        rows, columns = picture.pixels.shape[:2]
        image[:, :rows, :columns] = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)
    return images.float() / 255


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
