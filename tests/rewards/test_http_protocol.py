"""The requests and answers of a reward service, as they are sent and read."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from varrl_lightning.rewards.http_answer import Row, decode_answer, encode_answer, rows_of, scores_of
from varrl_lightning.rewards.http_request import Limits, check_request, decode_image, decode_prompt, encode_request
from varrl_lightning.types import Box, Prompt, Scores


def test_what_is_sent_arrives() -> None:
    images = torch.rand(4, 3, 5, 7)
    prompts = [
        Prompt("plain"),
        Prompt('a "word"', id="1", regions=(Box(0, 1, 2, 3.5),), category="c", label=0, negative="", size=(5, 7)),
        Prompt("ü 字 \U0001f600", words=("x", "y z")),
        Prompt("two cups", extra={"include": [{"class": "cup", "count": 2}], "tag": None}),
    ]
    request = check_request(encode_request(images, prompts), Limits())
    assert [decode_prompt(prompt) for prompt in request["prompts"]] == prompts
    assert ["extra" in prompt for prompt in request["prompts"]] == [False, False, False, True]  # older services know no such key
    received = torch.stack([decode_image(image, 10**6) for image in request["images"]])
    assert torch.equal(received, (images * 255).round().byte())


def test_what_is_answered_arrives() -> None:
    scores = Scores(
        torch.tensor([0.1, math.nan, -3e-9, 5.0]),
        components={"part": torch.tensor([1.0, math.nan, math.inf, 2.0])},
        regions=[[Box(0, 1, 2, 3)], [], [Box(0.5, 0, 1, 1), Box(1, 1, 2, 2)], []],
        valid=torch.tensor([True, True, True, False]),
        texts=[["A", "ü"], [], ["\ud800"], []],
    )
    body = json.dumps(encode_answer(rows_of(scores)), allow_nan=False).encode()
    back = scores_of(decode_answer(body, 4))
    assert back.values[[0, 2]].equal(scores.values[[0, 2]])
    assert back.usable.tolist() == [True, False, True, False]
    assert back.values.isnan().tolist() == [False, True, False, True]
    assert back.components["part"].nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, 2.0]
    assert back.regions == scores.regions
    assert back.texts == [["A", "ü"], [], ["?"], []]


def test_an_answer_without_regions_and_texts_has_none() -> None:
    back = scores_of(decode_answer(b'{"values": [1, null]}', 2))
    assert (back.regions, back.texts, back.components) == (None, None, {})
    mixed = scores_of([Row(1.0, {"a": 1.0}, [Box(0, 0, 1, 1)]), Row(error="no")])
    assert mixed.regions == [[Box(0, 0, 1, 1)], []]
    assert mixed.components["a"].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[1, 2]", "the answer must be an object"),
        ("{}", "values must be a list of 2, one entry per image, got null"),
        ('{"values": [1]}', "values must be a list of 2, one entry per image, got 1 entries"),
        ('{"values": [1, 2], "components": {"c": [1]}}', "the component 'c' must be a list of 2"),
        ('{"values": [1, 2], "components": [1]}', "the answer must be an object"),
        ('{"values": [1, 2], "texts": [[]]}', "texts must be a list of 2"),
        ("<html>", "the body is not JSON"),
    ],
)
def test_other_answers_are_refused(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_answer(answer.encode(), 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("NaN", "got nan"),
        ("Infinity", "got inf"),
        ("1e39", r"got 1e\+39"),
        ("-Infinity", "got -inf"),
        ("1e999", "got inf"),
        ('"NaN"', "got 'NaN'"),
        ('"-inf"', "got '-inf'"),
        ('"good"', "got 'good'"),
        ('""', "got ''"),
        ("true", "got True"),
        ("[1]", r"got \[1\]"),
        ("{}", "got {}"),
        ("1" + "0" * 400, "got 1000"),
    ],
)
def test_an_entry_that_is_no_number_costs_its_image_alone(entry: str, message: str) -> None:
    rows = decode_answer(f'{{"values": [0.5, {entry}, 0.25], "components": {{"c": [1, 2, {entry}]}}}}'.encode(), 3)
    assert [row.value for row in rows] == [0.5, None, 0.25]
    assert [row.components["c"] for row in rows] == [1, 2, None]
    errors = [row.error or "" for row in rows]
    assert errors[0] == ""
    assert re.fullmatch(rf"values\[1\]: expected a (finite )?number or null, {message}.*", errors[1])
    assert re.fullmatch(rf"the component 'c'\[2\]: expected a (finite )?number or null, {message}.*", errors[2])
    assert scores_of(rows).usable.tolist() == [True, False, True]


@pytest.mark.parametrize(("entry", "value"), [('"0.7"', 0.7), ('" -3e-2 "', -0.03), ('"1"', 1.0), ("2", 2.0)])
def test_a_number_in_a_string_is_read(entry: str, value: float) -> None:
    body = f'{{"values": [{entry}], "components": {{"c": [{entry}]}}, "regions": [[[0, 0, {entry}, 9]]]}}'
    (row,) = decode_answer(body.encode(), 1)
    assert (row.value, row.components, row.error) == (value, {"c": value}, None)
    assert row.regions == [Box(0, 0, value, 9)]


@pytest.mark.parametrize("entry", ["[[0, 0, 1]]", "[[0, 0, 1, null]]", "[[0, 0, 1, NaN]]", '[["x", 0, 1, 2]]', "3", '"a"', "[1]"])
def test_regions_and_texts_that_cannot_be_read_cost_their_image_alone(entry: str) -> None:
    """Its value may be right, but nobody knows which tokens it is about, or what was read."""
    for key in ("regions", "texts"):
        rows = decode_answer(f'{{"values": [1, 2, 3], "{key}": [[], {entry}, []]}}'.encode(), 3)
        assert [row.value for row in rows] == [1, None, 3]
        assert (rows[1].error or "").startswith(f"{key}[1]: expected ")
        assert [rows[0].error, rows[2].error] == [None, None]


def test_what_an_answer_leaves_out_for_one_image_is_no_error() -> None:
    rows = decode_answer(
        b'{"values": [1, null], "regions": [[[0, 0, 1, 1]], null], "texts": [["A"], null], "errors": [null, 3]}', 2
    )
    assert [row.value for row in rows] == [1, None]
    assert [row.error for row in rows] == [None, "3"]
    scores = scores_of(rows)
    assert (scores.regions, scores.texts) == ([[Box(0, 0, 1, 1)], []], [["A"], []])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_service_writes_nothing_that_is_not_json(wrong: float) -> None:
    rows = [
        Row(wrong, {"c": wrong, "\ud800": 1.0}, [], ["a"]),
        Row(1.0, {"c": 2.0}, [Box(0, 0, 1, 1), Box(0, wrong, 1, 1)], ["b"]),
        Row(2.0, {}, [Box(0, 0, 1, 1)], ["\ud800"], "\ud800"),
    ]
    body = json.dumps(encode_answer(rows), allow_nan=False).encode()
    back = decode_answer(body, 3)
    assert [row.value for row in back] == [None, None, 2.0]
    assert back[1].error == "the reward's regions are not finite"
    assert [list(row.regions or ()) for row in back] == [[], [], [Box(0, 0, 1, 1)]]
