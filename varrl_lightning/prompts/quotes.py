"""Tells of prompts whose quotes are unclear, so that nobody trains on other words than those that are meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from varrl_lightning.types import Prompt

NAMED = 5
"""Prompts that one warning describes; others it names only."""
MOST = 50
"""Prompts that are named in all, of one file, and of the batches of one process: a stream of them may have no end."""
_told: set[str] = set()
_named: set[str] = set()
"""Texts of prompts that a warning was about, and of those that were in batches."""


def unclear_quotes(prompts: Sequence[Prompt]) -> str:
    """What is unclear about the quotes of prompts whose words were taken from them: how many and which; empty if nothing is.

    Prompts that list their words are clear, whatever their quotes.
    """
    unclear = [prompt for prompt in prompts if prompt.unclear_quotes]
    if not unclear:
        return ""
    named = "; ".join(map(_described, unclear[:NAMED]))
    if others := unclear[NAMED:MOST]:
        named += f"; likewise {', '.join(map(_name, others))}" + (", ..." if len(unclear) > MOST else "")
    return (
        f"the quotes of {len(unclear)} of {len(prompts)} prompts are unclear, and the words taken from them may not be those that "
        f"are meant: {named}. Mend the quotes, or list what is to be written under 'words'."
    )


def _name(prompt: Prompt) -> str:
    return repr(prompt.id if len(prompt.id) <= 100 else prompt.id[:100] + "...")


def _described(prompt: Prompt) -> str:
    words = ", ".join(map(repr, prompt.words)) or "no words"
    return f"{_name(prompt)} ({prompt.unclear_quotes}; taken: {words})"


def warn_of_file(prompts: Sequence[Prompt], path: str | Path) -> None:
    """Warn once of all prompts of a file whose quotes are unclear."""
    _warn(prompts, f"{path}: ")


def warn_of_prompts(prompts: Sequence[Prompt]) -> None:
    """Warn once of all prompts whose quotes are unclear and that no warning was about yet."""
    _warn([prompt for prompt in prompts if prompt.text not in _told], "")


def warn_of_batch(prompts: Sequence[Prompt]) -> None:
    """Warn of each prompt of a batch whose quotes are unclear, of the first `MOST` in a process.

    A prompt's warning is the same in each batch, and from the same line, so that Python's default filter shows it once.
    """
    for prompt in prompts:
        if prompt.unclear_quotes:
            if prompt.text in _named or len(_named) < MOST:
                _named.add(prompt.text)
                _warn([prompt], "")
            else:
                warnings.warn("further prompts have unclear quotes; they are not named", stacklevel=1)


def _warn(prompts: Sequence[Prompt], where: str) -> None:
    message = unclear_quotes(prompts)
    if message:
        _told.update(prompt.text for prompt in prompts if prompt.unclear_quotes)
        warnings.warn(where + message, stacklevel=1)
