"""What a text encoder reads of a text, against what transformers' own truncation leaves of its tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_encoders import write_clip, write_t5

from varrl_lightning.text_encoders import ClipPair, EncodedTexts, T5Text
from varrl_lightning.text_encoders.cuts import kept_texts, lost_words
from varrl_lightning.types import quoted_words

LETTERS = "abc  catthe\"  é日ﬁ　\U0001f600\n'"
LONG = "a photo of " + "very " * 100 + 'a sign "OPEN"'


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5Text:
    return T5Text.from_pretrained(write_t5(tmp_path_factory.mktemp("t5")), max_tokens=12)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipPair:
    pads = ("<|endoftext|>", "!")
    folders = [write_clip(tmp_path_factory.mktemp("clip"), 16, seed=i, pad=pad, merged=i == 0) for i, pad in enumerate(pads)]
    return ClipPair.from_pretrained(*folders)


class Slow:
    """A tokenizer that knows no places."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode = tokenizer.encode


@pytest.mark.parametrize("which", ["t5", "clip"])
def test_what_is_kept_is_what_truncation_leaves(t5: T5Text, clip: ClipPair, which: str) -> None:
    """The kept part and one character more have the tokens that are left, and more than fit."""
    tokenizer, limit = (t5.tokenizer, 12) if which == "t5" else (clip.tokenizers[0], 14)
    rng = random.Random(0)
    texts = ["".join(rng.choices(LETTERS, k=rng.randint(1, 40))) for _ in range(300)]
    kept, slowly = kept_texts(tokenizer, texts, limit), kept_texts(Slow(tokenizer), texts, limit)
    assert 50 < len(kept) < 250
    for text in texts:
        whole = tokenizer(text, verbose=False)["input_ids"]
        assert (len(whole) > limit) == (text in kept) == (text in slowly)
        if text in kept:
            left = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
            assert text.startswith(kept[text])
            end = max(end for _, end in left["offset_mapping"])  # in the midst of a character its end is that of the character
            assert len(kept[text].rstrip()) <= end <= len(kept[text]) + 1
            assert abs(len(slowly[text].strip()) - len(kept[text].strip())) <= 1


def test_texts_that_are_cut_on_the_left(t5: T5Text) -> None:
    tokenizer = t5.tokenizer.__class__(tokenizer_object=t5.tokenizer.backend_tokenizer, truncation_side="left", eos_token="</s>")
    text = "the cat the cat the cat xyz"
    kept = kept_texts(tokenizer, [text], 5)[text]
    assert (kept, lost_words(text, kept, ["xyz"]), lost_words(text, kept, ["the cat"])) == (" xyz", (), ("the cat",))


@pytest.mark.parametrize(
    ("text", "kept", "words", "lost"),
    [
        ('an open door, a sign "OPEN"', "an open door, a sign ", None, ("OPEN",)),  # the first is not asked for
        ('a sign "OPEN" and "SHUT"', 'a sign "OPEN', None, ("SHUT",)),
        ('a sign "OPEN" and "SHUT"', 'a sign "OPE', None, ("OPEN", "SHUT")),
        ('"HOT  TEA" here', '"HOT  TE', None, ("HOT  TEA",)),
        ('"HOT" over "HOT"', '"HOT" over', ("HOT",), ()),
        ('"HOT" over "HOT"', '"HOT" over', ("HOT", "HOT"), ("HOT",)),
        ("the words OPEN LATE on a wall", "the words OPEN", ("OPEN LATE",), ("OPEN LATE",)),
        ("shopping at a SHOP", "shopping at", ("SHOP",), ("SHOP",)),
        ("写着「营业中」的招牌", "写着「营业", ("营业中",), ("营业中",)),
        ("the word CAFE\u0301 on a cup", "the word ", ("CAF\u00c9",), ("CAF\u00c9",)),
        ("the word CAFE\u0301 on a cup", "the word CAFE\u0301 on", ("CAF\u00c9",), ()),
        ("a cat", "a", ("DOG",), ()),  # no encoder ever had it
    ],
)
def test_words_that_fall_off(text: str, kept: str, words: tuple[str, ...] | None, lost: tuple[str, ...]) -> None:
    assert lost_words(text, kept, quoted_words(text) if words is None else words) == lost


def test_both_encoders_of_a_pair_count(clip: ClipPair) -> None:
    """The second has no merges: it reads a cat letter by letter, the first in one token."""
    text = "cat " * 40 + '"OPEN"'
    assert kept_texts(clip.tokenizers[0], [text], 77) == {}
    assert clip.kept_texts([text, "a cat"]) == {text: "cat " * 25}


def test_a_file_of_encoded_texts_tells_what_was_cut(t5: T5Text, tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    with pytest.raises(
        ValueError, match=r"T5Text cuts off 1 of 2 texts.*'a photo of very.*\.\.\.' loses 'OPEN'.*cut_prompts='warn'"
    ):
        EncodedTexts.save(t5, ["the cat", LONG], path)
    assert not path.exists()
    with pytest.warns(UserWarning, match="loses 'OPEN'"):
        EncodedTexts.save(t5, ["the cat", LONG], path, cut_prompts="warn")
    with pytest.warns(UserWarning, match="T5Text cuts off 1 of 1 texts; no word to be written is lost"):
        EncodedTexts.save(t5, ["x" * 20], tmp_path / "plain.safetensors")
    assert EncodedTexts(path).kept_texts([LONG, "the cat"]) == t5.kept_texts([LONG])


def test_a_mapping_tells_no_cut() -> None:
    row = {"text": torch.zeros(1, 2), "mask": torch.ones(1, dtype=torch.bool)}
    assert EncodedTexts({LONG: row}).kept_texts([LONG]) == {}
