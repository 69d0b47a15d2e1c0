"""Prompt files: one JSON object a line, or one text a line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from varrl_lightning.prompts.columns import prompt_values
from varrl_lightning.prompts.quotes import warn_of_file
from varrl_lightning.types import Prompt
from varrl_lightning.types.normal_form import normal_form

_BUILTIN = "builtin:"
_ASSETS = Path(__file__).parent.parent / "assets"


class PromptFileError(ValueError):
    """Raised when a prompt file is missing, empty or malformed."""


class OverlapError(ValueError):
    """Raised when training and evaluation share prompts."""


def prompt_path(path: str | Path) -> Path:
    """The file of a path; `builtin:lettering/test.jsonl` is a file of the package."""
    name = str(path)
    return _ASSETS / name.removeprefix(_BUILTIN) if name.startswith(_BUILTIN) else Path(path)


def load_prompts(path: str | Path) -> list[Prompt]:
    """Read a file of prompts: JSONL, or plain text with one prompt a line where its name ends in .txt; blank lines are skipped.

    A JSON object has its text under `text`, `prompt` or `caption`, and a negative prompt under `negative` or `negative_prompt`.
    Keys that no prompt has go into `extra`; one that is nearly a prompt's is warned of. Prompts without an id have their text for
    one, numbered where it occurs again.

    Raises:
        PromptFileError: when it is missing, holds no prompt, or a line is malformed or repeats an id; names the line.
    """
    try:
        # Not splitlines(): JSON allows the other line separators inside a text.
        lines = prompt_path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise PromptFileError(f"cannot read the prompt file {path}: {error.strerror or error}.{_builtin_files()}") from error
    except UnicodeDecodeError as error:
        raise PromptFileError(f"the prompt file {path} is not UTF-8 text: {error}") from error
    prompts = _text_lines(lines) if _is_plain(path, lines) else _json_lines(lines, path)
    if not prompts:
        raise PromptFileError(f"the prompt file {path} holds no prompt; {_expected(path)}")
    warn_of_file(prompts, path)
    return prompts


def _is_plain(path: str | Path, lines: Sequence[str]) -> bool:
    """Whether each line is a prompt's text: in a .txt, unless it begins as JSONL does."""
    return Path(path).suffix.lower() == ".txt" and not is_json_object(next((line for line in lines if line.strip()), ""))


def is_json_object(text: str) -> bool:
    """Whether a text is a complete JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _expected(path: str | Path) -> str:
    return "expected one a line" if Path(path).suffix.lower() == ".txt" else 'expected one JSON object a line, {"text": ...}'


def _text_lines(lines: Sequence[str]) -> list[Prompt]:
    return with_ids([(Prompt(line.strip()), None) for line in lines if line.strip()])


def _json_lines(lines: Sequence[str], path: str | Path) -> list[Prompt]:
    read: list[tuple[Prompt, str | None]] = []
    remarks: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt, has_id, told = _parsed(line, f"{path}, line {number}")
            read.append((prompt, f"line {number}" if has_id else None))
            for remark in told:
                remarks.setdefault(remark, []).append(f"line {number}")
    warn_of(remarks, path)
    return with_ids(read, path)


def _parsed(line: str, where: str) -> tuple[Prompt, bool, list[str]]:
    shown = line if len(line) <= 200 else line[:200] + " ..."
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
        return read_prompt(value)
    except ValueError as error:
        raise PromptFileError(
            f"{where}: {error}\n    {shown}\n"
            'A line is a JSON object such as {"text": ...}; a file of plain texts must end in .txt.'
        ) from error


def read_prompt(line: Mapping[str, Any]) -> tuple[Prompt, bool, list[str]]:
    """The prompt of a decoded JSON object, whether it has an id of its own, and what its writer should be told.

    Raises:
        ValueError: for a value that no prompt can have; names the key.
    """
    values, remarks = prompt_values(line)
    try:
        return Prompt.from_mapping(values), bool(values.get("id")), remarks
    except ValueError as error:
        raise ValueError("; ".join([str(error), *remarks])) from error


def warn_of(remarks: Mapping[str, Sequence[str]], path: str | Path) -> None:
    """Warn once of each remark on a prompt file, with the first places that it is about."""
    for remark, places in remarks.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        warnings.warn(f"{path}, {places[0]}{more}: {remark}", stacklevel=4)


def with_ids(read: Sequence[tuple[Prompt, str | None]], path: str | Path = "") -> list[Prompt]:
    """The prompts, each with an id of its own: a text that occurs again gets the id `text #2`, `text #3`, ...

    Args:
        read: prompts, each with the place of its own id in the file; None where the id is the text.

    Raises:
        PromptFileError: when two have been given the same id; names both places.
    """
    taken: dict[str, str] = {}
    for prompt, place in read:
        if place is not None and (earlier := taken.setdefault(prompt.id, place)) != place:
            raise PromptFileError(
                f"{path}, {place}: the id {prompt.id!r} is already that of {earlier}; it names the prompt's noise. "
                "Give each a different 'id', or none (it defaults to the text)."
            )
    numbers: dict[str, int] = {}
    return [prompt if place is not None else _numbered(prompt, taken, numbers) for prompt, place in read]


def _numbered(prompt: Prompt, taken: dict[str, str], numbers: dict[str, int]) -> Prompt:
    id_ = prompt.id
    while id_ in taken:
        numbers[prompt.id] = numbers.get(prompt.id, 1) + 1
        id_ = f"{prompt.id} #{numbers[prompt.id]}"
    taken[id_] = ""
    return prompt if id_ == prompt.id else replace(prompt, id=id_)


def _builtin_files() -> str:
    names = sorted(f.relative_to(_ASSETS).as_posix() for f in _ASSETS.rglob("*.jsonl"))
    return f" Files in the package: {', '.join(_BUILTIN + name for name in names)}." if names else ""


def check_disjoint(
    first: Sequence[Prompt], second: Sequence[Prompt], names: tuple[str, str] = ("train", "test"), compare_words: bool = True
) -> None:
    """Check that no prompt of one set asks for the same as one of the other.

    Args:
        compare_words: whether prompts with the same words ask for the same, as they do for a reward that reads; otherwise, and
            without words, prompts with the same text do.

    Raises:
        OverlapError: names the overlap.
    """
    shared = sorted({_asked(p, compare_words) for p in first} & {_asked(p, compare_words) for p in second})
    if shared:
        shown = "; ".join(" | ".join(asked) for asked in shared[:10]) + ("; ..." if len(shared) > 10 else "")
        raise OverlapError(
            f"{names[0]} and {names[1]} share {len(shared)} prompts: {shown}. Remove them from one of the two; "
            "with overlap: ignore the results no longer measure the model on prompts that it has not seen."
        )


def _asked(prompt: Prompt, compare_words: bool) -> tuple[str, ...]:
    return tuple(normal_form(part).strip() for part in (compare_words and prompt.words) or (prompt.text,))
