"""Prompt files: one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from varrl_lightning.types import Prompt

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
    """Read a JSONL file of prompts; blank lines are skipped.

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
    prompts = _parsed_lines(lines, path)
    if not prompts:
        raise PromptFileError(f'the prompt file {path} holds no prompt; expected one JSON object a line, {{"text": ...}}')
    return prompts


def _parsed_lines(lines: Sequence[str], path: str | Path) -> list[Prompt]:
    prompts: list[Prompt] = []
    first_lines: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        prompt = _parsed(line, f"{path}, line {number}")
        if (earlier := first_lines.setdefault(prompt.id, number)) != number:
            raise PromptFileError(
                f"{path}, line {number}: the id {prompt.id!r} is already that of line {earlier}; it names the prompt's noise. "
                "Give each a different 'id' (it defaults to the text)."
            )
        prompts.append(prompt)
    return prompts


def _parsed(line: str, where: str) -> Prompt:
    shown = line if len(line) <= 200 else line[:200] + " ..."
    try:
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
        return Prompt.from_mapping(value)
    except ValueError as error:
        raise PromptFileError(f'{where}: {error}\n    {shown}\nA line is a JSON object such as {{"text": ...}}.') from error


def _builtin_files() -> str:
    names = sorted(f.relative_to(_ASSETS).as_posix() for f in _ASSETS.rglob("*.jsonl"))
    return f" Files in the package: {', '.join(_BUILTIN + name for name in names)}." if names else ""


def check_disjoint(first: Sequence[Prompt], second: Sequence[Prompt], names: tuple[str, str] = ("train", "test")) -> None:
    """Check that no prompt of one set asks for the same as one of the other: the same words, or the same text without words.

    Raises:
        OverlapError: names the overlap.
    """
    shared = sorted({_asked(p) for p in first} & {_asked(p) for p in second})
    if shared:
        shown = "; ".join(" | ".join(asked) for asked in shared[:10]) + ("; ..." if len(shared) > 10 else "")
        raise OverlapError(
            f"{names[0]} and {names[1]} share {len(shared)} prompts: {shown}. Remove them from one of the two; "
            "with overlap: ignore the results no longer measure the model on prompts that it has not seen."
        )


def _asked(prompt: Prompt) -> tuple[str, ...]:
    return tuple(word.casefold().strip() for word in prompt.words or (prompt.text,))
