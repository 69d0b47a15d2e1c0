"""Prompt files and batches in other people's forms: names of columns, ids, and columns that are nobody's."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from PIL import Image
from torch.utils.data import DataLoader

from tests.tiny import WORDS, tiny_module, tiny_trainer
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.prompts.benchmarks import load_benchmark
from varrl_lightning.prompts.columns import close_field
from varrl_lightning.prompts.files import PromptFileError, load_prompts
from varrl_lightning.prompts.sets import filter_regions, write_prompts
from varrl_lightning.types import Prompt, Rollout, Scores

INCLUDE = [{"class": "cup", "count": 2, "colour": None}, {"class": "dog", "count": 1, "at": [0.5, True]}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, rows))


# --- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ['a cat\n\n  a "GO" sign \n', b'\xef\xbb\xbfa cat\r\n \r\na "GO" sign\r\n', 'a cat\ra "GO" sign']
)
def test_a_text_file_has_a_prompt_a_line(tmp_path: Path, content: str | bytes) -> None:
    assert load_benchmark(write(tmp_path / "prompts.TXT", content)) == [Prompt("a cat"), Prompt('a "GO" sign', words=("GO",))]


def test_texts_that_occur_again_are_numbered(tmp_path: Path) -> None:
    texts = ["a cat", "a dog", "a cat", "a cat #2", "a cat", "a cat"]
    ids = ["a cat", "a dog", "a cat #2", "a cat #2 #2", "a cat #3", "a cat #4"]
    for name, content in (("x.txt", "\n".join(texts)), ("x.jsonl", lines(*({"prompt": text} for text in texts)))):
        read = load_prompts(write(tmp_path / name, content))
        assert [(p.text, p.id) for p in read] == list(zip(texts, ids, strict=True))


def test_a_given_id_is_kept_and_given_only_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert [p.id for p in load_prompts(write(path, lines({"text": "a"}, {"text": "b", "id": "a"}, {"caption": "c", "id": 7})))] == [
        "a #2",
        "a",
        "7",
    ]
    with pytest.raises(PromptFileError, match=r"line 3: the id '7' is already that of line 1"):
        load_prompts(write(path, lines({"text": "a", "id": 7}, {"text": "b"}, {"text": "c", "id": "7"})))
    with pytest.raises(PromptFileError, match=r"entry 2: the id 'p' is already that of entry 0"):
        load_benchmark(write(tmp_path / "x.json", json.dumps([{"text": "a", "id": "p"}, "b", {"prompt": "c", "id": "p"}])))


def test_jsonl_under_another_ending_is_jsonl(tmp_path: Path) -> None:
    for name in ("x.txt", "x.json", "x.prompts"):
        assert load_benchmark(write(tmp_path / name, lines({"prompt": "a"}, {"prompt": "b"}))) == [Prompt("a"), Prompt("b")]
    with pytest.raises(PromptFileError, match=r"(?s)line 1: .*a file of plain texts must end in \.txt"):
        load_prompts(write(tmp_path / "x.list", "a cat\n"))


def test_an_empty_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"holds no prompt; expected one a line"):
        load_prompts(write(tmp_path / "x.txt", "\n \n"))


@pytest.mark.parametrize("text", ["text", "prompt", "caption"])
@pytest.mark.parametrize("negative", ["negative", "negative_prompt"])
def test_the_names_of_text_and_negative_prompt(tmp_path: Path, text: str, negative: str) -> None:
    row = {text: "two cups", negative: "blurred", "include": INCLUDE, "tag": "counting", "words": ["GO"], "size": [8, 16]}
    wanted = Prompt("two cups", words=("GO",), negative="blurred", size=(8, 16), extra={"include": INCLUDE, "tag": "counting"})
    assert load_prompts(write(tmp_path / "x.jsonl", lines(row))) == [wanted]
    assert load_benchmark(write(tmp_path / "y.json", json.dumps([row]))) == [replace(wanted, id="y/0", category="y")]
    assert as_prompts([row]) == [wanted]
    assert as_prompts({name: [value] for name, value in row.items()}) == [wanted]


def test_a_name_without_a_value_is_not_there(tmp_path: Path) -> None:
    rows = lines({"text": None, "prompt": "two cups", "negative_prompt": None})
    assert load_prompts(write(tmp_path / "nulls.jsonl", rows)) == [Prompt("two cups")]


def test_two_texts_are_told(tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl", lines({"prompt": "a", "text": "b"}, {"prompt": "c", "text": "d"}, {"prompt": "e", "text": "e"})
    )
    with pytest.warns(UserWarning, match=r"line 1 and 1 more: 'text' and 'prompt' differ: 'text' is read .*'prompt' goes into"):
        read = load_prompts(path)
    assert [(p.text, p.extra) for p in read] == [("b", {"prompt": "a"}), ("d", {"prompt": "c"}), ("e", {"prompt": "e"})]


@pytest.mark.parametrize(
    ("key", "meant"),
    [("word", "words"), ("txt", "text"), ("categroy", "category"), ("lable", "label"), ("Words", "words"),
     ("negative prompt", "negative_prompt"),
     ("regoins", "regions"), ("negativ", "negative"), ("zise", "size"), ("captions", "caption")],
)  # fmt: skip
def test_a_misspelt_key_is_told_once_a_file(tmp_path: Path, key: str, meant: str) -> None:
    path = write(tmp_path / "x.jsonl", lines(*({"text": f"{i}", key: ["A"]} for i in range(30))))
    with pytest.warns(UserWarning, match=rf"x\.jsonl, line 1 and 29 more: the key '{key}' .*did you mean '{meant}'\?") as told:
        read = load_prompts(path)
    assert len(told) == 1
    assert read[29].extra == {key: ["A"]}


def test_other_keys_are_not_misspelt() -> None:
    others = (
        "include exclude tag tags answer question index idx uid prompt_id text_en words_list target source url height width lang"
    )
    others += " level title content context object type keywords metadata score seed bbox class answer rewritten_prompt side style"
    assert [name for name in others.split() if close_field(name)] == []


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a", "x": {"y": [1.0, float("nan")]}}, r"line 1: extra\['x'\]\['y'\]\[1\] is nan, which JSON does not have"),
        ({"text": "a", "x": float("inf")}, r"extra\['x'\] is inf"),
        ({"text": "a", "extra": [1]}, "'extra' must be an object of names and values, got \\[1\\]"),
        ({"text": "a", "extra": {"b": 1}, "b": 2}, "'b' is given twice: in 'extra' and beside it"),
        ({"text": "a", "negative_prompt": 3}, "'negative' must be a string, got 3"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptFileError, match=said):
        load_prompts(write(tmp_path / "x.jsonl", lines(row)))


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    prompts = [
        Prompt('a "GO" sign', extra={"include": INCLUDE, "prompt": "é"}),
        Prompt("b"),
        Prompt('an "UP" sign', id="x", extra={"n": 0}),
    ]
    write_prompts(tmp_path / "x.jsonl", filter_regions([*prompts], {1: 1.0}) + prompts[1:2])
    assert load_prompts(tmp_path / "x.jsonl") == [prompts[0], prompts[2], prompts[1]]
    assert "extra" not in (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()[2]


# --- the values -------------------------------------------------------------------------------------------------------------


def test_extra_is_a_json_object_that_cannot_be_changed() -> None:
    given: dict[str, Any] = {"include": copy.deepcopy(INCLUDE), "score": torch.tensor([0.5, 2.0]), "n": np.int64(3), "pair": (1, 2)}
    prompt = Prompt("two cups", extra=given)
    given["include"].clear()
    wanted = {"include": INCLUDE, "score": [0.5, 2.0], "n": 3, "pair": [1, 2]}
    assert prompt.extra == wanted
    for same in (copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt)), replace(prompt), Prompt(**asdict(prompt))):
        assert same == prompt
        assert hash(same) == hash(prompt)
        with pytest.raises(TypeError, match="cannot change the FrozenDict of a prompt"):
            same.extra["n"] = 4  # type: ignore[index]
        with pytest.raises(TypeError, match="cannot change the FrozenList of a prompt"):
            same.extra["include"].append(1)
    assert json.loads(json.dumps(prompt.extra)) == wanted
    assert apply_to_collection([prompt], torch.Tensor, torch.Tensor.bfloat16) == [prompt]
    assert prompt != Prompt("two cups")
    assert Prompt("a").extra == {}


def test_a_loader_with_workers_hands_extra_on() -> None:
    rows = [Prompt(f"{i}", extra={"include": INCLUDE}) for i in range(2)]
    assert list(DataLoader(rows, batch_size=2, num_workers=1, collate_fn=list)) == [rows]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [{"x": {1, 2}}, {"x": [b"a"]}, {"x": {3: 4}}, {"x": 1j}])
def test_what_json_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"extra\['x'\](\[0\])? (is a \w+, which|has the key 3)"):
        Prompt("a", extra=value)


# --- batches ----------------------------------------------------------------------------------------------------------------


def test_columns_of_a_batch_reach_the_prompts() -> None:
    batch = {
        "prompt": ["a", "b"],
        "include": [INCLUDE, []],
        "score": torch.tensor([0.5, 1.0]),
        "box": np.array([[1, 2], [3, 4]]),
        "count": [np.int64(2), torch.tensor(5)],
        "source": "mine",
        "at": [(0, 1), (2, 3)],
        "image": torch.zeros(2, 3, 8, 8),
        "mask": torch.zeros(2, 64, 64),
        "pictures": [Image.new("RGB", (4, 4)), Image.new("L", (5, 4))],
    }
    first, second = as_prompts(batch)
    assert first.extra == {"include": INCLUDE, "score": 0.5, "box": [1, 2], "count": 2, "source": "mine", "at": [0, 1]}
    assert second.extra == {"include": [], "score": 1.0, "box": [3, 4], "count": 5, "source": "mine", "at": [2, 3]}
    rows = [
        {
            "prompt": "a",
            "include": INCLUDE,
            "score": torch.tensor(0.5),
            "image": torch.zeros(3, 8, 8),
            "picture": Image.new("L", (4, 4)),
        }
    ]
    assert as_prompts(rows) == [Prompt("a", extra={"include": INCLUDE, "score": 0.5})]


def test_what_the_default_collate_makes_of_columns() -> None:
    rows = [{"prompt": text, "tag": tag, "meta": {"n": n}} for text, tag, n in (("a", "x", 1), ("b", "y", 2))]
    batch = next(iter(DataLoader(rows, batch_size=2)))  # type: ignore[arg-type]
    assert [p.extra for p in as_prompts(batch)] == [{"tag": "x", "meta": {"n": 1}}, {"tag": "y", "meta": {"n": 2}}]
    for turned in ([1, 2], ["p", "q"]):
        batch = next(iter(DataLoader([{"prompt": text, "box": turned} for text in "ab"], batch_size=2)))  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match=r"the column 'box' .*left out of Prompt\.extra; .*use collate_fn=list"):
            assert [p.extra for p in as_prompts(batch)] == [{}, {}]


def test_what_a_batch_cannot_hand_on_is_named() -> None:
    with pytest.warns(UserWarning, match=r"left out of Prompt\.extra: the row\['thing'\] is a object, which JSON does not have"):
        assert as_prompts([{"prompt": "a", "thing": object(), "n": 1}]) == [Prompt("a", extra={"n": 1})]
    with pytest.warns(UserWarning, match=r"the key 'word' .*did you mean 'words'\?"):
        as_prompts({"prompt": ["a"], "word": ["A"]})


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_extra_reaches_rewards_and_mask_sources_from_a_foreign_loader() -> None:
    seen: dict[str, set[int]] = {"reward": set(), "mask": set()}

    def reward(images: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        seen["reward"] |= {p.extra["include"][0]["count"] for p in prompts}
        return images.mean(dim=(1, 2, 3))

    def mask(rollout: Rollout, scores: Scores, policy: Any) -> torch.Tensor:
        seen["mask"] |= {p.extra["include"][0]["count"] for p in rollout.image_prompts}
        return torch.ones_like(rollout.images[:, 0])

    rows = [{"prompt": f'"{word}"', "include": [{"class": "cup", "count": i}]} for i, word in enumerate(WORDS[:2])]
    loader = DataLoader(rows, batch_size=2, collate_fn=list)  # type: ignore[arg-type]
    module = tiny_module(reward=reward, mask_source=mask, group_size=2)
    tiny_trainer(max_steps=1, limit_val_batches=0).fit(module, loader)
    assert seen == {"reward": {0, 1}, "mask": {0, 1}}
