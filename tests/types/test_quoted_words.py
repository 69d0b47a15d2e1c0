"""Which words a prompt asks for: the paper's own prompts, and what quotation marks are used for besides."""

from __future__ import annotations

from pathlib import Path

import pytest

from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.types import Prompt, quoted_words

PROMPTS = Path(__file__).parents[2] / "examples" / "prompts"
TABLE_7 = {
    "table7-1": ("A", "B", "C", "N", "O", "Y"),
    "table7-2": ("Wouldn't you rather...", "VOTE.", "By Mail."),
    "table7-3": ("M-BOX 2.0", "by: Jimmy-Fan"),
    "table7-4": ("DESCUBRE LO QUE ESCONDEN NUESTRO CAMPING", "UPBAN KIDS"),
    "table7-5": ("L'ARANCAEY FIMMNA",),
    "table7-6": ("FISHING CHALLENGE", "GOTCHA!"),
    "table7-7": ("Apps Way Crisps.", "Apps Wheat Crisps.", "Apps Potato Crisps.", "Apps Cheese Balls."),
    "table7-8": ("VAR RL Done Right",),
}
"""As the caption of Figure 5 names them, without the sentence's comma."""


def test_table_7_reads_as_the_paper_says() -> None:
    assert {p.id: p.words for p in load_prompts(PROMPTS / "table7.jsonl")} == TABLE_7


def test_table_8_asks_for_no_text() -> None:
    """Its eight prompts are full of apostrophes: squirrel's, winter's, horse's, man's, canyon's."""
    prompts = load_prompts(PROMPTS / "table8.jsonl")
    assert [p.id for p in prompts] == [f"table8-{i}" for i in range(1, 9)]
    assert sum("'s " in p.text for p in prompts) == 5
    assert [p.words for p in prompts] == [()] * 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no text at all", ()),
        ('a sign "OPEN" and a door “PUSH”', ("OPEN", "PUSH")),
        ("a sign 'OPEN', a door ‘PUSH’.", ("OPEN", "PUSH")),
        ('"HELLO," she said, "WORLD ,"', ("HELLO", "WORLD")),
        ('reads "VOTE."', ("VOTE.",)),
        ("don't, it's and the dogs' bowl", ()),
        ("the dogs' bowl says 'REX'", ("REX",)),
        ("a mug that says 'Don't Stop'", ("Don't Stop",)),
        ("a mug that says ‘Don’t Stop’", ("Don’t Stop",)),
        ("\"rock 'n' roll\"", ("rock 'n' roll",)),
        ("a '90s diner with 'EAT HERE'", ("EAT HERE",)),
        ("the year '1990' on a wall", ("1990",)),
        ('a 12" record titled "SIDE A"', ("SIDE A",)),
        ('on "ROUTE 66" and "EXIT 7"', ("ROUTE 66", "EXIT 7")),
        ('写着"你好"的牌子', ("你好",)),
        ('"" and \'\' and "  ," are empty', ()),
        ('"two\nlines"', ("two\nlines",)),
        ("(‘A’, 'B')", ("A", "B")),
    ],
)
def test_quotation_marks_and_what_only_looks_like_them(text: str, words: tuple[str, ...]) -> None:
    assert quoted_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"HOT TEA", with "HOT" in red and "TEA" in green', ("HOT TEA",)),
        ('"OPEN" here and "OPEN" there', ("OPEN",)),
        ('"GOLDEN CART" and "ART"', ("GOLDEN CART", "ART")),  # another word, not a part of the first sign
        ('"ART" and "ART FAIR"', ("ART", "ART FAIR")),  # only what was said earlier
        ('"BANANA", "A"', ("BANANA", "A")),
        ('"open" and "OPEN"', ("open", "OPEN")),
        ('"C++ (now)" and "C++"', ("C++ (now)",)),
    ],
)
def test_what_is_repeated_counts_once(text: str, words: tuple[str, ...]) -> None:
    assert quoted_words(text) == words


def test_a_prompt_asks_for_what_it_quotes_unless_told_otherwise() -> None:
    assert Prompt('a "CAT"').words == ("CAT",)
    assert Prompt('a "CAT"', words=("DOG",)).words == ("DOG",)
