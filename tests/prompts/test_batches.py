"""Batches of other people's DataModules: what is read in them, and what is said of those without prompts."""

from __future__ import annotations

import re
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from varrl_lightning.prompts.batches import FORMS, as_prompts
from varrl_lightning.types import Prompt

CAPTIONS = ["a fox", "an owl"]
PICTURES = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    "batch",
    [
        CAPTIONS,
        tuple(CAPTIONS),
        np.array(CAPTIONS),
        [Prompt(caption) for caption in CAPTIONS],
        (CAPTIONS, PICTURES),
        [tuple(CAPTIONS), PICTURES],
        (PICTURES.to(torch.uint8), CAPTIONS),
        (torch.tensor([7, 9]), CAPTIONS),
        [("a fox", "an owl"), ("ein Fuchs", "eine Eule")],
        {"text": CAPTIONS},
        {"prompt": tuple(CAPTIONS), "image": PICTURES},
        {"caption": CAPTIONS, "input_ids": torch.zeros(2, 9, dtype=torch.long), "labels": torch.zeros(2, 9, dtype=torch.long)},
        UserDict(captions=CAPTIONS),
        [{"text": caption} for caption in CAPTIONS],
        [{"caption": caption, "height": 8} for caption in CAPTIONS],
        [{"prompt": caption} for caption in CAPTIONS],
    ],
)
def test_texts_are_found(batch: Any) -> None:
    assert [(p.text, p.label) for p in as_prompts(batch)] == [("a fox", None), ("an owl", None)]


@pytest.mark.parametrize(
    "batch",
    [
        torch.tensor([3, 7]),
        torch.tensor([3, 7], dtype=torch.int32),
        np.array([3, 7]),
        [3, 7],
        (PICTURES, torch.tensor([3, 7])),
        [PICTURES.to(torch.uint8), torch.tensor([3, 7])],
        {"label": torch.tensor([3, 7]), "image": PICTURES},
        {"class": [3, 7]},
        [{"label": 3}, {"label": torch.tensor(7)}],
    ],
)
def test_class_labels_are_found(batch: Any) -> None:
    assert [(p.label, p.text, p.id) for p in as_prompts(batch)] == [(3, "class 3", "class 3"), (7, "class 7", "class 7")]


def test_one_alone_is_a_batch_of_one() -> None:
    for alone in ("a fox", Prompt("a fox"), {"prompt": "a fox"}, ("a fox", PICTURES[0])):
        assert [p.text for p in as_prompts(alone)] == ["a fox"]
    assert [p.label for p in as_prompts(torch.tensor(5))] == [5]
    assert [p.label for p in as_prompts({"label": 5})] == [5]


def test_other_fields_come_with_the_texts() -> None:
    batch = {
        "caption": CAPTIONS,
        "id": torch.tensor([3, 4]),
        "class": torch.tensor([1, 2]),
        "category": [5, 6],
        "words": [["FOX"], ["AN", "OWL"]],
        "size": torch.tensor([[8, 16], [8, 16]]),
        "negative": "blurred",
    }
    wanted = [
        Prompt("a fox", "3", ("FOX",), category="5", label=1, negative="blurred", size=(8, 16)),
        Prompt("an owl", "4", ("AN", "OWL"), category="6", label=2, negative="blurred", size=(8, 16)),
    ]
    assert as_prompts(batch) == wanted
    rows = [
        {"caption": "a fox", "id": 3, "class": 1, "category": 5, "words": ["FOX"], "size": [8, 16], "negative": "blurred"},
        {"caption": "an owl", "id": 4, "class": 2, "category": 6, "words": ["AN", "OWL"], "size": [8, 16], "negative": "blurred"},
    ]
    assert as_prompts(rows) == wanted


def test_a_class_by_its_name_is_a_text() -> None:
    assert [(p.text, p.label) for p in as_prompts({"label": ["tench", "hen"]})] == [("tench", None), ("hen", None)]


def test_columns_that_the_default_collate_turned_over_are_refused() -> None:
    """For two prompts of two words each nothing but the tuples tells them from right ones."""
    rows = [{"prompt": "a", "words": ["A0", "A1"]}, {"prompt": "b", "words": ["B0", "B1"]}]
    turned = next(iter(DataLoader(rows, batch_size=2)))  # type: ignore[arg-type]
    assert [list(column) for column in turned["words"]] == [["A0", "B0"], ["A1", "B1"]]
    with pytest.raises(ValueError, match=r"column .words. must have one list for each of 2 rows; .* use collate_fn=list"):
        as_prompts(turned)
    right = next(iter(DataLoader(rows, batch_size=2, collate_fn=list)))  # type: ignore[arg-type]
    assert [p.words for p in as_prompts(right)] == [("A0", "A1"), ("B0", "B1")]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (torch.zeros(2), "Tensor (float32, shape (2,))"),
        (torch.zeros(2, 9, dtype=torch.long), "Tensor (int64, shape (2, 9))"),
        ({"input_ids": 1, "attention_mask": 1}, "dict with the keys 'input_ids', 'attention_mask'"),
        ({"text": [["a", "b"]]}, "dict with the keys 'text'"),
        ({"train": {"text": ["a"]}}, "dict with the keys 'train'"),
        ([["a", "b"], ["c", "d"]], "list of list"),
        ([[3, 4]], "list of list"),
        ([{"text": "a"}, {"image": 1}], "list of dict"),
        ([], "list of nothing"),
        ((PICTURES, 0.5), "tuple of Tensor, float"),
        (None, "NoneType"),
        ([True, False], "list of bool"),
    ],
)
def test_what_holds_no_prompts_is_described(batch: Any, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"cannot read a batch of {said} as prompts. A batch may be: {FORMS}")):
        as_prompts(batch)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (["a", ""], "'text' must be a non-empty string, got ''"),
        ({"text": ["a", "b"], "label": ["x", "y"]}, "'label' must be an integer, got 'x'"),
        ({"text": ["a", "b"], "id": ["1"]}, "the column 'id' must have one value for each of 2 rows, got list of str"),
    ],
)
def test_a_field_that_no_prompt_can_have_is_named(batch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        as_prompts(batch)


TAGGED = [("a cup", {"tag": "one"}), ("a hat", {"tag": "two"})]


@pytest.mark.parametrize(
    "batch",
    [
        (["a cup", "a hat"], [{"tag": "one"}, {"tag": "two"}]),
        (["a cup", "a hat"], [{"prompt": "a cup", "tag": "one"}, {"prompt": "a hat", "tag": "two"}]),
        (["a cup", "a hat"], {"tag": ["one", "two"]}),
        TAGGED,
        [*zip(*TAGGED, strict=True)],
        default_collate(TAGGED),
        [(torch.zeros(3, 2, 2), *row) for row in TAGGED],
    ],
)
def test_what_stands_in_objects_beside_the_texts_arrives(batch: Any) -> None:
    assert [(prompt.text, prompt.extra) for prompt in as_prompts(batch)] == [("a cup", {"tag": "one"}), ("a hat", {"tag": "two"})]


def test_classes_with_objects_beside_them() -> None:
    prompts = as_prompts((torch.tensor([3, 4]), [{"tag": "one"}, {"tag": "two"}]))
    assert [(prompt.label, prompt.extra) for prompt in prompts] == [(3, {"tag": "one"}), (4, {"tag": "two"})]


def test_other_texts_in_objects_beside_the_texts_are_said() -> None:
    with pytest.warns(UserWarning, match="'prompt' beside the texts of a batch has others"):
        assert as_prompts((["a cup"], [{"prompt": "a hat", "tag": "one"}])) == [Prompt("a cup", extra={"tag": "one"})]


@pytest.mark.parametrize("rows", [[(torch.zeros(3, 2, 2), "a"), (torch.zeros(3, 2, 2), "b")], [("a", 0), ("b", 1)]])
def test_no_row_of_a_list_of_tuples_is_lost(rows: Any) -> None:
    assert [prompt.text for prompt in as_prompts(rows)] == ["a", "b"]


@pytest.mark.parametrize("rows", [1, 2])
def test_objects_that_the_default_collate_turned_over_are_left_out(rows: int) -> None:
    row = {"prompt": "x", "include": [{"class": "cup", "count": 2}] * rows}
    with pytest.warns(UserWarning, match="the column 'include' does not have one value for each"):
        assert [dict(prompt.extra) for prompt in as_prompts(default_collate([row] * rows))] == [{}] * rows
