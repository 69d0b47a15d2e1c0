"""Reads the benchmarks' prompt sets in their published forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from varrl_lightning.algorithms.word_metrics import cvtg_words
from varrl_lightning.metrics.paper import HPSV3_CATEGORIES
from varrl_lightning.metrics.scores import canonical_category
from varrl_lightning.prompts.columns import TEXT
from varrl_lightning.prompts.files import PromptFileError, load_prompts, read_prompt, warn_of, with_ids
from varrl_lightning.prompts.quotes import warn_of_file
from varrl_lightning.types import Prompt

Benchmark = Literal["CVTG-2K", "HPSv3"]
CVTG_FILES = tuple(f"{kind}/{regions}.json" for kind in ("CVTG", "CVTG-Style") for regions in (2, 3, 4, 5))
_TEXT_KEYS = ("prompt", "text", "caption")


def load_benchmark(path: str | Path) -> list[Prompt]:
    """Read a prompt set in this package's form or in a benchmark's form.

    - a JSONL file (of any ending but .json and .txt), or a text file with a prompt a line (.txt): see `load_prompts`;
    - CVTG-2K's folder, with CVTG/2.json to CVTG-Style/5.json, or one of its files, `{"data_list": [{"index", "prompt", ...}]}`: the
      words are the benchmark's (`cvtg_words`), the category is `CVTG/2` to `CVTG-Style/5`;
    - a JSON file with a list of strings, or of objects with the keys that `load_prompts` reads, or a folder of such files: without
      a `category` it is the file's name, without an `id` that and a number. HPSv3's twelve get the names of the paper's Table 2.

    Raises:
        PromptFileError: when a file is missing or malformed; names it and the entry.
    """
    place = Path(path)
    if str(path).startswith("builtin:") or not (place.suffix.lower() == ".json" or place.is_dir()):
        return load_prompts(path)
    if place.is_file() and _is_jsonl(place):
        return load_prompts(path)
    prompts = [prompt for file, name in _files(place) for prompt in _read(file, name, of_folder=place.is_dir())]
    warn_of_file(prompts, path)
    return prompts


def _is_jsonl(file: Path) -> bool:
    """Whether the first line of a file is a prompt by itself: JSONL under the ending of JSON."""
    try:
        with file.open(encoding="utf-8-sig") as lines:
            first = json.loads(next((line for line in lines if line.strip()), ""))
    except (OSError, ValueError):
        return False
    return isinstance(first, Mapping) and any(key in first for key in TEXT)


def _files(place: Path) -> list[tuple[Path, str]]:
    """The JSON files of a path, each with the name that its prompts begin with."""
    if not place.is_dir():
        return [(place, f"{place.parent.name}/{place.stem}" if place.parent.name.startswith("CVTG") else place.stem)]
    if any((place / name).is_file() for name in CVTG_FILES):
        missing = [name for name in CVTG_FILES if not (place / name).is_file()]
        if missing:
            raise PromptFileError(f"{place} is CVTG-2K without {', '.join(missing)}; to read a part of it, give its file")
        return [(place / name, name.removesuffix(".json")) for name in CVTG_FILES]
    files = [(file, file.stem) for file in sorted(place.glob("*.json"))]
    if not files:
        raise PromptFileError(
            f"{place} holds no benchmark: expected *.json files of prompts, or CVTG-2K's folders CVTG and CVTG-Style"
        )
    return files


def _read(file: Path, name: str, of_folder: bool) -> list[Prompt]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise PromptFileError(f"cannot read the prompts in {file}: {error}") from error
    of_cvtg = isinstance(document, Mapping) and isinstance(document.get("data_list"), list)
    entries = document["data_list"] if of_cvtg else document
    if not isinstance(entries, list) or not entries:
        raise PromptFileError(
            f'{file}: expected a list of prompts, or {{"data_list": [...]}} that is not empty, got {str(document)[:60]}'
        )
    if of_cvtg:
        return [_cvtg_prompt(entry, number, name, f"{file}, entry {number}") for number, entry in enumerate(entries)]
    return _plain_prompts(entries, file, name, of_folder)


def _plain_prompts(entries: Sequence[Any], file: Path, name: str, of_folder: bool) -> list[Prompt]:
    """The prompts of a list; in a folder the ids of each file begin with its name."""
    prompts: list[tuple[Prompt, str]] = []
    remarks: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        _text(entry, where)
        try:
            prompt, has_id, told = read_prompt(entry if isinstance(entry, Mapping) else {"text": entry})
        except ValueError as error:
            raise PromptFileError(f"{where}: {error}") from error
        if of_folder or not has_id:
            prompt = replace(prompt, id=f"{name}/{prompt.id if has_id else number}")
        prompts.append((replace(prompt, category=_table_name(prompt.category or name)), f"entry {number}"))
        for remark in told:
            remarks.setdefault(remark, []).append(f"entry {number}")
    warn_of(remarks, file)
    return with_ids(prompts, file)


def _cvtg_prompt(entry: Any, number: int, name: str, where: str) -> Prompt:
    text = _text(entry, where)
    words = cvtg_words(text)
    if not words:
        raise PromptFileError(f"{where}: CVTG-2K's words stand between single quotes, and this has none: {text[:200]}")
    return Prompt(text, id=f"{name}/{entry.get('index', number)}", words=words, category=name)


def _text(entry: Any, where: str) -> str:
    text = next((entry[key] for key in _TEXT_KEYS if key in entry), None) if isinstance(entry, Mapping) else entry
    if not isinstance(text, str) or not text.strip():
        raise PromptFileError(
            f"{where}: expected a text, or an object with one under {' or '.join(_TEXT_KEYS)}; got {entry!r:.200}"
        )
    return text


def _table_name(category: str) -> str:
    try:
        return HPSV3_CATEGORIES[canonical_category(category, HPSV3_CATEGORIES)]
    except ValueError:
        return category


def benchmark_of(prompts: Sequence[Prompt]) -> Benchmark | None:
    """The benchmark that prompts come from, by their categories; None for any other set."""
    categories = {p.category for p in prompts}
    if categories and categories <= {name.removesuffix(".json") for name in CVTG_FILES}:
        return "CVTG-2K"
    return "HPSv3" if categories and categories <= set(HPSV3_CATEGORIES) else None


def categories_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The categories of prompts: in the order of Table 2 where all are in it, else as they occur; empty when a prompt has none."""
    names = dict.fromkeys(_table_name(p.category) for p in prompts if p.category is not None)
    if not prompts or any(p.category is None for p in prompts):
        return ()
    return tuple(c for c in HPSV3_CATEGORIES if c in names) if set(names) <= set(HPSV3_CATEGORIES) else tuple(names)
