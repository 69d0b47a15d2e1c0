"""Finds what a text encoder cuts off, and which words to be written fall off with it."""

from __future__ import annotations

import bisect
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CutPrompts = Literal["error", "warn"]
"""What to do about words that fall off an encoder."""
AT_ONCE = 4096
"""Texts that are tokenised at one time."""
_MARGIN = 8
"""Tokens that a text may have beyond those of its words; tokenizers split at spaces, so that there is hardly one."""
SHOWN = 3
"""Texts that a message names."""
_END = 30
"""Characters that a message shows before a cut."""
_QUOTES = "\"'`´“”„‟‘’‚‛«»‹›「」『』《》〈〉＂＇"


@dataclass(frozen=True)
class Cut:
    """A text that an encoder cuts off.

    Args:
        name: of the text, for messages.
        kept: what the encoder reads of it.
        lost: the words to be written that fall off.
    """

    name: str
    kept: str
    lost: tuple[str, ...] = ()


def kept_texts(
    tokenizer: Any,
    texts: Iterable[str],
    max_tokens: int,
    *,
    special: int | None = None,
    encode: Callable[[str], Sequence[int]] | None = None,
) -> dict[str, str]:
    """What is left of those texts of which a tokenizer makes more than `max_tokens`; texts that fit are not in it.

    A character counts as read if all its tokens are. Each different text is looked at once.

    Args:
        tokenizer: of transformers; one that knows no places of its tokens is asked for those of ever closer beginnings.
        max_tokens: with the special tokens.
        special: how many special tokens a cut text keeps; what the tokenizer adds when None.
        encode: gives a text's tokens with the special ones, for a tokenizer that knows no places; its `encode` when None.
    """
    texts = dict.fromkeys(texts)
    if not getattr(tokenizer, "is_fast", False):
        encode = encode or tokenizer.encode
        return {text: _fitting(text, encode, max_tokens) for text in texts if len(encode(text)) > max_tokens}
    room = max_tokens - (tokenizer.num_special_tokens_to_add() if special is None else special)
    # Tokenising 100,000 texts takes half a minute. There are no more tokens than plain letters, and one before them.
    unsure = [text for text in texts if len(text) >= room or not text.isascii()]
    unsure = [text for text, most in zip(unsure, _at_most(tokenizer, unsure), strict=True) if most > room]
    long = [text for text, length in zip(unsure, _lengths(tokenizer, unsure), strict=True) if length > room]
    places = [place for part in _parts(long) for place in _encoded(tokenizer, part, return_offsets_mapping=True).offset_mapping]
    of_left = getattr(tokenizer, "truncation_side", "right") == "left"
    return {
        text: text[offsets[-room - 1][1] :] if of_left else text[: offsets[room][0]]
        for text, offsets in zip(long, places, strict=True)
    }


def _at_most(tokenizer: Any, texts: list[str]) -> list[int]:
    """A number that each text's tokens do not exceed: those of its words, of which each different one is tokenised once."""
    words = list(dict.fromkeys(word for text in texts for word in text.split()))
    of_word = dict(zip(words, _lengths(tokenizer, words), strict=True))
    return [sum(of_word[word] for word in text.split()) + _MARGIN + text.count("\n") + text.count("  ") for text in texts]


def _lengths(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(ids) for part in _parts(texts) for ids in _encoded(tokenizer, part).input_ids]


def _parts(texts: list[str]) -> Iterator[list[str]]:
    return (texts[first : first + AT_ONCE] for first in range(0, len(texts), AT_ONCE))


def _encoded(tokenizer: Any, texts: list[str], **options: bool) -> Any:
    settings = {"truncation": False, "padding": False, "return_attention_mask": False, "verbose": False}
    return tokenizer(texts, add_special_tokens=False, **settings, **options)


def _fitting(text: str, encode: Callable[[str], Sequence[int]], max_tokens: int) -> str:
    """The longest beginning of a text that fits."""
    return text[: bisect.bisect_right(range(len(text)), max_tokens, key=lambda end: len(encode(text[: end + 1])))]


def lost_words(text: str, kept: str, words: Sequence[str]) -> tuple[str, ...]:
    """The words of which fewer are in what is kept of a text than are asked for.

    Where a word stands between quotation marks, only these places count: `an open door, a sign "OPEN"` asks for the last.
    """
    first = 0 if text.startswith(kept) else len(text) - len(kept)
    lost = []
    for word in dict.fromkeys(words):
        ends = [first <= start and end <= first + len(kept) for start, end in _places(text, word)]
        inside, anywhere = (
            (sum(ends), len(ends)) if ends else (_normal(kept).count(_normal(word)), _normal(text).count(_normal(word)))
        )
        if inside < min(words.count(word), anywhere):
            lost.append(word)
    return tuple(lost)


def _places(text: str, word: str) -> list[tuple[int, int]]:
    """Where a word stands: between quotation marks, else as a whole word, else within others."""
    literal = r"\s+".join(map(re.escape, word.split()))
    if not literal:
        return []
    marks = f"[{re.escape(_QUOTES)}]"
    for pattern in (rf"(?<={marks}){literal}|{literal}(?=[,.!?，]?{marks})", rf"(?<!\w){literal}(?!\w)", literal):
        if found := [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]:
            return found
    return []


def _normal(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def report_cuts(cuts: Sequence[Cut], encoder: str, texts: int, cut_prompts: CutPrompts, instead: str) -> None:
    """Say which texts an encoder cuts off.

    Args:
        cuts: the cut ones.
        encoder: what cuts them.
        texts: how many were looked at.
        cut_prompts: whether words that fall off are an error.
        instead: what to do, beside shortening the texts.

    Raises:
        ValueError: where words fall off, unless `cut_prompts` is `warn`; names texts and words.
    """
    losing = [cut for cut in cuts if cut.lost]
    if losing:
        message = (
            f"{encoder} cuts off {len(cuts)} of {texts} texts, and with them words to be written of {len(losing)}: "
            f"{_shown(losing)}. Shorten them, put the words first, or {instead}"
        )
        if cut_prompts == "error":
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)
    elif cuts:
        warnings.warn(
            f"{encoder} cuts off {len(cuts)} of {texts} texts; no word to be written is lost: {_shown(cuts)}", stacklevel=4
        )


def _shown(cuts: Sequence[Cut]) -> str:
    shown = []
    for cut in cuts[:SHOWN]:
        loses = f"loses {', '.join(map(repr, cut.lost))} and " if cut.lost else ""
        shown.append(f"{cut.name} {loses}is read up to {'...' * (len(cut.kept) > _END) + cut.kept[-_END:]!r}")
    return "; ".join(shown) + (f"; and {len(cuts) - SHOWN} more" if len(cuts) > SHOWN else "")


def cut_prompt(name: str, text: str, words: Sequence[str], kept: Mapping[str, str]) -> Cut:
    """The cut of one text, of those that are in `kept`."""
    return Cut(name, kept[text], lost_words(text, kept[text], words))
