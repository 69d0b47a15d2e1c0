"""Which characters of the wanted words a reader can never write, and the warning that names them."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import Case, normal_form

_SHOWN = 5


@runtime_checkable
class SaysAlphabet(Protocol):
    """What an OCR engine may have beside the members of `OCREngine`: the characters that it can write."""

    def alphabet(self) -> Collection[str] | None:
        """All characters that it can write, in any order; None where it cannot say."""
        ...


def alphabet_of(engine: object) -> frozenset[str] | None:
    """The characters that an engine can write, and strings of several that it writes at once; None where it does not say.

    Raises:
        TypeError: when its `alphabet` does not give strings.
    """
    given = engine.alphabet() if isinstance(engine, SaysAlphabet) else None
    if given is None:
        return None
    if not all(isinstance(entry, str) for entry in given):
        raise TypeError(f"alphabet() of {type(engine).__name__} must give characters, got {type(given).__name__} of other things")
    # One that stays the same object is hashed once: a service asks for each prompt of each request.
    return given if isinstance(given, frozenset) else frozenset(given)


def unreadable_words(engine: object, words: Iterable[str], case: Case = "lower") -> dict[str, str]:
    """Those of these words that hold characters which the engine cannot write, each with these characters.

    A character counts as written if the reward takes it for one of the alphabet, that is, in their `normal_form`.
    """
    alphabet = alphabet_of(engine)
    if alphabet is None:
        return {}
    known = _compared_alphabet(alphabet, case)
    lacking = {
        word: "".join(c for c in dict.fromkeys(normal_form(word, "keep")) if not known.issuperset(_compared(c, case)))
        for word in words
    }
    return {word: characters for word, characters in lacking.items() if characters}


@lru_cache(maxsize=8)
def _compared_alphabet(alphabet: frozenset[str], case: Case) -> frozenset[str]:
    """All characters that the entries of an alphabet are compared as."""
    return frozenset(part for entry in alphabet for part in _compared(entry, case))


def _compared(character: str, case: Case) -> str:
    """A character, or an entry of an alphabet, as it is compared; nothing for a space, which separates words."""
    return "".join(normal_form(character, case).split())


def warn_of_unreadable(
    prompts: Sequence[Prompt],
    wanted: Callable[[Prompt], Sequence[str]],
    unreadable: Callable[[Iterable[str]], Mapping[str, str]],
    engine: object,
) -> None:
    """Warn of prompts with words that the reader can never read; names characters, words and prompts, the first of each.

    Args:
        wanted: the strings of a prompt that are looked for.
        unreadable: gives the unreadable ones among some strings, with the characters; see `Reward.unreadable`.
    """
    lacking = unreadable(dict.fromkeys(text for prompt in prompts for text in wanted(prompt)))
    if not lacking:
        return
    hit = [(prompt.id, [text for text in wanted(prompt) if text in lacking]) for prompt in prompts]
    named = [f"{identity!r} ({', '.join(map(repr, texts))})" for identity, texts in hit if texts]
    characters = [_named(character) for character in dict.fromkeys("".join(lacking.values()))]
    warnings.warn(
        f"the reader ({type(engine).__name__}) cannot write {len(characters)} of the characters that prompts ask for: "
        f"{_first(characters)}. It can never read them in {len(named)} of {len(prompts)} prompts: {_first(named)}. There the "
        "reward stays below its maximum however good the image is, and it rewards look-alikes. Choose a reader that knows them, "
        "or leave these prompts out.",
        stacklevel=3,
    )


def _named(character: str) -> str:
    return f"{character!r} (U+{ord(character):04X}, {unicodedata.name(character, 'without a name')})"


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else "")
