"""The peers' OCR reward: hand-counted cases, an independent reading, and the engine on real pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from lines import drawn

from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.flow_grpo_ocr import FlowGRPOOCR, flow_grpo_score
from varrl_lightning.rewards.ocr_engines import Word
from varrl_lightning.rewards.ocr_lines import Picture
from varrl_lightning.types import Box, Prompt


@pytest.mark.parametrize(
    ("target", "read", "score"),
    [
        ("OPEN", "open", 1.0),
        ("Hot Tea", "hot\ttea", 1.0),
        ("tea", "steam: hot TEA now, 50 % off", 1.0),  # extra text is free
        ("open", "", 0.0),
        ("open", "opem", 0.75),
        ("open", "xxxxxxxxxxxxxxxx", 0.0),  # the distance of 16 counts 4
        ("open", "open" * 3, 1.0),
        ("sale", "sal", 0.75),
        ("tea time", "teatme", 1 - 1 / 7),
    ],
)
def test_hand_counted(target: str, read: str, score: float) -> None:
    assert flow_grpo_score(target, read) == pytest.approx(score)


def distance(x: str, y: str) -> int:
    """By the table."""
    row = list(range(len(y) + 1))
    for i, a in enumerate(x, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(y, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def test_against_an_independent_reading() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(500):
        target = "".join(rng.choices("aBc ", k=rng.randint(0, 5))) + "a"
        read = "".join(rng.choices("Abc ", k=rng.randint(0, 9)))
        t, r = target.replace(" ", "").lower(), read.replace(" ", "").lower()
        d = 0 if t in r else min(distance(t, r), len(t))
        seen.add(round(1 - d / len(t), 6))
        assert flow_grpo_score(target, read) == pytest.approx(1 - d / len(t))
    assert len(seen) > 5


def test_a_blank_target_is_refused() -> None:
    with pytest.raises(ValueError, match="the target is blank"):
        flow_grpo_score(" ", "a")


class Reads:
    """An engine that says what it is told, one list of words per image; None fails."""

    detect = True

    def __init__(self, *texts: str | None) -> None:
        self.texts = dict(enumerate(texts))

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        found = []
        for image in images:
            text = self.texts[int(image[0, 0, 0])]
            if text is None:
                raise RuntimeError("cannot read")
            found.append([Word(w, 0.1, Box(0, 0, 1, 1)) for w in text.split()])
        return found


def numbered(n: int) -> torch.Tensor:
    """Images that tell the engine above which they are."""
    return (torch.arange(n) / 255)[:, None, None, None].expand(n, 3, 2, 2).clone()


def test_the_first_quoted_string_is_the_target() -> None:
    prompts = [Prompt('a sign "Hot Tea" and "OPEN"'), Prompt("x", words=("tea",)), Prompt('"sale"')]
    scores = FlowGRPOOCR(engine=Reads("hot tea", "coffee TEA", "open"))(numbered(3), prompts)
    assert scores.values.tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert scores.texts == [["hot", "tea"], ["coffee", "TEA"], ["open"]]
    assert scores.regions is not None
    assert [len(r) for r in scores.regions] == [2, 2, 1]


def test_failures_and_prompts_without_words_have_no_score() -> None:
    reward = FlowGRPOOCR(engine=Reads("tea", None, "tea"), without_words="skip")
    prompts = [Prompt('"tea"', id="a"), Prompt('"tea"', id="b"), Prompt("a cat")]
    with pytest.warns(UserWarning, match="the OCR engine failed on some images|gave no score"):
        scores = score_images(reward, numbered(3), prompts, "flow_grpo_ocr")
    assert scores.usable.tolist() == [True, False, False]


def test_prompts_without_words_are_named() -> None:
    prompts = [Prompt('"tea"'), *(Prompt(f"cat {i}") for i in range(6))]
    with pytest.raises(ValueError, match=r"6 of 7 prompts have none: 'cat 0', .*'cat 5'\."):
        FlowGRPOOCR(engine=Reads()).check_prompts(prompts)
    FlowGRPOOCR(engine=Reads(), without_words="skip").check_prompts(prompts)
    FlowGRPOOCR(engine=Reads()).check_prompts(prompts[:1])


def test_with_the_engine_of_the_package() -> None:
    pictures = [drawn(("HELLO", 4, 3)), drawn(("HELP", 4, 3)), np.full((24, 64, 3), 230, np.uint8)]
    images = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) / 255 for p in pictures])
    scores = FlowGRPOOCR(detect=False, threads=1)(images, [Prompt('"hello"', id=str(i)) for i in range(3)])
    assert scores.values.tolist() == pytest.approx([1.0, 0.6, 0.0])
