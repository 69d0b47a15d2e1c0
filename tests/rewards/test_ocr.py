"""The OCR reward: what it makes of an engine's words, and of an engine's failures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fresh import Fresh
from lines import drawn
from numpy.typing import NDArray

from varrl_lightning.algorithms.ocr_score import ld, ocr_score
from varrl_lightning.rewards.ocr import COMPONENTS, OCRReward
from varrl_lightning.rewards.ocr_engines import Word
from varrl_lightning.types import Box, Prompt


class Scripted:
    """An engine that answers by the brightness of what it is shown."""

    def __init__(self, answers: dict[int, Sequence[tuple[str, float]] | Exception], detect: bool = True) -> None:
        self.answers, self.detect, self.shown = answers, detect, list[NDArray[np.uint8]]()

    def read(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Word]]:
        self.shown += list(images)
        return [self._words(image) for image in images]

    def _words(self, image: NDArray[np.uint8]) -> list[Word]:
        answer = self.answers[int(image.max())]
        if isinstance(answer, Exception):
            raise answer
        return [Word(text, confidence, Box(1, 2, 3, 4)) for text, confidence in answer]


def shades(*levels: int, height: int = 8, width: int = 10) -> torch.Tensor:
    return torch.stack([torch.full((3, height, width), level / 255) for level in levels])


def prompt(*words: str, **options: object) -> Prompt:
    return Prompt(text="a sign", words=words, **options)  # type: ignore[arg-type]


def test_values_and_components_against_eq_15() -> None:
    read = {1: [("hot tea", 0.9)], 2: [("HOT", 0.8), ("pot", 0.5)], 3: []}
    prompts = [prompt("Hot", "Tea"), prompt("hot"), prompt("hot pot")]
    scores = OCRReward(engine=Scripted(read), lam=0.5)(shades(1, 2, 3), prompts)
    assert set(scores.components) == set(COMPONENTS)
    for i, (of_image, wanted) in enumerate(zip(read.values(), prompts, strict=True)):
        expected = ocr_score(wanted.words, of_image, lam=0.5)
        assert scores.values[i].item() == pytest.approx(expected.reward)
        for part in ("completeness", "similarity", "penalty", "extra_ratio", "in_order"):
            assert scores.components[part][i].item() == pytest.approx(getattr(expected, part))
    assert scores.components["word_accuracy"].tolist() == [1.0, 1.0, 0.0]
    assert scores.components["confidence"].tolist() == pytest.approx([0.9, 0.65, 0.0])
    assert scores.components["ned"][2].item() == pytest.approx(statistics.fmean([ld("hot", ""), ld("pot", "")]), abs=1e-6)
    assert scores.texts == [["hot tea"], ["HOT", "pot"], []]
    assert scores.regions == [[Box(1, 2, 3, 4)], [Box(1, 2, 3, 4)] * 2, []]
    assert scores.usable.all()


@pytest.mark.parametrize(
    ("option", "read", "wanted"),
    [
        ({"match": "ld*conf"}, [("open", 0.1), ("opem", 0.99)], ("open",)),
        ({"bag": "max"}, [("opan", 1.0)], ("open",)),
        ({"duplicates": "multiset"}, [("go", 0.9)], ("go", "go")),
        ({"case": "keep"}, [("OPEN", 0.9)], ("open",)),
        ({"lam": 0.1}, [("opan", 1.0)], ("open",)),
    ],
)
def test_options_reach_the_score(option: dict[str, object], read: list[tuple[str, float]], wanted: tuple[str, ...]) -> None:
    engine = Scripted({1: read})
    value = OCRReward(engine=engine, **option)(shades(1), [prompt(*wanted)]).values.item()  # type: ignore[arg-type]
    assert value == pytest.approx(ocr_score(wanted, read, **option).reward)  # type: ignore[arg-type]
    assert value != pytest.approx(OCRReward(engine=engine)(shades(1), [prompt(*wanted)]).values.item())


def test_the_engine_sees_bytes_in_rgb() -> None:
    engine = Scripted({255: []})
    image = torch.zeros(1, 3, 2, 4)
    image[0, 0] = 1.2  # out of range: clamped
    image[0, 1] = 100.6 / 255
    OCRReward(engine=engine)(image, [prompt("x")])
    assert engine.shown[0].shape == (2, 4, 3)
    assert engine.shown[0].dtype == np.uint8
    assert engine.shown[0][0, 0].tolist() == [255, 101, 0]


def test_an_image_that_the_engine_fails_on_is_invalid() -> None:
    engine = Scripted({1: [("hot", 1.0)], 2: OSError("segment lost"), 3: []})
    with pytest.warns(UserWarning, match="the OCR engine failed on some images: OSError: segment lost"):
        scores = OCRReward(engine=engine)(shades(1, 2, 3), [prompt("hot")] * 3)
    assert scores.usable.tolist() == [True, False, True]
    assert scores.values[[0, 2]].tolist() == pytest.approx([2.0, -0.6], abs=1e-4)
    assert scores.values[1].isnan()
    assert all(part[1].isnan() for part in scores.components.values())
    assert scores.regions is not None
    assert scores.regions[1] == []


def test_an_image_that_is_not_finite_is_not_shown() -> None:
    engine = Scripted({1: [("hot", 1.0)]})
    images = shades(1, 1)
    images[1, 0, 0, 0] = torch.nan
    scores = OCRReward(engine=engine)(images, [prompt("hot")] * 2)
    assert scores.usable.tolist() == [True, False]
    assert len(engine.shown) == 1


def test_an_engine_that_fails_on_everything_raises_its_own_error() -> None:
    engine = Scripted({1: OSError("model file missing")})
    with pytest.raises(OSError, match="model file missing"):
        OCRReward(engine=engine)(shades(1, 1), [prompt("hot")] * 2)


def test_an_engine_that_answers_too_little() -> None:
    engine = Scripted({1: []})
    engine.read = lambda images: []  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="the OCR engine answered 0 times for 1 images; expected one list each"):
        OCRReward(engine=engine)(shades(1, 1), [prompt("hot")] * 2)


def test_regions_of_a_prompt_are_lines_of_their_own() -> None:
    image = shades(1)
    image[:, :, 4:, 5:] = 2 / 255
    regions = (Box(0, 0, 5, 4), Box(5, 4, 10, 8), Box(50, 50, 60, 60))  # the last lies outside
    engine = Scripted({1: [("hot", 1.0)], 2: [("tea", 0.5)]}, detect=False)
    scores = OCRReward(engine=engine)(image, [prompt("hot", "tea", regions=regions)])
    assert [shown.shape for shown in engine.shown] == [(4, 5, 3), (4, 5, 3)]
    assert scores.texts == [["hot", "tea"]]
    assert scores.regions == [[Box(1, 2, 3, 4), Box(6, 6, 8, 8)]]
    finder = Scripted({2: [("hot", 1.0)]})
    OCRReward(engine=finder)(image, [prompt("hot", regions=regions)])
    assert [shown.shape for shown in finder.shown] == [(8, 10, 3)]


def test_a_failed_region_fails_its_image() -> None:
    image = shades(1)
    image[:, :, :, 5:] = 2 / 255
    engine = Scripted({1: [("hot", 1.0)], 2: OSError("lost")}, detect=False)
    with pytest.warns(UserWarning, match="failed on some"):
        scores = OCRReward(engine=engine)(image, [prompt("hot", regions=(Box(0, 0, 5, 8), Box(5, 0, 10, 8), Box(0, 0, 5, 8)))])
    assert scores.usable.tolist() == [False]


def test_prompts_without_words_are_named_before_training() -> None:
    reward = OCRReward(engine=Scripted({}))
    reward.check_prompts([Prompt(text='a sign that says "hot"')])
    silent = [Prompt(text=f"a cat {i}") for i in range(51)]
    with pytest.raises(ValueError, match=r"51 of 52 prompts have none: 'a cat 0', .*'a cat 49', \.\.\.\. Quote them"):
        reward.check_prompts([*silent, prompt("hot")])
    with pytest.raises(ValueError, match=r"1 of 1 prompts have none: 'a cat 0'\. Quote"):
        reward.check_prompts(silent[:1])
    OCRReward(engine=Scripted({}), without_words="skip").check_prompts(silent)


def test_prompts_without_words_get_no_score() -> None:
    reward = OCRReward(engine=Scripted({1: [("hot", 1.0)]}), without_words="skip")
    scores = reward(shades(1, 1), [Prompt(text="a cat"), prompt("hot")])
    assert scores.usable.tolist() == [False, True]


def test_the_embedded_engine_by_default() -> None:
    words = ["HOUSE", "BIRD", "TIMER"]
    images = torch.stack([torch.from_numpy(drawn((w, 4, 3)).copy()).permute(2, 0, 1) / 255 for w in words])
    prompts = [Prompt(text=f'"{w}"') for w in (*words[:2], "OTHER")]
    for reward in (OCRReward(detect=False, threads=1), OCRReward(threads=1)):
        scores = reward(images, prompts)
        assert scores.components["word_accuracy"].tolist() == [1.0, 1.0, 0.0]
        assert scores.values[:2].min() > 1.8
        assert scores.values[2] < 1.0


def test_no_images_no_scores() -> None:
    scores = OCRReward(engine=Scripted({}))(shades(1)[:0], [])
    assert scores.values.shape == (0,)
    assert scores.components["ned"].shape == (0,)


def test_impossible_options(fresh: Fresh) -> None:
    """In a fresh process, where annotations are not enforced."""
    options = ["lam=-1", "match='x'", "bag='x'", "duplicates='x'", "case='x'", "without_words='x'", "confidence='x'"]
    code = "from varrl_lightning.rewards.ocr import OCRReward\n" + "".join(
        f"try: OCRReward({option})\nexcept ValueError as error: print(error)\n" for option in options
    )
    assert fresh(code).stdout.splitlines() == [
        "lam must be >= 0, got -1",
        "match must be one of 'ld', 'ld*conf', got 'x'",
        "bag must be one of 'symmetric', 'max', got 'x'",
        "duplicates must be one of 'set', 'multiset', got 'x'",
        "case must be one of 'lower', 'keep', got 'x'",
        "without_words must be one of 'error', 'skip', got 'x'",
        "confidence must be one of 'line', 'word', got 'x'",
    ]
