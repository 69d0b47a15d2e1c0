"""The example that measures what the quick-start's reward does not see."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from varrl_lightning import LetteringPolicy, Prompt, Scores
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.tesseract import why_not_installed


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import quickstart_checks

    return quickstart_checks


def test_images_with_more_words_than_their_prompts_are_counted(example: ModuleType) -> None:
    prompts = [Prompt('"OPEN"', words=("OPEN",)), Prompt('"OPEN LATE"', words=("OPEN", "LATE")), Prompt('"NOW"', words=("NOW",))]
    scores = Scores(torch.zeros(3), texts=[("open", "too"), ("lte",), ()])
    assert example.with_extra_words(scores, prompts) == 1


@pytest.mark.skipif(why_not_installed() is not None, reason="needs tesserocr and English data")
def test_the_model_as_it_comes(example: ModuleType) -> None:
    prompts = load_prompts("builtin:lettering/test.jsonl")[:12]
    found = example.checks(LetteringPolicy.from_pretrained(), prompts)
    assert found["prompts"] == 12
    assert 0.2 < found["word_accuracy"] < 0.9
    assert 0 <= found["tesseract_word_accuracy"] < 0.9
    assert found["named_colours_kept"] == found["named_colours"] > 0
    assert 0 < found["chosen_colours_entropy"] <= 3
    assert found["images_with_extra_words"] <= 1
