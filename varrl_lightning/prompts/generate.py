"""Generates prompts that ask for text in an image, as many as a run needs, without a corpus.

    python -m varrl_lightning.prompts.generate --count 19200 --seed 0 --output prompts/train.jsonl
    python -m varrl_lightning.prompts.generate --count 400 --split test --output prompts/test.jsonl

A prompt is a scene of one of fourteen categories, in a style and a setting, with one to five texts on its surfaces. The texts are
composed from a vocabulary of common words, first names and numbers. A word's split depends on the word alone, so that splits never
share one, whatever their seeds and sizes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import random
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.prompts.sets import (
    apportion,
    check_shares,
    format_histograms,
    parse_shares,
    single_words,
    words_in,
    write_prompts,
)
from varrl_lightning.types import Prompt

Split = Literal["train", "validation", "test"]
ASSETS = Path(__file__).parent.parent / "assets" / "text_prompts"
PAPER_COUNT = 19200
"""Number of unique prompts in the paper's run: 1,200 updates of 16."""
SHARES: dict[int, float] = {1: 0.1, 2: 0.18, 3: 0.27, 4: 0.27, 5: 0.18}
"""One region in a tenth of the prompts, else Appendix C's profile."""
TENTHS: dict[Split, frozenset[int]] = {"train": frozenset(range(8)), "validation": frozenset({8}), "test": frozenset({9})}
PATTERNS = (
    ("nouns",),
    ("nouns",),
    ("names",),
    ("adjectives", "nouns"),
    ("adjectives", "nouns"),
    ("adjectives", "nouns"),
    ("nouns", "nouns"),
    ("names", "nouns"),
    ("verbs", "nouns"),
    ("nouns", "numbers"),
    ("adjectives", "nouns", "nouns"),
    ("verbs", "adjectives", "nouns"),
)
"""Kinds of words in one region's text; a pattern is as frequent as it is listed."""
CASES = (str.upper, str.upper, str.upper, str.title, str.title, str.lower)
QUOTES = (*(('"', '"'),) * 4, ("'", "'"), ("“", "”"))
ATTEMPTS = 200
"""Tries to find a new prompt before the vocabulary counts as exhausted."""
ENOUGH = 12
"""Least number of words of a kind: five regions, of which each takes two of a kind at most, never repeat one."""


def split_of(word: str) -> Split:
    """The split that a word or number belongs to: eight tenths train, one validation, one test; case does not matter."""
    tenth = int.from_bytes(hashlib.sha256(word.casefold().encode()).digest()[:8], "big") % 10
    return next(split for split, tenths in TENTHS.items() if tenth in tenths)


@functools.cache
def _asset(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ASSETS / name).read_text(encoding="utf-8"))
    return content


def vocabulary(split: str, exclude: Collection[str] = ()) -> dict[str, list[str]]:
    """Words of a split by kind (adjectives, nouns, verbs, names) and numbers from 10 to 999.

    Args:
        exclude: words that must not occur, whatever their case.
    """
    banned = {part for word in exclude for part in words_in(word)}
    kinds = {kind: words.split() for kind, words in _asset("vocabulary.yaml").items()}
    kinds["numbers"] = [str(number) for number in range(10, 1000)]
    return {
        kind: [word for word in words if split_of(word) == split and word.casefold() not in banned] for kind, words in kinds.items()
    }


def text_prompts(
    count: int = PAPER_COUNT,
    *,
    split: str = "train",
    seed: int = 0,
    shares: Mapping[int, float] = SHARES,
    exclude: Collection[str] = (),
) -> list[Prompt]:
    """Generate prompts of which no two ask for the same words; equal arguments give equal prompts on every platform.

    Args:
        count: how many, >= 1.
        split: train, validation or test; the words of two splits are disjoint, whatever the other arguments are.
        shares: of prompts by their number of text regions, 1 to 5; met exactly up to rounding.
        exclude: words that must not be asked for, for instance those of a benchmark.

    Raises:
        ValueError: on an argument out of its range, or when the words of the split do not suffice.
    """
    _check_arguments(count, split, shares)
    words = vocabulary(split, exclude)
    if short := [kind for kind, of_kind in words.items() if len(of_kind) < ENOUGH]:
        raise ValueError(f"without the excluded words, split {split!r} has fewer than {ENOUGH} {', '.join(short)} left")
    # A text seed is hashed by random itself, alike on every platform and version.
    rng = random.Random(f"{seed}, {split}")
    regions = [number for number, times in apportion(count, shares).items() for _ in range(times)]
    rng.shuffle(regions)
    used_texts: set[tuple[str, ...]] = set()
    return [_new_prompt(rng, words, number, f"{split}-{seed}-{index:05d}", used_texts) for index, number in enumerate(regions)]


def _check_arguments(count: int, split: str, shares: Mapping[int, float]) -> None:
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if split not in get_args(Split):
        raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    check_shares(shares)
    if not set(shares) <= set(range(1, 6)):
        raise ValueError(f"a prompt has 1 to 5 text regions, got shares for {sorted(shares)}")


def _new_prompt(
    rng: random.Random, words: Mapping[str, list[str]], regions: int, id_: str, used_texts: set[tuple[str, ...]]
) -> Prompt:
    for _ in range(ATTEMPTS):
        texts = _texts(rng, words, regions)
        key = tuple(text.casefold() for text in texts)
        if key not in used_texts:
            used_texts.add(key)
            category = rng.choice(sorted(_asset("scenes.yaml")["categories"]))
            return Prompt(_scene(rng, category, texts), id=id_, words=tuple(texts), category=category)
    raise ValueError(
        f"after {len(used_texts)} prompts there are hardly any new ones of {regions} regions in the words of this split; "
        "lower count, give another split, or ask for more regions"
    )


def _texts(rng: random.Random, words: Mapping[str, list[str]], regions: int) -> list[str]:
    """The texts of the regions; no word occurs twice, so that no text contains another."""
    used: set[str] = set()
    texts = []
    for _ in range(regions):
        phrase = []
        for kind in rng.choice(PATTERNS):
            word = rng.choice(words[kind])
            while word.casefold() in used:
                word = rng.choice(words[kind])
            used.add(word.casefold())
            phrase.append(word)
        texts.append(rng.choice(CASES)(" ".join(phrase)))
    return texts


def _scene(rng: random.Random, category: str, texts: Sequence[str]) -> str:
    scenes = _asset("scenes.yaml")
    place, surfaces = rng.choice(scenes["categories"][category]["places"]), scenes["categories"][category]["surfaces"]
    opening, closing = rng.choice(QUOTES)
    clauses = []
    for text, surface in zip(texts, rng.sample(surfaces, len(texts)), strict=True):
        clause = rng.choice(scenes["phrases"]).format(surface=surface, words=f"{opening}{text}{closing}")
        clauses.append(f"{clause}, {rng.choice(scenes['letterings'])}" if rng.random() < 0.7 else clause)
    head = f"{rng.choice(scenes['styles'])} of {place}"
    if rng.random() < 0.8:
        head += f", {rng.choice(scenes['settings'])}"
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in (head, *clauses))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m varrl_lightning.prompts.generate`; return exit status 0, or 1 after printing the reason."""
    parser = argparse.ArgumentParser(
        prog="python -m varrl_lightning.prompts.generate",
        description="Write a file of unique prompts that ask for text in an image.",
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSONL; an existing file is replaced")
    parser.add_argument("--count", type=int, default=PAPER_COUNT, help="default: %(default)s, as in the paper's run")
    parser.add_argument(
        "--split", choices=get_args(Split), default="train", help="split whose words are used; splits share none (default: train)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--regions", metavar="SHARES", help="shares by number of text regions, such as 2:.2,3:.3,4:.3,5:.2")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="FILE", help="prompt files whose words must not occur")
    options = parser.parse_args(arguments)
    try:
        exclude = {word for path in options.exclude for word in single_words(load_prompts(path))}
        shares = parse_shares(options.regions) if options.regions else SHARES
        prompts = text_prompts(options.count, split=options.split, seed=options.seed, shares=shares, exclude=exclude)
        write_prompts(options.output, prompts)
    except (ValueError, OSError) as error:
        print(f"text_prompts: {error}", file=sys.stderr)
        return 1
    print(format_histograms({options.output: prompts}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
