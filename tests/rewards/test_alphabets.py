"""Words that a reader can never read are named before training, with the characters that it does not know."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from varrl_lightning.rewards.alphabets import alphabet_of, unreadable_words
from varrl_lightning.rewards.flow_grpo_ocr import FlowGRPOOCR
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine, Word
from varrl_lightning.rewards.tesseract import TesseractEngine, characters_of
from varrl_lightning.types import Prompt


class Mute:
    """An engine that does not say what it can write."""

    detect = True

    def read(self, images: Sequence[Any]) -> list[list[Word]]:
        return [[] for _ in images]


class Says(Mute):
    def __init__(self, characters: Collection[str] | None) -> None:
        self.characters = characters

    def alphabet(self) -> Collection[str] | None:
        return self.characters


@pytest.fixture(scope="module")
def rapidocr() -> RapidOCREngine:
    return RapidOCREngine(detect=False, threads=1)


@pytest.mark.parametrize(
    ("word", "lacking"),
    [
        ("ОТКРЫТО", "ОТКРЫ"),
        ("открыто", "откры"),
        ("영업 중", "영업중"),
        ("שלום", "שלום"),
        ("مفتوح", "مفتوح"),
        ("खुला", "खुला"),
        ("เปิด", "เปิด"),
        ("OPEN ДО 5", "ДО"),
        ("¡Olé! Καλημέρα", "¡έ"),
    ],
)
def test_scripts_that_rapidocr_does_not_know_are_named(rapidocr: RapidOCREngine, word: str, lacking: str) -> None:
    prompts = [Prompt('a sign "OPEN"'), Prompt(f'a sign "{word}"')]
    for reward in (OCRReward(engine=rapidocr), FlowGRPOOCR(engine=rapidocr)):
        with pytest.warns(UserWarning, match="it rewards look-alikes") as caught:
            reward.check_prompts(prompts)
        assert len(caught) == 1
        message = str(caught[0].message)
        assert "1 of 2 prompts" in message
        assert repr(prompts[1].id) in message
        assert repr(lacking[0]) in message
        assert f"U+{ord(lacking[0]):04X}" in message
        assert reward.unreadable(["OPEN", word]) == {word: lacking}


def test_scripts_that_rapidocr_knows_are_not(rapidocr: RapidOCREngine) -> None:
    known = [
        "OPEN",
        "Straße",
        "cafe\u0301",
        "ΚΑΦΕ",
        "ＯＰＥＮ",
        "ﬁsh",
        "営業中",
        "コーヒー",
        "50%",
        "tea & toast",
        "Olé!",
        "Łódź",
    ]
    prompts = [Prompt("a sign", words=(word,)) for word in known]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OCRReward(engine=rapidocr).check_prompts(prompts)
        FlowGRPOOCR(engine=rapidocr).check_prompts(prompts)


def test_many_are_counted_and_the_first_are_shown(rapidocr: RapidOCREngine) -> None:
    prompts = [Prompt("a sign", id=f"sign {i}", words=(f"дом{i}",)) for i in range(30)] + [Prompt('"OK"')] * 10
    with pytest.warns(UserWarning, match=r"30 of 40 prompts: 'sign 0' \('дом0'\), .*'sign 4' \('дом4'\) and 25 more\."):
        OCRReward(engine=rapidocr).check_prompts(prompts)


def test_characters_count_as_the_reward_compares_them() -> None:
    assert unreadable_words(Says("open"), ["OPEN", "Ｏｐｅｎ", "opera"]) == {"opera": "ra"}
    assert unreadable_words(Says("OPEN"), ["open"], "lower") == {}
    assert unreadable_words(Says("OPEN"), ["open"], "keep") == {"open": "open"}
    assert unreadable_words(Says(["ﬁ", "S", "H"]), ["fish", "hot fish"]) == {"hot fish": "ot"}


def test_a_character_that_only_the_other_reward_looks_for_is_no_matter() -> None:
    """Flow-GRPO's looks for the first string alone."""
    prompts = [Prompt("a sign", words=("open", "xyz"))] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowGRPOOCR(engine=Says("open")).check_prompts(prompts)
    with pytest.warns(UserWarning, match="'x' .* in 2 of 2 prompts"):
        OCRReward(engine=Says("open")).check_prompts(prompts)


@pytest.mark.parametrize("engine", [Mute(), Says(None)])
def test_an_engine_need_not_say(engine: OCREngine) -> None:
    assert isinstance(engine, OCREngine)
    assert alphabet_of(engine) is None
    OCRReward(engine=engine).check_prompts([Prompt('"ОТКРЫТО"')])


def test_an_alphabet_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"alphabet\(\) of Says must give characters"):
        alphabet_of(Says([1, 2]))  # type: ignore[list-item]


def language(path: Path, unicharset: bytes | None, part: int = 21) -> Path:
    """A language's data as Tesseract writes them: 24 parts, one of which is the list of characters."""
    listed = {part: unicharset, 0: b"a configuration"} if unicharset is not None else {0: b"a configuration"}
    offsets, data, at = [-1] * 24, b"", 4 + 8 * 24
    for place, content in sorted(listed.items()):
        offsets[place] = at + len(data)
        data += content or b""
    path.write_bytes(struct.pack("<i24q", 24, *offsets) + data)
    return path


UNICHARSET = "\n".join(
    [
        "6",
        "NULL 0 Common 0",
        "Joined 7 0,255,0,255,0,0,0,0,0,0 Latin 1 0 1 Joined\t# Joined [4a 6f 69 6e 65 64 ]a",
        "|Broken|0|1 f 0,255,0,255,0,0,0,0,0,0 Common 2 10 2 |Broken|0|1\t# Broken",
        "C 5 0,255,0,255,0,0,0,0,0,0 Latin 87 0 3 C\t# C [43 ]A",
        "é 3 0,255,0,255,0,0,0,0,0,0 Latin 5 2 4 é\t# é [e9 ]a",
        "# 10 0,255,0,255,0,0,0,0,0,0 Common 6 4 5 #\t# # [23 ]p",
        "",
    ]
).encode()


def test_tesseracts_alphabet_is_in_its_data(tmp_path: Path) -> None:
    pytest.importorskip("tesserocr")
    assert characters_of(language(tmp_path / "old.traineddata", UNICHARSET, part=1)) == frozenset("Cé#")
    language(tmp_path / "eng.traineddata", UNICHARSET)
    language(tmp_path / "two.traineddata", b"1\n\xc3\x9f 3 0 Latin\n")
    assert TesseractEngine(lang="eng", tessdata=tmp_path).alphabet() == frozenset("Cé#")
    assert TesseractEngine(lang="eng+two", tessdata=tmp_path).alphabet() == frozenset("Cé#ß")
    language(tmp_path / "none.traineddata", None)
    assert TesseractEngine(lang="eng+none", tessdata=tmp_path).alphabet() is None
