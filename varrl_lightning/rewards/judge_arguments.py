"""Checks the arguments of `vlm_judge`, and brings them into one form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from varrl_lightning.rewards.judge_answers import AnswerReader
from varrl_lightning.rewards.judge_client import Usage
from varrl_lightning.rewards.judge_questions import QUESTION, field_names

COUNTED = tuple(field.name for field in fields(Usage))
"""Counters of a judge, which the log has under the names of its questions."""


def named_questions(question: str | list[str] | dict[str, str] | None) -> dict[str, str]:
    """Templates by their names in the log; one alone has the empty name.

    Raises:
        ValueError: when there is none, or one is no template.
    """
    if not question:
        raise ValueError(
            'a judge needs a `question`, such as \'How well does the image show "{text}"? Answer with a number from 1 to '
            "10.', or a `preset`"
        )
    if isinstance(question, str):
        named = {"": question}
    elif isinstance(question, Mapping):
        named = dict(question)
    else:
        named = {f"question_{number}": text for number, text in enumerate(question, start=1)}
    for name, template in named.items():
        if name in COUNTED:
            raise ValueError(f"a question cannot be named {name!r}: the log has {', '.join(COUNTED)} of every judge")
        field_names(template)
    return named


def check_modes(
    questions: Mapping[str, str], read: AnswerReader, column: str | None, pairwise: bool, opponents: int | None
) -> None:
    """Check that questions and readings fit together.

    Raises:
        ValueError: when they do not.
    """
    lists = [template for template in questions.values() if QUESTION in field_names(template)]
    if column is not None and len(lists) != len(questions):
        raise ValueError(f"each question needs the field {{{QUESTION}}}, into which those of the column {column!r} are put")
    if column is None and lists:
        raise ValueError(f"the question {lists[0]!r} has the field {{{QUESTION}}}; name the column of questions by question_column")
    if pairwise and column is not None:
        raise ValueError("questions of a prompt's own are asked about one image; leave question_column out, or pairwise")
    if (pairwise or column is not None) and not read.within_one:
        what = "1 if the first image is better, 0 if the second" if pairwise else "1 for yes, 0 for no"
        raise ValueError(
            f"the answer must be a number in [0, 1], {what}: give `read` choices or tokens with such values, or low: 0, high: 1"
        )
    if opponents is not None and not (pairwise and opponents >= 1):
        raise ValueError(f"opponents must be at least 1, and needs pairwise: true, got {opponents}")
