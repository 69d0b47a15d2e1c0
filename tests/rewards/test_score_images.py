"""The three forms of a reward's answer, and the wrong ones."""

from __future__ import annotations

import json
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from varrl_lightning.errors import RewardError
from varrl_lightning.rewards.base import Reward, score_images
from varrl_lightning.types import Box, Prompt, Scores

IMAGES = torch.rand(3, 3, 4, 5)
PROMPTS = [Prompt(text=f"p{i}") for i in range(3)]


def unchecked(**fields: Any) -> Scores:
    """As a reward could build it outside the tests, which check shapes on construction."""
    scores = Scores(torch.zeros(3))
    for name, value in fields.items():
        object.__setattr__(scores, name, value)
    return scores


def read_only(array: Any) -> Any:
    array.flags.writeable = False
    return array


def answering(answer: Any) -> Reward:
    return lambda images, prompts: answer


def score(answer: Any) -> Scores:
    return score_images(answering(answer), IMAGES, PROMPTS, "mine")


@pytest.mark.parametrize(
    "answer",
    [
        [1, 2.5, 3.0],
        (1.0, 2.5, 3.0),
        torch.tensor([1.0, 2.5, 3.0], dtype=torch.float64, requires_grad=True),
        Scores(torch.tensor([1.0, 2.5, 3.0], dtype=torch.bfloat16)),
        np.array([1.0, 2.5, 3.0]),
        np.array([1.0, 2.5, 3.0], dtype=np.float16),
        np.array([1, 2.5, 3], dtype=object),
        np.array([3.0, 2.5, 1.0])[::-1],
        read_only(np.array([1.0, 2.5, 3.0], dtype=np.float32)),
        [np.float32(1.0), np.float64(2.5), np.int64(3)],
        [torch.tensor(1.0), torch.tensor(2.5, requires_grad=True), np.array(3.0)],
        unchecked(values=np.array([1.0, 2.5, 3.0])),
        unchecked(values=[1.0, np.float32(2.5), 3]),
    ],
)
def test_three_forms_give_the_same_scores(answer: Any) -> None:
    scores = score(answer)
    assert scores.values.tolist() == [1.0, 2.5, 3.0]
    assert scores.values.dtype == torch.float32
    assert not scores.values.requires_grad
    assert scores.valid is not None
    assert scores.valid.all()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64", "float32", "float16"])
def test_numbers_of_every_dtype_are_scores(dtype: str) -> None:
    assert score(torch.tensor([0, 1, 2], dtype=getattr(torch, dtype))).values.tolist() == [0.0, 1.0, 2.0]
    assert score(np.array([0, 1, 2], dtype=dtype)).values.tolist() == [0.0, 1.0, 2.0]


def test_truth_values_are_scores_too() -> None:
    for answer in (torch.tensor([False, True, True]), np.array([False, True, True]), [False, np.True_, True]):
        assert score(answer).values.tolist() == [0.0, 1.0, 1.0]


def test_parts_of_scores_may_be_arrays() -> None:
    given = unchecked(values=np.zeros(3), components={"a": np.arange(3), "b": [1, None, 3]}, valid=np.array([True, False, True]))
    with pytest.warns(UserWarning, match="gave no score to some images"):
        scores = score(given)
    assert scores.components["a"].tolist() == [0.0, 1.0, 2.0]
    assert scores.components["b"].nan_to_num(-1).tolist() == [1.0, -1.0, 3.0]
    assert scores.usable.tolist() == [True, False, True]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_an_image_whose_regions_are_not_finite_has_no_score(wrong: float) -> None:
    boxes = [[Box(0, 0, 1, 1)], [Box(0, 0, 1, 1), Box(0, wrong, 1, 1)], []]
    with pytest.warns(UserWarning, match=r"'mine' (gave no score to some|returned regions that are not finite)") as said:
        scores = score(Scores(torch.ones(3), regions=boxes))
    assert len(said) == 2
    assert scores.usable.tolist() == [True, False, True]
    assert scores.regions == [[Box(0, 0, 1, 1)], [], []]


def test_the_rest_of_scores_is_kept() -> None:
    boxes = [[Box(0, 0, 1, 1)], [], []]
    parts = {"part": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)}
    scores = score(Scores(torch.zeros(3), components=parts, regions=boxes, texts=[["a"], [], []]))
    assert scores.components["part"].tolist() == [1.0, 2.0, 3.0]
    assert scores.components["part"].dtype == torch.float32
    assert scores.regions == boxes
    assert scores.texts == [["a"], [], []]


@pytest.mark.parametrize(
    "answer",
    [
        [1.0, None, 3.0],
        torch.tensor([1.0, math.nan, 3.0]),
        torch.tensor([1.0, math.inf, 3.0]),
        Scores(torch.tensor([1.0, 2.0, 3.0]), valid=torch.tensor([True, False, True])),
        np.array([1.0, math.nan, 3.0]),
        np.array([1.0, None, 3.0], dtype=object),
        np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]),
        [1.0, np.float32("inf"), 3.0],
    ],
)
def test_an_image_without_a_score_is_invalid_and_not_zero(answer: Any) -> None:
    with pytest.warns(UserWarning, match="the reward 'mine' gave no score to some images"):
        scores = score(answer)
    assert scores.usable.tolist() == [True, False, True]
    assert scores.values[[0, 2]].tolist() == [1.0, 3.0]
    assert scores.values[1].isnan()


def test_the_warning_is_shown_once() -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for gaps in ([None, 1.0, 1.0], [None, None, 1.0], [1.0, 1.0, None]):
            score(gaps)
    assert len(shown) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2), r"'mine' returned values of shape \(2,\) for 3 images; expected \(3,\), one per image"),
        (torch.zeros(3, 2), r"values of shape \(3, 2\) for 3 images"),
        ([1.0], r"values of shape \(1,\) for 3 images"),
        (["1", "x", 2.0], "returned a list with could not convert string to float: 'x'; expected numbers and None"),
        (np.zeros(2), r"'mine' returned values of shape \(2,\) for 3 images; expected \(3,\), one per image"),
        (np.zeros((3, 1)), r"'mine' returned values of shape \(3, 1\) for 3 images; expected \(3,\), one per image"),
        (torch.zeros(3, 1), r"'mine' returned values of shape \(3, 1\) for 3 images; expected \(3,\), one per image"),
        (np.float32(1), r"values of shape \(\) for 3 images"),
        (np.array([1, 2, 3j]), "an array of dtype complex128; expected real numbers"),
        (torch.zeros(3, dtype=torch.complex64), "values of dtype torch.complex64; expected real numbers"),
        (np.array(["1", "x", "2"]), "an array of dtype <U1 with could not convert string to float.*expected numbers"),
        ([torch.zeros(1)] * 3, r"a list with an entry of shape \(1,\); expected numbers and None"),
        ([[1.0], [2.0], [3.0]], "a list with float.*expected numbers and None"),
        (unchecked(components={"x": np.zeros((3, 1))}), r"the component 'x' of shape \(3, 1\) for 3 images"),
        (unchecked(values="good"), "returned a str; expected Scores, a tensor or an array"),
        (0.5, "'mine' returned a float; expected Scores, a tensor"),
        (None, "'mine' returned a NoneType; expected Scores"),
        (unchecked(components={"x": torch.zeros(4)}), r"the component 'x' of shape \(4,\) for 3 images"),
        (unchecked(values=torch.zeros(2)), r"values of shape \(2,\) for 3 images"),
        (unchecked(valid=torch.ones(4, dtype=torch.bool)), r"valid of shape \(4,\) for 3 images"),
        (Scores(torch.zeros(3), regions=[[]]), "'mine' returned regions for 1 of 3 images; expected a list each"),
        (Scores(torch.zeros(3), texts=[["a"]]), "'mine' returned texts for 1 of 3 images"),
    ],
)
def test_wrong_answers(answer: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(answer)


def test_a_reward_that_raises_is_named() -> None:
    def broken(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        raise KeyError("weights")

    with pytest.raises(RewardError, match="the reward 'mine' raised KeyError: 'weights'") as caught:
        score_images(broken, IMAGES, PROMPTS, "mine")
    assert isinstance(caught.value.__cause__, KeyError)
    line = broken.__code__.co_firstlineno + 1
    assert str(caught.value).endswith(f"""(File "{__file__}", line {line}, in broken)""")


@pytest.mark.parametrize(
    ("fail", "where"),
    [
        (lambda images: torch.zeros(2) @ images, "<lambda>"),  # within torch
        (lambda images: json.loads("{"), "<lambda>"),  # within the standard library
        (lambda images: helper(), "helper"),
    ],
)
def test_the_line_of_the_users_code_is_told(fail: Any, where: str) -> None:
    """Not that of a library which it called, nor that of this package."""
    with pytest.raises(RewardError) as caught:
        score_images(lambda images, prompts: fail(images), IMAGES, PROMPTS, "mine")
    assert re.search(rf"""\(File "{re.escape(__file__)}", line \d+, in {where}\)$""", str(caught.value))


def helper() -> None:
    raise OSError("no disk")


def test_what_has_no_line_is_told_without_one() -> None:
    with pytest.raises(RewardError, match=r"raised TypeError: .*$") as caught:
        score_images(len, IMAGES, PROMPTS, "mine")
    assert "File" not in str(caught.value)


def test_ctrl_c_is_not_an_error_of_the_reward() -> None:
    def interrupted(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_images(interrupted, IMAGES, PROMPTS, "mine")


def test_a_reward_cannot_reach_the_graph() -> None:
    images = IMAGES.clone().requires_grad_()
    seen: list[bool] = []

    def peek(images: torch.Tensor, prompts: Any) -> torch.Tensor:
        seen.append(images.requires_grad or torch.is_grad_enabled())
        return images.mean(dim=(1, 2, 3))

    score_images(peek, images, PROMPTS, "mine")
    assert seen == [False]
