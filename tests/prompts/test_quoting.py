"""A hundred prompts in many scripts and quoting styles: the words, a warning that names the prompt, or a refusal that does."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from varrl_lightning.data import PromptDataModule
from varrl_lightning.prompts import quotes
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.prompts.benchmarks import load_benchmark
from varrl_lightning.prompts.files import OverlapError, check_disjoint, load_prompts
from varrl_lightning.prompts.sets import check_words_disjoint, write_prompts
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import normal_words

HUNDRED: list[dict[str, Any]] = [
    json.loads(line) for line in Path(__file__).with_name("quoting.jsonl").read_text(encoding="utf-8").splitlines()
]
"""`expect` is `words`: these and no warning; `warned`: a warning, and these are the likeliest; `refused`: there are none.

`unreadable`: the default reader has not all characters of the words.
"""


class Blind:
    detect = False

    def read(self, images: Any) -> list[Any]:
        return [[] for _ in images]


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotes, "_told", set())
    monkeypatch.setattr(quotes, "_named", set())


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps({"id": r["id"], "text": r["text"]}) + "\n" for r in rows), encoding="utf-8")
    return path


def read_as_doctor_does(path: Path) -> tuple[list[Prompt], str, str]:
    """The prompts, the warning and the refusal."""
    data = PromptDataModule(train=path, batch_size=1)
    rewards = WeightedRewards({"ocr": WeightedReward(OCRReward(engine=Blind()))})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data.setup("fit")
        prompts = [prompt for of_file in data.prompts.values() for prompt in of_file]
        try:
            rewards.check_prompts(prompts)
        except ValueError as error:
            return prompts, _about_quotes(told), str(error)
    return prompts, _about_quotes(told), ""


def _about_quotes(told: list[warnings.WarningMessage]) -> str:
    return "\n".join(str(w.message) for w in told if "quotes" in str(w.message))


def test_there_are_a_hundred_in_ten_scripts() -> None:
    assert len(HUNDRED) == 100
    assert len({row["script"] for row in HUNDRED}) >= 10
    assert len({row["quotes"] for row in HUNDRED}) >= 30
    assert min(Counter(row["expect"] for row in HUNDRED).values()) >= 10


@pytest.mark.parametrize("row", HUNDRED, ids=lambda row: row["id"])
def test_each_is_read_right_or_named(row: dict[str, Any], tmp_path: Path) -> None:
    (prompt,), warning, refusal = read_as_doctor_does(written(tmp_path / "p.jsonl", [row]))
    assert list(prompt.words) == row["expected_words"]
    assert (repr(row["id"]) in refusal) == (row["expect"] == "refused")
    assert bool(warning) == bool(prompt.unclear_quotes)
    if row["expect"] != "refused":
        assert bool(warning) == (row["expect"] == "warned")
    if warning:
        assert repr(row["id"]) in warning
        assert prompt.unclear_quotes in warning


def test_what_the_default_reader_cannot_write_is_named() -> None:
    """Of the prompts with words, those that the real engine's alphabet lacks characters of, and no others."""
    prompts = {row["id"]: Prompt(row["text"], id=row["id"]) for row in HUNDRED if row["expect"] != "refused"}
    reward = OCRReward(detect=False)
    for row in HUNDRED:
        if row["expect"] != "refused":
            lacking = reward.unreadable(normal_words(prompts[row["id"]].words, "keep"))
            assert bool(lacking) == row.get("unreadable", False), (row["id"], lacking)
    with pytest.warns(UserWarning, match=r"\(U\+[0-9A-F]{4}"):
        reward.check_prompts(list(prompts.values()))


def test_all_at_once_is_one_warning_that_names_each(tmp_path: Path) -> None:
    prompts, warning, refusal = read_as_doctor_does(written(tmp_path / "p.jsonl", HUNDRED))
    unclear = [p for p in prompts if p.unclear_quotes]
    assert warning.count("\n") == 0
    assert f"{tmp_path / 'p.jsonl'}: the quotes of {len(unclear)} of 100 prompts are unclear" in warning
    assert [p.id for p in unclear if repr(p.id) not in warning] == []
    assert warning.count("; taken: ") == quotes.NAMED
    refused = [row["id"] for row in HUNDRED if row["expect"] == "refused"]
    assert f"{len(refused)} of 100 prompts have none: {', '.join(map(repr, refused))}." in refusal


def test_batches_of_texts_are_warned_of_and_prompts_that_were_read_are_not_again(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'a sign \"OPEN' \(\" has no partner in .*; taken: no words\)"):
        as_prompts([{"prompt": 'a sign "OPEN'}, {"prompt": 'a sign "SHUT"'}])
    with pytest.warns(UserWarning, match="the quotes of 1 of 1 prompts"):
        (unclear,) = as_prompts([Prompt("a sign “SALE")])
    as_prompts([unclear, Prompt('a sign "OPEN')])
    (tmp_path / "p.json").write_text(json.dumps(["a cup “TEA"]))
    with pytest.warns(UserWarning, match=r"p.json: the quotes of 1 of 1 prompts are unclear.*'p/0'"):
        prompts = load_benchmark(tmp_path / "p.json")
    as_prompts(prompts)


def test_a_stream_of_unclear_prompts_is_not_a_stream_of_warnings() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for i in range(300):
            as_prompts([f'a sign "OPEN {i}', f'a sign "OPEN {i}" there'])
            as_prompts([f'a sign "OPEN {i}'])
    assert len(told) == quotes.MOST + 1
    assert "further prompts have unclear quotes" in str(told[-1].message)


def test_words_that_were_listed_stay_listed_in_a_file(tmp_path: Path) -> None:
    """Otherwise the file would be warned of again."""
    text = "a sign 'THE DOGS' BOWL'"
    listed = Prompt(text, words=("THE DOGS' BOWL",))
    assert listed == Prompt(text)
    write_prompts(tmp_path / "p.jsonl", [listed])
    assert load_prompts(tmp_path / "p.jsonl") == [listed]


@pytest.mark.parametrize(("one", "other"), [("ＯＰＥＮ", "OPEN"), ("DON’T", "don't"), ("CAFE\u0301", "Café"), ("I ❤️ NY", "I ❤ NY")])
def test_sets_that_ask_for_the_same_in_other_characters_overlap(one: str, other: str) -> None:
    first, second = ([Prompt(f'a sign "{words}"', id=words)] for words in (one, other))
    for check in (check_disjoint, check_words_disjoint):
        with pytest.raises(OverlapError):
            check(first, second)
