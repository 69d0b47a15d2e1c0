"""Writes the prompts that the recipes name: `python examples/prompts/make_prompts.py`.

`lettering/`: signs with one to three words, for the embedded model, from the words in `lettering/*.txt` here; those of
`pretraining` were rendered to teach it, those of the other splits never. `signs/`: text to be
rendered, in quotes. `imagenet/`: a class each, for taste; `imagenet/text_*`: classes with lettering, for text.
Words, and where there are none classes, are in one split only. The files are the same each time: what is drawn by lot is seeded.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from varrl_lightning.policies.lettering_sign import COLOURS, LINES, MATERIALS, WIDTH
from varrl_lightning.pretraining.rendering import LINE_HEIGHT

ASSETS = Path(__file__).parents[2] / "varrl_lightning" / "assets"
PLACES = (
    "a neon sign above a diner at night that reads {}",
    "a wooden signpost at a fork of a forest path, carved with {}",
    "a chalkboard outside a cafe with {} written in white chalk",
    "a vintage travel poster with {} in bold letters at the top",
    "a cardboard box on a doorstep, stamped {}",
    "a storefront window with {} painted in gold",
    "a birthday cake with {} written in red icing",
    "the cover of an old leather book, titled {}",
    "a street mural in bright colours that spells {}",
    "an enamel mug on a camping table, printed with {}",
    "a lighthouse by the sea with {} painted along its tower",
    "a knitted scarf with {} worked into the wool",
    "a railway station clock, and under it the name {}",
    "a hot air balloon over hills, with {} across its envelope",
    "a robot holding up a board that says {}",
    "a market stall under an awning lettered {}",
)
VOCABULARY = """
open closed welcome bakery coffee garden library museum harbor station bridge castle forest river mountain valley island
desert ocean meadow orchard winter summer autumn spring morning evening midnight sunrise sunset thunder rainbow shadow
silver golden copper crystal velvet marble cotton paper candle lantern mirror window ladder hammer anchor compass
engine rocket planet comet galaxy orbit signal beacon voyage journey harvest festival carnival parade concert theater
gallery studio market corner avenue village city palace temple cottage cabin tavern kitchen pantry cellar attic
lemon cherry orange apple honey butter pepper ginger vanilla cinnamon chocolate caramel pretzel biscuit noodle dumpling
falcon sparrow raven eagle swan heron otter badger rabbit tiger panther dragon phoenix unicorn whale dolphin
violin trumpet piano guitar rhythm melody harmony chorus ballad sonnet story legend riddle puzzle secret whisper
freedom courage wisdom justice honor victory mercy wonder magic fortune destiny future memory promise friend stranger
captain sailor pilot doctor teacher artist baker farmer hunter knight wizard princess emperor pirate detective inventor
tomorrow yesterday forever always never maybe hello goodbye thanks please enter exit danger caution slowly quickly
"""
SHARES = {"validation": 1, "test": 2}
"""Of every eight words the second goes to validation, the third to test, the others to training."""
LETTERED = ("street sign", "menu", "comic book", "book jacket", "web site", "scoreboard", "packet", "crossword puzzle")
LETTERING = {"pretraining": ("train", 1), "train": ("unseen", 3), "validation": ("validation", 3), "test": ("test", 1)}
"""Splits of the embedded model's words: the name in their seed, and the signs that are made for each word."""


def lettering(words: Sequence[str], seed: str, signs_each: int) -> Iterator[dict[str, Any]]:
    """Each word first on so many signs, in turn alone, with one more and with two; colour and material are named in half."""
    rng = random.Random(f"signs {seed}")
    order = list(words)
    rng.shuffle(order)
    asked: set[frozenset[str]] = set()
    for number in range(signs_each * len(order)):
        # Each round begins one further, so that a word that was alone comes with one more next, and then with two.
        turn, place = divmod(number, len(order))
        count = 1 + (place + turn) % 3
        said = with_others(order[place], count, words, rng)
        while frozenset(said) in asked:
            said = with_others(order[place], count, words, rng)
        asked.add(frozenset(said))
        rng.shuffle(said)
        # Each is left open as often as it is named.
        style = " ".join(filter(None, (rng.choice((*named, *(None,) * len(named))) for named in (tuple(COLOURS), MATERIALS))))
        sign = f"{'an' if style.startswith('o') else 'a'} {style} sign".replace("  ", " ")
        yield {
            "id": "-".join(said).lower(),
            "text": f'{sign} that says "{" ".join(said)}"',
            "words": said,
            "regions": [[0, line * LINE_HEIGHT, WIDTH, (line + 1) * LINE_HEIGHT] for line in range(LINES)],
            "category": ("1 word", "2 words", "3 words")[count - 1],
        }


def with_others(first: str, count: int, words: Sequence[str], rng: random.Random) -> list[str]:
    said = [first]
    while len(said) < count:
        if (other := rng.choice(words)) not in said:
            said.append(other)
    return said


def split_of(position: int) -> str:
    return next((split for split, place in SHARES.items() if position % 8 == place), "train")


def by_split(words: Sequence[str], split: str) -> list[str]:
    return [word for position, word in enumerate(words) if split_of(position) == split]


def signs(split: str) -> Iterator[dict[str, Any]]:
    """One, two or three words in every place."""
    words = cycle(word.upper() for word in by_split(VOCABULARY.split(), split))
    for number in range({"train": 384, "validation": 48, "test": 96}[split]):
        asked = " ".join(islice(words, 1 + number % 3))
        text = PLACES[(number * 5) % len(PLACES)].format(f'"{asked}"')
        yield {"text": text, "id": f"{split}-{number}", "category": ("1 word", "2 words", "3 words")[number % 3]}


def classes(names: Sequence[str], split: str) -> Iterator[dict[str, Any]]:
    """A photograph of each class; not of the two that have one name but for its capital, a dog and a garment."""
    lower = [name.lower() for name in names]
    for label, name in enumerate(names):
        if split_of(label) == split and lower.count(name.lower()) == 1:
            yield {"text": f"a photo of a {name}", "id": name, "label": label}


def lettered_classes(names: Sequence[str], split: str) -> Iterator[dict[str, Any]]:
    """Words in the classes that have lettering: what a class-conditional model can be asked for at most."""
    for number, word in enumerate(by_split(VOCABULARY.split(), split)):
        name = LETTERED[number % len(LETTERED)]
        yield {"text": f'a photo of a {name} with "{word.upper()}"', "id": word, "label": names.index(name), "category": name}


def main() -> None:
    for split, (seed, signs_each) in LETTERING.items():
        words = (Path(__file__).parent / "lettering" / f"{split}.txt").read_text().split()
        write(ASSETS / "lettering" / f"{split}.jsonl", lettering(words, seed, signs_each))
    names = (ASSETS / "imagenet" / "classes.txt").read_text().splitlines()
    for split in ("train", *SHARES):
        write(ASSETS / "signs" / f"{split}.jsonl", signs(split))
        write(ASSETS / "imagenet" / f"{split}.jsonl", classes(names, split))
        write(ASSETS / "imagenet" / f"text_{split}.jsonl", lettered_classes(names, split))


def write(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
