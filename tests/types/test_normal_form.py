"""The one form in which texts are compared, over scripts, accents, marks and invisible characters."""

from __future__ import annotations

import doctest
import random
import unicodedata

import pytest

from varrl_lightning.types import normal_form as module
from varrl_lightning.types.normal_form import IGNORABLE, normal_form, normal_words

ALIKE = [
    ("CAFE\u0301", "café"),
    ("ＯＰＥＮ\u3000１２", "open 12"),
    ("ﬁsh", "fish"),
    ("DON’T", "don't"),
    ("DON‘T", "don't"),
    ("DONʼT", "don't"),
    ("DON＇T", "don't"),
    ("DON`T", "don't"),
    ("DON´T", "don't"),
    ("DON \u0301T", "don't"),  # what NFKC alone makes of the last
    ("5′ 10″", "5' 10\""),
    ("5′ 10′′", "5' 10\""),
    ("“HI” „HI‟ ＂HI＂", '"hi" "hi" "hi"'),
    ("A–B—C‐D‑E−F－G﹣H", "a-b-c-d-e-f-g-h"),
    ("I ❤\ufe0f NY", "i ❤ ny"),
    ("葛\U000e0100飾", "葛飾"),
    ("SUPER\u00admarket", "supermarket"),
    ("\u200fפתוח\u200e", "פתוח"),
    ("zero\u200bwidth\u2060here\ufeff", "zerowidthhere"),
    ("e\u200d\u0301", "é"),  # dropped from between a letter and its accent
    ("½ CUP", "1/2 cup"),
    ("1⁄2", "1/2"),
    ("ACME™ No…", "acmetm no..."),
    ("H₂O 10²", "h2o 102"),
    ("ΟΔΌΣ", "οδόσ"),
    ("οδός", "οδόσ"),
    ("STRAẞE", "straße"),
    ("ИИ\u0306", "ий"),
]


@pytest.mark.parametrize(("text", "expected"), ALIKE)
def test_forms_of_one_text(text: str, expected: str) -> None:
    assert normal_form(text) == expected


def test_what_stays_different() -> None:
    for one, other in [("ß", "ss"), ("İ", "I"), ("ı", "I"), ("é", "e"), ("Щ", "Ш"), ("ー", "-"), ("«A»", '"A"'), ("1", "l")]:
        assert normal_form(one) != normal_form(other)
    assert normal_form("Open", case="keep") == "Open"


def test_every_character_alone_and_beside_others() -> None:
    """Whatever an engine has done to a text already: NFKC, NFD, its case, or all of this."""
    draw = random.Random(0)
    characters = [chr(code) for code in range(0x3400) if not 0xD800 <= code < 0xE000]
    characters += [chr(code) for code in range(0xF900, 0x1F000, 3) if unicodedata.category(chr(code)) != "Cn"]
    for character in characters:
        for text in (character, f"a{character}b", f"e{character}\u0301", character + draw.choice(characters)):
            form = normal_form(text)
            assert normal_form(form) == form
            assert normal_form(unicodedata.normalize("NFKC", text)) == form
            assert normal_form(unicodedata.normalize("NFD", text)) == form
            assert normal_form(normal_form(text, "keep")) == form


def test_the_invisible_characters_are_unicodes() -> None:
    """All format characters but those that are seen or stand for something: numbers, Syriac, Kaithi, hieroglyphs, notes' lines."""
    seen = {*map(chr, range(0x600, 0x606)), *"\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd", *"\ufff9\ufffa\ufffb"}
    seen |= set(map(chr, range(0x13430, 0x13460)))
    formats = {chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Cf"}
    assert formats - IGNORABLE == formats & seen
    assert {unicodedata.category(c) for c in IGNORABLE} == {"Cf", "Mn", "Lo", "Cn"}
    assert not any(c.isspace() for c in IGNORABLE)


def test_words_are_split_after_normalising() -> None:
    assert normal_words(["Hot\u00a0Tea", "\u200b", "a\u2028b"]) == ["hot", "tea", "a", "b"]
    assert len(normal_words(["ﷺ"])) == 4


def test_the_examples() -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
