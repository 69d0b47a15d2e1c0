"""Generated prompts: unique, parsed back, disjoint between splits and from the paper's own, the same everywhere."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from fresh import Fresh

from varrl_lightning.prompts import generate as module
from varrl_lightning.prompts.files import check_disjoint, load_prompts
from varrl_lightning.prompts.generate import ASSETS, PATTERNS, main, split_of, text_prompts, vocabulary
from varrl_lightning.prompts.sets import prompt_line, region_count, region_histogram, single_words, write_prompts
from varrl_lightning.types import Prompt, quoted_words

TABLES = Path(__file__).parents[2] / "examples" / "prompts"
SPLITS = ("train", "validation", "test")
ALL_BUT_A_FEW = [word for words in vocabulary("train").values() for word in words[12:]]


@pytest.fixture(scope="module")
def paper_run() -> list[Prompt]:
    start = time.perf_counter()
    prompts = text_prompts()
    assert time.perf_counter() - start < 30  # about a second, on a machine that does nothing else
    return prompts


# --- the prompts of the paper's run -----------------------------------------------------------------------------------------


def test_as_many_as_in_the_papers_run_and_all_different(paper_run: list[Prompt]) -> None:
    assert len(paper_run) == 19200
    assert len({p.id for p in paper_run}) == 19200
    assert len({p.text for p in paper_run}) == 19200
    assert len({tuple(w.casefold() for w in p.words) for p in paper_run}) == 19200


def test_every_prompt_parses_back(paper_run: list[Prompt]) -> None:
    assert all(quoted_words(p.text) == p.words for p in paper_run)
    assert all(set(prompt_line(p)) == {"text", "id", "category"} for p in paper_run[:50])


def test_the_numbers_of_regions_are_as_asked(paper_run: list[Prompt]) -> None:
    assert region_histogram(paper_run) == {"0": 0, "1": 1920, "2": 3456, "3": 5184, "4": 5184, "5": 3456, ">5": 0}
    assert len({region_count(p) for p in paper_run[:50]}) == 5  # mixed, not one after the other


def test_scenes_and_words_are_diverse(paper_run: list[Prompt]) -> None:
    categories = Counter(p.category for p in paper_run)
    assert len(categories) == 14
    assert max(categories.values()) < 1.3 * min(categories.values())
    assert len({p.text.split(". ")[0] for p in paper_run}) > 15000  # style, place and setting
    used = Counter(word for p in paper_run for words in p.words for word in words.casefold().split())
    asked = {word.casefold() for words in vocabulary("train").values() for word in words}
    assert set(used) <= asked
    assert len(set(used)) > 0.99 * len(asked)
    assert max(used.values()) < 0.02 * sum(used.values())
    assert all(1 <= len(words.split()) <= 3 for p in paper_run for words in p.words)


def test_no_word_comes_twice_in_a_prompt(paper_run: list[Prompt]) -> None:
    for prompt in paper_run:
        words = " ".join(prompt.words).casefold().split()
        assert len(set(words)) == len(words)


def test_a_prompt_reads_as_sentences(paper_run: list[Prompt]) -> None:
    assert all(p.text.endswith(".") and not re.search(r"  |\{|\}|\.\.|,\.| ,", p.text) for p in paper_run)
    assert max(len(p.text.split()) for p in paper_run) < 120


# --- splits -----------------------------------------------------------------------------------------------------------------


def test_splits_share_no_word_whatever_their_seeds(paper_run: list[Prompt]) -> None:
    others = {split: text_prompts(1500, split=split, seed=seed) for seed, split in ((5, "validation"), (0, "test"))}
    sets = [single_words(s) for s in (paper_run, *others.values())]
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert all(len(words) > 150 for words in sets)
    check_disjoint(paper_run, others["test"])


def test_every_word_has_one_split() -> None:
    kinds = {split: {w.casefold() for words in vocabulary(split).values() for w in words} for split in SPLITS}
    everything = {w.casefold() for line in yaml.safe_load((ASSETS / "vocabulary.yaml").read_text()).values() for w in line.split()}
    assert set.union(*kinds.values()) == everything | {str(n) for n in range(10, 1000)}
    assert sum(map(len, kinds.values())) == len(set.union(*kinds.values()))
    assert len(kinds["train"]) / sum(map(len, kinds.values())) == pytest.approx(0.8, abs=0.03)


def test_the_split_of_a_word_is_its_hash() -> None:
    for word in ("Harbor", "HARBOR", "47", "Ada"):
        tenth = int(hashlib.sha256(word.lower().encode()).hexdigest()[:16], 16) % 10
        assert split_of(word) == ("train" if tenth < 8 else SPLITS[tenth - 7])


def test_the_papers_own_words_never_come() -> None:
    of_the_paper = single_words([*load_prompts(TABLES / "table7.jsonl"), *load_prompts(TABLES / "table8.jsonl")])
    assert {"vote", "mail", "crisps", "gotcha", "2", "a"} <= of_the_paper
    for split in SPLITS:
        assert not of_the_paper & {w.casefold() for words in vocabulary(split).values() for w in words}


def test_excluded_words_never_come() -> None:
    everyday = {"harbor", "coffee", "tiger", "47"}
    assert everyday <= set.union(*(single_words(text_prompts(3000, split=split)) for split in SPLITS))
    for split in SPLITS:
        assert not everyday & single_words(text_prompts(3000, split=split, exclude=["Harbor coffee", "TIGER", "47"]))


# --- arguments --------------------------------------------------------------------------------------------------------------


def test_the_same_everywhere(fresh: Fresh) -> None:
    """Also in a process that hashes text differently."""
    code = "import hashlib; from varrl_lightning.prompts.generate import text_prompts as t; "
    code += "print(hashlib.md5(repr(t(300, seed=3)).encode()).hexdigest())"
    here = hashlib.md5(repr(text_prompts(300, seed=3)).encode()).hexdigest()
    assert os.environ.get("PYTHONHASHSEED") != "7"
    assert fresh(code).stdout.strip() == here


def test_a_seed_gives_other_prompts() -> None:
    assert not {p.text for p in text_prompts(300)} & {p.text for p in text_prompts(300, seed=1)}


def test_other_shares() -> None:
    prompts = text_prompts(40, shares={2: 0.25, 5: 0.75})
    assert Counter(map(region_count, prompts)) == {2: 10, 5: 30}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"split": "dev"}, "split must be one of train, validation, test, got 'dev'"),
        ({"shares": {6: 1.0}}, r"1 to 5 text regions, got shares for \[6\]"),
        ({"shares": {1: 0.5}}, "sum to 1"),
        ({"exclude": [str(n) for n in range(10, 1000)]}, "split 'train' has fewer than 12 numbers left"),
        (
            {"count": 6000, "exclude": ALL_BUT_A_FEW, "shares": {1: 1.0}},
            "there are hardly any new ones of 1 regions in the words of this split",
        ),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_prompts(**{"count": 10, **options})


# --- the shipped vocabulary and scenes --------------------------------------------------------------------------------------


def test_the_vocabulary_is_clean() -> None:
    kinds = yaml.safe_load((ASSETS / "vocabulary.yaml").read_text())
    for words in kinds.values():
        assert all(re.fullmatch(r"[A-Za-z]{2,}", word) for word in words.split())
        assert len(set(words.casefold().split())) == len(words.split())
    assert set(kinds) | {"numbers"} == {kind for pattern in PATTERNS for kind in pattern}


def test_no_scene_has_a_quotation_mark_of_its_own_and_all_have_room_for_five_texts() -> None:
    text = (ASSETS / "scenes.yaml").read_text()
    scenes = yaml.safe_load(text)
    strings = [s for key in ("styles", "settings", "letterings", "phrases") for s in scenes[key]]
    for category in scenes["categories"].values():
        assert len(set(category["surfaces"])) == len(category["surfaces"]) >= 5
        strings += category["places"] + category["surfaces"]
    assert not [s for s in strings if re.search("[\"'“”‘’]", s)]
    assert all(phrase.count("{surface}") == phrase.count("{words}") == 1 for phrase in scenes["phrases"])


# --- the command ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_gives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, benchmark = tmp_path / "new" / "test.jsonl", tmp_path / "benchmark.jsonl"
    write_prompts(benchmark, [Prompt('"Lantern"'), Prompt('"Tiger, Coffee"')])
    asked = ["--count", "120", "--split", "test", "--seed", "4", "--regions", "2:.5,3:.5", "--exclude", str(benchmark)]
    assert main(["--output", str(output), *asked]) == 0
    expected = text_prompts(120, split="test", seed=4, shares={2: 0.5, 3: 0.5}, exclude=["lantern", "tiger", "coffee"])
    assert load_prompts(output) == expected
    assert "   2 regions      60   50.0%" in capsys.readouterr().out


def test_a_command_that_cannot_be_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "x.jsonl"), "--count", "0"]) == 1
    assert capsys.readouterr().err == "text_prompts: count must be at least 1, got 0\n"
    assert main(["--output", str(tmp_path / "x.jsonl"), "--exclude", str(tmp_path / "nowhere.jsonl")]) == 1
    assert "cannot read the prompt file" in capsys.readouterr().err


def test_the_papers_count_is_the_default() -> None:
    assert module.PAPER_COUNT == 1200 * 16
