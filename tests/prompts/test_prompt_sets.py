"""Prompt sets: written and read back, counted, filtered to a distribution, kept apart."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from varrl_lightning.prompts.files import OverlapError, check_disjoint, load_prompts
from varrl_lightning.prompts.sets import (
    APPENDIX_C,
    apportion,
    check_words_disjoint,
    filter_regions,
    format_histograms,
    main,
    parse_shares,
    prompt_line,
    region_count,
    region_histogram,
    single_words,
    words_in,
    write_prompts,
)
from varrl_lightning.types import Box, Prompt


def asking(regions: int, name: object = "") -> Prompt:
    return Prompt(f"{name}: " + " and ".join(f'"W{i}"' for i in range(regions)))


def corpus(counts: dict[int, int], seed: int = 0) -> list[Prompt]:
    prompts = [asking(regions, f"{regions}-{i}") for regions, number in counts.items() for i in range(number)]
    random.Random(seed).shuffle(prompts)
    return prompts


SKEWED = {0: 3, 1: 60, 2: 31, 3: 25, 4: 19, 5: 12, 6: 5, 9: 4}
"""As Appendix C says of its corpus: mostly one region, and a long tail."""


# --- files ------------------------------------------------------------------------------------------------------------------


def test_prompts_come_back_from_their_file(tmp_path: Path) -> None:
    full = Prompt("x", "a", ("Höt",), (Box(0, 1, 2, 3.5),), category="c", label=0, negative="n", size=(24, 64))
    prompts = [full, Prompt('a "CAT"'), Prompt('a "DOG"', id="b"), Prompt("a\u2028b")]
    path = tmp_path / "new" / "prompts.jsonl"
    write_prompts(path, prompts)
    assert load_prompts(path) == prompts
    assert path.read_text(encoding="utf-8").startswith('{"text": "x", "id": "a", "words": ["Höt"]')


def test_a_line_says_only_what_its_text_does_not() -> None:
    assert prompt_line(Prompt('a "CAT"', category="pets")) == {"text": 'a "CAT"', "category": "pets"}
    assert prompt_line(Prompt('a "CAT"', words=("DOG",)))["words"] == ("DOG",)


# --- counting ---------------------------------------------------------------------------------------------------------------


def test_what_a_region_is() -> None:
    assert region_count(Prompt("nothing")) == 0
    assert region_count(Prompt('"HOT TEA" and "CAKE"')) == 2
    assert region_count(Prompt("a sign", words=("HOT", "TEA", "CAKE"))) == 3
    assert region_count(Prompt('"HOT TEA"', words=("HOT", "TEA"))) == 1
    assert region_count(Prompt('"HOT TEA"', regions=(Box(0, 0, 1, 1), Box(2, 2, 3, 3)))) == 2


def test_histogram_with_the_bins_of_figure_8() -> None:
    assert region_histogram(corpus(SKEWED)) == {"0": 3, "1": 60, "2": 31, "3": 25, "4": 19, "5": 12, ">5": 9}


def test_the_histogram_as_text() -> None:
    lines = format_histograms({"mine": [asking(1, "a"), asking(1, "b"), asking(1, "c"), asking(7)]}).splitlines()
    assert lines[0] == "mine: 4 prompts"
    assert lines[2] == "   1 regions       3   75.0% " + "#" * 30
    assert lines[7] == "  >5 regions       1   25.0% " + "#" * 10
    assert lines[1] == "   0 regions       0    0.0%"
    assert "0.0%" in format_histograms({"empty": []})


# --- filtering --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "shares", "parts"),
    [
        (10, {2: 0.2, 3: 0.3, 4: 0.3, 5: 0.2}, {2: 2, 3: 3, 4: 3, 5: 2}),
        (7, {2: 0.2, 3: 0.3, 4: 0.3, 5: 0.2}, {2: 2, 3: 2, 4: 2, 5: 1}),  # 1.4, 2.1, 2.1, 1.4: one left, to the first 1.4
        (3, {1: 0.5, 2: 0.5}, {1: 2, 2: 1}),
        (0, {1: 0.5, 2: 0.5}, {1: 0, 2: 0}),
        (19200, {1: 0.1, 2: 0.18, 3: 0.27, 4: 0.27, 5: 0.18}, {1: 1920, 2: 3456, 3: 5184, 4: 5184, 5: 3456}),
    ],
)
def test_shares_in_whole_numbers(total: int, shares: dict[int, float], parts: dict[int, int]) -> None:
    assert apportion(total, shares) == parts


def test_the_filtered_set_has_the_target_distribution() -> None:
    """31, 25, 19 and 12 prompts of 2 to 5 regions: 12 / .2 = 60 are possible, and rounding makes room for 3 more."""
    prompts = corpus(SKEWED)
    chosen = filter_regions(prompts)
    counts = Counter(region_count(p) for p in chosen)
    assert counts == {2: 13, 3: 19, 4: 19, 5: 12}
    assert len(set(chosen)) == len(chosen) == 63
    assert chosen == [p for p in prompts if p in set(chosen)]  # in the order of the file


def test_no_larger_set_has_it() -> None:
    """Against every larger total, on random corpora."""
    rng = random.Random(0)
    for _ in range(20):
        counts = {regions: rng.randrange(1, 30) for regions in range(1, 7)}
        found = len(filter_regions(corpus(counts)))
        for total in itertools.chain([found], range(found + 1, 200)):
            fits = all(number <= counts[regions] for regions, number in apportion(total, APPENDIX_C).items())
            assert fits == (total == found)


def test_a_count_and_another_target() -> None:
    chosen = filter_regions(corpus(SKEWED), {1: 0.5, 9: 0.5}, count=6)
    assert Counter(region_count(p) for p in chosen) == {1: 3, 9: 3}


def test_the_choice_depends_on_the_seed_and_not_on_the_order() -> None:
    prompts = corpus(SKEWED)
    first = filter_regions(prompts, count=20)
    assert set(filter_regions(corpus(SKEWED, seed=1), count=20)) == set(first)
    assert filter_regions(prompts, count=20) == first
    assert set(filter_regions(prompts, count=20, seed=1)) != set(first)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({2: 9, 3: 9, 4: 9}, {}, r"some prompts of 5 regions are wanted, and there are 0\. .*'4': 9, '5': 0"),
        (SKEWED, {"count": 100}, "30 prompts of 3 regions are wanted, and there are 25"),
        (SKEWED, {"target": {2: 0.5, 3: 0.4}}, r"must be in \(0, 1\] and sum to 1, got \{2: 0.5, 3: 0.4\}"),
        (SKEWED, {"target": {2: 1.5, 3: -0.5}}, "must be in .* sum to 1"),
        (SKEWED, {"target": {}}, "sum to 1"),
    ],
)
def test_what_cannot_be_filtered(counts: dict[int, int], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filter_regions(corpus(counts), **options)


def test_shares_from_the_command_line() -> None:
    assert parse_shares("2:.2,3:.3,4:.3,5:.2") == APPENDIX_C
    for wrong in ("", "2", "2:x", "2:.2;3:.8", "2:.2:3"):
        with pytest.raises(ValueError, match=r"look like 2:.2,3:.3,4:.3,5:.2, got"):
            parse_shares(wrong)


# --- apart ------------------------------------------------------------------------------------------------------------------


def test_words_without_case_and_punctuation() -> None:
    assert words_in("Wouldn't you, rather... M-BOX 2.0!") == ["wouldn't", "you", "rather", "m", "box", "2", "0"]
    assert single_words([Prompt('"Hot TEA!"'), Prompt("a cat"), Prompt("x", words=("ice",))]) == {"hot", "tea", "ice"}


def test_sets_may_share_a_word_and_no_prompt() -> None:
    first, second = [Prompt('"HOT TEA"'), Prompt('"PIE"')], [Prompt('"tea, please"'), Prompt('"CAKE"')]
    check_disjoint(first, second)
    with pytest.raises(OverlapError, match=r"train and test share 1 words: tea\. Remove"):
        check_words_disjoint(first, second)
    check_words_disjoint(first, second[1:])


# --- commands ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_prompts(tmp_path / "all.jsonl", corpus(SKEWED))
    return tmp_path / "all.jsonl"


def test_the_filter_command_writes_the_set_and_shows_both_histograms(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = file.parent / "filtered.jsonl"
    assert main(["filter", str(file), "--output", str(output)]) == 0
    assert load_prompts(output) == filter_regions(load_prompts(file))
    shown = capsys.readouterr().out
    assert shown == format_histograms({f"before ({file})": load_prompts(file), f"after ({output})": load_prompts(output)}) + "\n"


def test_the_histogram_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["histogram", str(file)]) == 0
    assert "   1 regions      60   37.7%" in capsys.readouterr().out


def test_the_disjoint_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.parent / "other.jsonl"
    write_prompts(other, [Prompt('"w0 pie"')])
    assert main(["disjoint", str(file), str(other)]) == 0
    assert "share no prompt" in capsys.readouterr().out
    assert main(["disjoint", str(file), str(other), "--words"]) == 1
    assert "share 1 words: w0" in capsys.readouterr().err
    assert main(["disjoint", str(file), str(file)]) == 1


@pytest.mark.parametrize("arguments", [["histogram", "nowhere.jsonl"], ["filter", "{file}", "--output", "x", "--target", "7:1"]])
def test_a_commands_error_is_one_message(file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([a.format(file=file) for a in arguments]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
