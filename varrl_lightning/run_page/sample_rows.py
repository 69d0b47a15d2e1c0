"""Rows of the page's table of samples: of a run's Parquet tables, or of its pictures of prompts that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from varrl_lightning.figures.samples import Sample
from varrl_lightning.run_page.pictures import data_url
from varrl_lightning.run_page.record import UNREADABLE, RunRecord

if TYPE_CHECKING:
    from varrl_lightning.sample_tables.rows import SampleRow

T = TypeVar("T")
STEPS = 25
"""Steps of a run of which samples are shown, at most."""


@dataclass(frozen=True)
class Row:
    """One image of a run.

    Args:
        run, step, stage, prompt: where it comes from.
        words, read: asked for and read; `read` is None when no reward reads.
        correct: whether every wanted word was read, None where that is not known.
        picture: its address.
        numbers: reward, its parts, and what training made of it, by name.
        masks: names and addresses of pictures of its masks.
    """

    run: str
    step: int
    stage: str
    prompt: str
    words: Sequence[str]
    read: Sequence[str] | None
    correct: bool | None
    picture: str
    numbers: dict[str, float | None]
    masks: dict[str, str] = field(default_factory=dict)


def table_rows(run: RunRecord, count: int) -> tuple[list[Row], int]:
    """Up to `count` rows of the run's tables, evenly over the steps, and how many there are; none where it has no table.

    A table that cannot be read becomes a problem of the run.
    """
    if not any((run.folder / "samples" / "tables").glob("*.parquet")):
        return [], 0
    from varrl_lightning.sample_tables.parquet import read_sample_tables

    try:
        plain = read_sample_tables(run.folder, pictures=False)
        places: dict[int, list[int]] = {}
        for row in plain:
            places.setdefault(row.step, []).append(len(places.get(row.step, ())))
        rows = []
        for step, wanted in chosen_rows(places, count).items():
            whole = read_sample_tables(run.folder, step=step)
            rows += [_trained(run, whole[i]) for i in wanted]
        return rows, len(plain)
    except (*UNREADABLE, ImportError) as error:
        run.problems.append(f"{run.name}: the tables of samples are left out ({error}).")
        return [], 0


def evaluation_rows(run: RunRecord, count: int) -> tuple[list[Row], int]:
    """Up to `count` of the samples in `samples/raw`, evenly over the steps, and how many there are."""
    chosen = chosen_rows(dict(run.samples), count)
    return [_evaluated(run, step, sample) for step, samples in chosen.items() for sample in samples], sum(
        len(samples) for _, samples in run.samples
    )


def chosen_rows(by_step: dict[int, list[T]], count: int) -> dict[int, list[T]]:
    """At most `count` rows: of `STEPS` steps, evenly with the first and the last, and evenly within each step."""
    steps = _evenly(sorted(by_step), min(STEPS, count))
    share = count // len(steps) if steps else 0
    return {step: _evenly(by_step[step], share) for step in steps}


def _evenly(values: list[T], count: int) -> list[T]:
    return [values[i] for i in sorted({round(i) for i in np.linspace(0, len(values) - 1, min(count, len(values)))})]


def _trained(run: RunRecord, row: SampleRow) -> Row:
    numbers: dict[str, float | None] = {"reward": row.reward, "return": row.return_, "advantage": row.advantage}
    if len(row.rewards) > 1:
        numbers |= row.rewards
    masks = {} if row.image_mask is None else {"mask of the image": data_url(row.image_mask)}
    masks |= {f"mask of {name}": data_url(mask) for name, mask in zip(row.scales, row.masks, strict=False)}
    known = row.read is not None and bool(row.words)
    read = {word.casefold() for word in row.read or ()}
    return Row(
        run.name,
        row.step,
        row.stage,
        row.prompt,
        row.words,
        row.read,
        all(word.casefold() in read for word in row.words) if known else None,
        data_url(row.image),
        {**numbers, **row.parts},
        masks,
    )


def _evaluated(run: RunRecord, step: int, sample: Sample) -> Row:
    reward = None if np.isnan(sample.reward) else sample.reward
    picture = data_url(sample.image)
    return Row(run.name, step, "evaluation", sample.text, sample.wanted, sample.read, sample.correct, picture, {"reward": reward})
