"""What a judge is asked about an image: templates that are filled from the prompt, and lists of questions that prompts bring."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varrl_lightning.errors import did_you_mean, listed
from varrl_lightning.types import Prompt

OWN_FIELDS = ("text", "id", "words", "category", "label", "negative")
"""Fields of every prompt; a template may name any column of the prompt file besides."""
KEYS = ("question", "answer", "depends_on")
"""Keys of a question in a prompt's own list."""
QUESTION = "question"
"""The field of a template into which a question of the prompt's own list goes."""


def field_names(template: str) -> list[str]:
    """The fields of a template, such as `text` of "Does it show {text}?"; a brace is written twice to stand for itself.

    Raises:
        ValueError: when it is no template, or a field is more than a name.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the question {template!r} is no template: {error}; write {{{{ and }}}} for braces") from error
    for _, name, style, conversion in pieces:
        if name is not None and (not name.isidentifier() or style or conversion):
            raise ValueError(
                f"the question {template!r} has the field {{{name}}}; expected a name alone, such as {{text}}; write {{{{ and }}}} "
                "for braces"
            )
    return [name for _, name, _, _ in pieces if name is not None]


def filled(template: str, prompt: Prompt, question: str = "") -> str:
    """A template with the prompt's fields in place of their names."""
    values = _fields_of(prompt) | {QUESTION: question}
    return template.format_map({name: values[name] for name in field_names(template)})


def check_fields(templates: Iterable[str], prompts: Sequence[Prompt]) -> None:
    """Check that each prompt has all fields of all templates.

    Raises:
        ValueError: names the fields and the prompts that lack them.
    """
    for name in dict.fromkeys(name for template in templates for name in field_names(template) if name != QUESTION):
        lacking = [prompt.id for prompt in prompts if name not in _fields_of(prompt)]
        if lacking:
            columns = sorted({column for prompt in prompts for column in prompt.extra})
            raise ValueError(
                f"{len(lacking)} of {len(prompts)} prompts have no field {{{name}}}: {listed(lacking)}."
                f"{did_you_mean(name, [*OWN_FIELDS, *columns])} Fields are {', '.join(OWN_FIELDS)} and the columns of the "
                f"prompt file: {listed(columns) or 'none'}"
            )


def _fields_of(prompt: Prompt) -> dict[str, Any]:
    own = {"text": prompt.text, "id": prompt.id, "words": ", ".join(prompt.words)}
    own |= {name: value for name in ("category", "label", "negative") if (value := getattr(prompt, name)) is not None}
    return {**{name: value for name, value in prompt.extra.items() if value is not None}, **own}


@dataclass(frozen=True)
class ListedQuestion:
    """A question of a prompt's own list, whose answer is yes or no (as in TIFA, arXiv 2303.11897, and DPG-Bench, 2403.05135).

    Args:
        text: the question.
        inverted: whether the right answer is no.
        depends_on: numbers, from 0, of the questions without whose yes this one makes no sense.
    """

    text: str
    inverted: bool = False
    depends_on: tuple[int, ...] = ()


def listed_questions(prompt: Prompt, column: str) -> list[ListedQuestion]:
    """The questions that a prompt brings, in a column of the prompt file.

    An entry is a text, or a mapping with `question` and perhaps `answer` (yes or no) and `depends_on`: the numbers of other
    questions, counted from 1; 0 is none.

    Raises:
        ValueError: on an entry of another form; names the prompt.
    """
    entries = prompt.extra.get(column)
    where = f"the column {column!r} of prompt {prompt.id!r}"
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise ValueError(f"{where} must be a list of at least one question, got {entries!r}")
    return [_question(entry, len(entries), f"question {number} in {where}") for number, entry in enumerate(entries, start=1)]


def _question(entry: Any, n: int, where: str) -> ListedQuestion:
    if isinstance(entry, str):
        return ListedQuestion(entry)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("question"), str):
        raise ValueError(f"{where} must be a text or a mapping with the key 'question', got {entry!r}")
    for key in entry:
        if key not in KEYS:
            raise ValueError(f"{where} has no key {key!r}.{did_you_mean(str(key), KEYS)} It takes: {', '.join(KEYS)}.")
    right = entry.get("answer", "yes")
    right = {True: "yes", False: "no"}.get(right, right) if isinstance(right, bool) else str(right).strip().casefold()
    if right not in ("yes", "no"):
        raise ValueError(f"{where} has the answer {entry['answer']!r}; expected yes or no")
    needed = entry.get("depends_on") or ()
    needed = needed if isinstance(needed, Sequence) and not isinstance(needed, str) else (needed,)
    if not all(isinstance(number, int) and 0 <= number <= n for number in needed):
        raise ValueError(f"{where} has depends_on {entry['depends_on']!r}; expected numbers of questions from 1 to {n}, or 0")
    return ListedQuestion(entry["question"], right == "no", tuple(number - 1 for number in needed if number))


def share_of_yes(questions: Sequence[ListedQuestion], values: Sequence[float]) -> float:
    """The mean of the answers; 0 where a question's own premise was answered by less than 1/2, as DPG-Bench counts.

    Args:
        values: of each question the degree of yes, in [0, 1].
    """
    right = [1 - value if question.inverted else value for question, value in zip(questions, values, strict=True)]
    counted = [
        value if all(right[needed] >= 0.5 for needed in question.depends_on) else 0.0
        for question, value in zip(questions, right, strict=True)
    ]
    return sum(counted) / len(counted)
