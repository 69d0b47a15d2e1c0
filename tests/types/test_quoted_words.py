"""Which words a prompt asks for: the paper's own prompts, and what quotation marks are used for besides."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.types import Prompt, quoted_words
from varrl_lightning.types.quoting import Quotes, read_quotes

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a sign „Geöffnet“ next to a sign “Open”", ("Geöffnet", "Open")),
        ("»ÅBEN« og ›LUKKET‹", ("ÅBEN", "LUKKET")),
        ("”ÖPPET” och ’STÄNGT’", ("ÖPPET", "STÄNGT")),
        ("»AVOINNA» ja ‹A› ja ‚Zu‘", ("AVOINNA", "A", "Zu")),
        ("« OUVERT » et «L'ÉTÉ»", ("OUVERT", "L'ÉTÉ")),
        ("「営業中」『本』《書》〈頁〉﹁開﹂〝札〟｢ｱ｣＂Ａ＂", ("営業中", "本", "書", "頁", "開", "札", "ｱ", "Ａ")),
        ("`OPEN` and ``CLOSED'' and ''HI''", ("OPEN", "CLOSED", "HI")),
        ("写着'你好'的牌子", ("你好",)),
        ("'영업 중'이라고 쓰인", ("영업 중",)),
        ('\u200f"פתוח"\u200f של צה"ל', ("פתוח",)),
        ("rock 'n' roll poster with the text 'LIVE'", ("LIVE",)),
        ("rock ‘n’ roll and drum ’n’ bass with ‘LIVE’", ("LIVE",)),
        ("Text says 'ROCK 'N' ROLL'", ("ROCK 'N' ROLL",)),
        ("Guns N' Roses at the boys' club, in the summer of '69, 'LIVE'", ("LIVE",)),
        ("the letter 'N' beside the letters 'A' 'N' 'D'", ("N", "A", "D")),
        ("a 12\" x 18” poster, 6' wide and 5'10\" high, with 'HOT'", ("HOT",)),
        ('a ½" screw and a 24″ screen with “M5”', ("M5",)),
        ("“She said ‘YES’ today” in pink", ("She said ‘YES’ today",)),
        ("a box with '\"HOT\"' on it", ("HOT",)),
        (r"a sign \"OPEN\" in red", ("OPEN",)),
        ("« OUVERT\u00a0» et «\u202fFERMÉ\u202f»", ("OUVERT", "FERMÉ")),
        ('a "\u200b" sign', ()),
    ],
)
def test_pairs_of_many_languages_and_apostrophes_beside_them(text: str, words: tuple[str, ...]) -> None:
    assert read_quotes(text) == Quotes(words)


@pytest.mark.parametrize(
    ("text", "words", "why"),
    [
        ("a sign „Geöffnet next to a sign “Open”", ("Open",), "„ has no partner in 'a sign „Geöffnet nex...'"),
        ('OPEN" and "PUSH"', ("PUSH",), "has no partner"),
        ('OPEN" and "PUSH', (), "has no partner"),
        ("OPEN » et « FERMÉ", (), "has no partner"),
        ('a sign “OPEN" in a window', (), "“ has no partner"),
        ("a sign 'OPEN’ in a window", (), "' has no partner"),
        ("a sign 'OPEN and a door 'PUSH'", ("PUSH",), "' has no partner"),
        ("a sign saying 'OPEN and the dogs' bowl", (), "' has no partner"),
        ("a sign 'THE DOGS' BOWL'", ("THE DOGS' BOWL",), "told apart in several ways"),
        ("'tis the season for dogs' coats", (), "told apart in several ways"),
        ('a sign "OPEN next to a 6" pipe', ("OPEN next to a 6",), "mean inches"),
        ("a poster “He said “GO” now” there", ("He said “GO” now",), "“ stands within “"),
        ('"OPEN“ next to „CLOSED" there', ("OPEN“ next to „CLOSED",), "“ has no partner"),
        ("\"A sign that says 'OPEN'\"", ("OPEN",), "taken for its own"),
        ('"A sign that says "OPEN" in red"', ("OPEN",), "taken for its own"),
        ('"A cat sits on a mat"', ("A cat sits on a mat",), "the whole text stands in quotes"),
        ('SALE 2024" and "NEW"', ("NEW",), "has no partner"),
        ("a sign reads ' OPEN ' here", (), "has no partner"),
        ('a sign ""OPEN"" here', (), 'there is nothing within ""'),
        ("a sign &quot;OPEN&quot; here", (), "&quot; stands for a quotation mark"),
        ("a door 'PUSH' and a sign &ldquo;OPEN&rdquo;", ("PUSH",), "&ldquo; stands for a quotation mark"),
    ],
)
def test_what_is_unclear_says_so(text: str, words: tuple[str, ...], why: str) -> None:
    assert quoted_words(text) == words
    assert why in read_quotes(text).unclear


MARKS = [
    "“”",
    "„“",
    "„”",
    "””",
    "«»",
    "»«",
    "‹›",
    "「」",
    "『』",
    "《》",
    '""',
    "''",
    "‘’",
    "‚‘",
    "’’",
    "``",
    "＂＂",
    "〝〟",
    "❝❞",
    "❛❜",
]
PLAIN = [pair for pair in MARKS if pair not in ("””", "»«")]  # of Latin scripts alone
SAID = ["SHUT", "Don't Stop", "HOT TEA", "Geöffnet", "営業中", "ОТКРЫТО", "No. 5", "l'été", "OPEN 24 HOURS!", "ÅBEN,"]
BETWEEN = [", ", " next to ", " and the dog's ", " on a 12 inch wall with ", " (red) and "]


def test_a_mark_that_is_left_out_or_is_another_never_makes_other_words() -> None:
    """At least not silently."""
    rng, unclear = random.Random(0), 0
    for _ in range(1500):
        said = rng.sample(SAID, 3)
        pairs = [rng.choice(MARKS if words.isascii() else PLAIN) for words in said]
        pieces = ["a sign "]
        for words, pair in zip(said, pairs, strict=True):
            pieces += [pair[0], words, pair[1], rng.choice(BETWEEN)]
        text = "".join(pieces) + "a tree"
        expected = tuple(words.strip(",") for words in said)
        assert read_quotes(text) == Quotes(expected), text
        place = rng.choice([1, 3, 5, 7, 9, 11])
        pieces[place] = rng.choice(["", *'"“”„‘«»「'])
        found = read_quotes("".join(pieces))
        assert found.unclear or set(found.strings) <= set(expected), "".join(pieces)
        unclear += bool(found.unclear)
    assert unclear > 1000


@pytest.mark.parametrize("mark", [*"'\"“„«`‘", "' ", "'a ", "s' ", '"a ', "'s x' ", "\\"])
def test_a_text_full_of_marks_takes_no_longer_than_a_blink(mark: str) -> None:
    """Not a power of their number: a test that hangs would be stopped."""
    assert isinstance(quoted_words(mark * 300), tuple)


def test_listed_words_are_clear() -> None:
    text = 'a sign "OPEN'
    assert Prompt(text).unclear_quotes
    assert not Prompt(text, words=("OPEN",)).unclear_quotes
    assert not Prompt('a sign "OPEN"').unclear_quotes
