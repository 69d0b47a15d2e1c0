"""Prompt sets: writes them, counts their text regions, filters them to a distribution, and checks that two share no prompt.

python -m varrl_lightning.prompts.sets histogram prompts.jsonl
python -m varrl_lightning.prompts.sets filter prompts.jsonl --output filtered.jsonl
python -m varrl_lightning.prompts.sets disjoint train.jsonl test.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from varrl_lightning.prompts.files import OverlapError, check_disjoint, load_prompts
from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import normal_form
from varrl_lightning.types.quoting import quoted_words, read_quotes

APPENDIX_C: dict[int, float] = {2: 0.2, 3: 0.3, 4: 0.3, 5: 0.2}
"""Shares of prompts by number of regions: in the paper's evaluation, and in its filtered training set."""
BINS = ("0", "1", "2", "3", "4", "5", ">5")
"""The bins of Figure 8, and one for prompts that ask for no text."""
BAR = 40
"""Characters of the longest bar."""


def prompt_line(prompt: Prompt) -> dict[str, Any]:
    """The JSON object of a prompt, without the values that `Prompt.from_mapping` fills in."""
    line = {key: value for key, value in asdict(prompt).items() if value not in (None, (), "", {})}
    if prompt.regions:
        line["regions"] = [[box.x0, box.y0, box.x1, box.y1] for box in prompt.regions]
    quotes = read_quotes(prompt.text)
    # Where quotes are unclear, listing the words makes them clear, even if they are the same.
    defaults = {"id": prompt.text, "words": () if quotes.unclear != prompt.unclear_quotes else quotes.strings}
    return {key: value for key, value in line.items() if defaults.get(key) != value}


def write_prompts(path: str | Path, prompts: Sequence[Prompt]) -> None:
    """Write a prompt file, one JSON object a line; folders are made, an existing file is replaced."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prompt_line(prompt), ensure_ascii=False) for prompt in prompts]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def region_count(prompt: Prompt) -> int:
    """The number of regions in which a prompt asks for text: its boxes, or else its quoted strings, or else its words."""
    return len(prompt.regions or quoted_words(prompt.text) or prompt.words)


def region_histogram(prompts: Sequence[Prompt]) -> dict[str, int]:
    """The number of prompts that have 0, 1, ... 5 and more regions (Fig. 8)."""
    histogram = dict.fromkeys(BINS, 0)
    for prompt in prompts:
        count = region_count(prompt)
        histogram[str(count) if count <= 5 else ">5"] += 1
    return histogram


def apportion(total: int, shares: Mapping[int, float]) -> dict[int, int]:
    """Split a number by shares into integers that sum to it: the largest remainders are rounded up."""
    exact = {key: total * share for key, share in shares.items()}
    parts = {key: math.floor(value + 1e-9) for key, value in exact.items()}
    by_remainder = sorted(shares, key=lambda key: (parts[key] - exact[key], key))
    for key in by_remainder[: total - sum(parts.values())]:
        parts[key] += 1
    return parts


def check_shares(shares: Mapping[int, float]) -> None:
    """Check shares of prompts by number of regions.

    Raises:
        ValueError: when one is not a positive number, or they do not sum to 1.
    """
    wrong = {count: share for count, share in shares.items() if count < 0 or not 0 < share <= 1}
    if wrong or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares by number of regions must be in (0, 1] and sum to 1, got {dict(shares)}")


def filter_regions(
    prompts: Sequence[Prompt], target: Mapping[int, float] = APPENDIX_C, *, count: int | None = None, seed: int = 0
) -> list[Prompt]:
    """Choose prompts so that their numbers of regions follow a target distribution (Appendix C); keep their order.

    The choice among prompts with one number of regions depends on the seed and the prompts' ids alone, not on their order.

    Args:
        target: share of each number of regions; others are dropped.
        count: how many to choose; as many as the scarcest number allows when None.

    Raises:
        ValueError: when shares are out of range, or a number of regions has too few prompts; names it.
    """
    check_shares(target)
    groups: dict[int, list[int]] = {regions: [] for regions in target}
    for position, prompt in enumerate(prompts):
        if (regions := region_count(prompt)) in groups:
            groups[regions].append(position)
    available = {regions: len(group) for regions, group in groups.items()}
    wanted = apportion(_most(available, target) if count is None else count, target)
    for regions, number in wanted.items():
        if number > available[regions] or not available[regions]:
            raise ValueError(
                f"{number or 'some'} prompts of {regions} regions are wanted, and there are {available[regions]}. Lower the count, "
                f"change the target {dict(target)}, or add prompts. By number of regions there are: {region_histogram(prompts)}"
            )
    chosen: list[int] = []
    for regions, group in groups.items():
        chosen += sorted(group, key=lambda position: _random_rank(seed, prompts[position].id))[: wanted[regions]]
    return [prompts[position] for position in sorted(chosen)]


def _most(available: Mapping[int, int], target: Mapping[int, float]) -> int:
    """The largest total for which every number of regions has enough prompts."""
    total = min(math.ceil((available[regions] + 1) / share) for regions, share in target.items())
    while any(number > available[regions] for regions, number in apportion(total, target).items()):
        total -= 1
    return total


def _random_rank(seed: int, name: str) -> bytes:
    """A sort key that is random, but the same for the same seed and name on every platform."""
    return hashlib.sha256(f"{seed}, {name}".encode()).digest()


def format_histograms(columns: Mapping[str, Sequence[Prompt]]) -> str:
    """Figure 8 as text: for each set its distribution over numbers of regions, with bars."""
    lines = []
    for name, prompts in columns.items():
        lines.append(f"{name}: {len(prompts)} prompts")
        for bin_, number in region_histogram(prompts).items():
            share = number / max(1, len(prompts))
            lines.append(f"  {bin_:>2} regions {number:>7} {share:>7.1%} {'#' * round(BAR * share)}".rstrip())
    return "\n".join(lines)


def single_words(prompts: Sequence[Prompt]) -> set[str]:
    """The single words that prompts ask for, without case and punctuation."""
    return {part for prompt in prompts for asked in prompt.words for part in words_in(asked)}


def words_in(text: str) -> list[str]:
    """The words and numbers of a text, without case and punctuation: `Wouldn't` is one word, `M-BOX` two."""
    return re.findall(r"\w+(?:'\w+)*", normal_form(text))


def shared_words(first: Sequence[Prompt], second: Sequence[Prompt]) -> list[str]:
    """The single words that prompts of both sets ask for, in order; not those of prompts that ask for the same words altogether."""

    def words(prompt: Prompt) -> tuple[str, ...]:
        return tuple(normal_form(text).strip() for text in prompt.words)

    same = {words(prompt) for prompt in first} & {words(prompt) for prompt in second}
    of_first, of_second = ([prompt for prompt in prompts if words(prompt) not in same] for prompts in (first, second))
    return sorted((single_words(of_first) & single_words(second)) | (single_words(first) & single_words(of_second)))


def listed(words: Sequence[str], most: int = 20) -> str:
    """The first of several words, with dots for the others."""
    return ", ".join(words[:most]) + (", ..." if len(words) > most else "")


def check_words_disjoint(first: Sequence[Prompt], second: Sequence[Prompt], names: tuple[str, str] = ("train", "test")) -> None:
    """Check that no single word to be written in one set is to be written in the other: stricter than `check_disjoint`.

    Raises:
        OverlapError: names the words.
    """
    shared = sorted(single_words(first) & single_words(second))
    if shared:
        raise OverlapError(
            f"{names[0]} and {names[1]} share {len(shared)} words: {listed(shared)}. Remove the prompts with them from one of the "
            "two."
        )


def parse_shares(text: str) -> dict[int, float]:
    """Read shares from a text such as `2:.2,3:.3,4:.3,5:.2`.

    Raises:
        ValueError: on another form.
    """
    try:
        return {int(regions): float(share) for regions, share in (part.split(":") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"shares by number of regions look like 2:.2,3:.3,4:.3,5:.2, got {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m varrl_lightning.prompts.sets`; return exit status 0, or 1 when sets overlap or a file cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        print(_COMMANDS[options.command](options))
    except (ValueError, OSError) as error:  # PromptFileError and OverlapError are ValueErrors
        print(f"{options.command}: {error}", file=sys.stderr)
        return 1
    return 0


def _histogram(options: argparse.Namespace) -> str:
    return format_histograms({path: load_prompts(path) for path in options.files})


def _filter(options: argparse.Namespace) -> str:
    before = load_prompts(options.file)
    after = filter_regions(before, parse_shares(options.target), count=options.count, seed=options.seed)
    write_prompts(options.output, after)
    return format_histograms({f"before ({options.file})": before, f"after ({options.output})": after})


def _disjoint(options: argparse.Namespace) -> str:
    first, second = load_prompts(options.first), load_prompts(options.second)
    check = check_words_disjoint if options.words else check_disjoint
    check(first, second, (options.first, options.second))
    what = "word" if options.words else "prompt"
    return f"{options.first} ({len(first)} prompts) and {options.second} ({len(second)}) share no {what}"


_COMMANDS = {"histogram": _histogram, "filter": _filter, "disjoint": _disjoint}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m varrl_lightning.prompts.sets", description="Sets of prompts by their text regions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    histogram = commands.add_parser("histogram", help="count prompts by their number of text regions")
    histogram.add_argument("files", nargs="+", metavar="FILE")
    filter_ = commands.add_parser("filter", help="choose prompts by a target distribution of the number of regions")
    filter_.add_argument("file", metavar="FILE")
    filter_.add_argument("--output", required=True, metavar="FILE")
    filter_.add_argument(
        "--target", default="2:.2,3:.3,4:.3,5:.2", help="shares by number of regions (default: %(default)s, Appendix C)"
    )
    filter_.add_argument("--count", type=int, help="how many to choose; as many as possible by default")
    filter_.add_argument("--seed", type=int, default=0)
    disjoint = commands.add_parser("disjoint", help="check that two files share no prompt")
    disjoint.add_argument("first", metavar="FILE")
    disjoint.add_argument("second", metavar="FILE")
    disjoint.add_argument("--words", action="store_true", help="nor any single word to be written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
