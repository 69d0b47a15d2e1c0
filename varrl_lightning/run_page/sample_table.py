"""The page's table of samples, which is sorted by its headings and filtered by a form."""

from __future__ import annotations

from collections.abc import Sequence

from varrl_lightning.run_page.markup import escaped, frame, number, tag
from varrl_lightning.run_page.panels import Section
from varrl_lightning.run_page.pictures import says
from varrl_lightning.run_page.record import RunRecord
from varrl_lightning.run_page.sample_rows import Row, evaluation_rows, table_rows

ROWS = 200
"""Rows of the table, over all runs, at most."""
_CORRECT = {True: "right", False: "wrong", None: "not known"}


def sample_table(runs: Sequence[RunRecord]) -> Section:
    """Samples of training, or of evaluation where a run has no tables of samples."""
    section, rows = Section("Samples"), list[Row]()
    for run in runs:
        share = max(1, ROWS // len(runs))
        found, count = table_rows(run, share)
        kind = "images that training has seen"
        if not found:
            found, count = evaluation_rows(run, share)
            kind = "images of prompts that are not trained on; the callback SampleTables writes tables of those that are"
        rows += found
        if found:
            section.notes.append(f"{run.name}: {len(found)} of {count} {kind}, evenly over the steps.")
    if not rows:
        section.notes.append("No samples: the run has neither tables of samples nor pictures in samples/raw.")
        return section
    numbers = list(dict.fromkeys(name for row in rows for name in row.numbers))
    section.html = _filters(rows, numbers, several=len(runs) > 1) + frame(
        _table(rows, numbers, several=len(runs) > 1), "Samples", tall=True
    )
    return section


def _table(rows: Sequence[Row], numbers: Sequence[str], several: bool) -> str:
    masked = any(row.masks for row in rows)
    sorted_by = [*(["run"] if several else []), "step", "stage", "read", *numbers]
    heads = tag("th", tag("button", "prompt", {"type": "button"}), {"scope": "col"}) + tag("th", "image", {"scope": "col"})
    heads += tag("th", "masks", {"scope": "col"}) if masked else ""
    heads += "".join(tag("th", tag("button", escaped(name), {"type": "button"}), {"scope": "col"}) for name in sorted_by)
    body = "".join(_row(row, numbers, masked, several) for row in rows)
    whole = tag("caption", "Samples; a heading sorts the table") + tag("thead", tag("tr", heads)) + tag("tbody", body)
    return tag("table", whole, {"class": "samples sortable", "id": "sample-table"})


def _row(row: Row, numbers: Sequence[str], masked: bool, several: bool) -> str:
    about = says(row.read, row.correct)
    cells = tag("th", escaped(row.prompt), {"scope": "row", "data-value": row.prompt})
    cells += tag("td", tag("img", None, {"src": row.picture, "alt": f"image of the prompt {row.prompt}: {about}"}))
    if masked:
        cells += tag("td", "".join(_mask(name, url) for name, url in row.masks.items()), {"class": "masks"})
    cells += _cell(row.run) if several else ""
    cells += (
        _cell(row.step) + _cell(row.stage) + tag("td", escaped(about), {"class": "text", "data-value": " ".join(row.read or ())})
    )
    for name in numbers:
        value = row.numbers.get(name)
        cells += tag("td", number(value), {"class": "number", "data-value": "" if value is None else repr(value)})
    data = {"run": row.run, "stage": row.stage, "correct": _CORRECT[row.correct]}
    text = " ".join((row.prompt, *row.words, *(row.read or ())))
    return tag("tr", cells, {f"data-{name}": value for name, value in data.items()} | {"data-text": text})


def _mask(name: str, url: str) -> str:
    return tag("img", None, {"src": url, "alt": name, "title": name})


def _cell(value: object) -> str:
    return tag("td", escaped(value), {"data-value": value})


def _filters(rows: Sequence[Row], numbers: Sequence[str], several: bool) -> str:
    """The form above the table."""
    fields = _label("prompt, words or read text has", tag("input", None, {"name": "text", "type": "search"}))
    if several:
        fields += _choice("run", "run", list(dict.fromkeys(row.run for row in rows)))
    fields += _choice("stage", "stage", sorted({row.stage for row in rows}))
    fields += _choice(
        "words read", "correct", [name for value, name in _CORRECT.items() if any(row.correct is value for row in rows)]
    )
    fields += _choice("number", "column", ["step", *numbers], every="none")
    for name, label in (("low", "at least"), ("high", "at most")):
        fields += _label(label, tag("input", None, {"name": name, "type": "number", "step": "any"}))
    fields += tag("button", "Show all", {"type": "reset"})
    shown = tag("p", f"{len(rows)} of {len(rows)} samples", {"id": "shown", "role": "status"})
    return tag("form", fields, {"id": "filters", "class": "filters", "aria-label": "Filters of the samples"}) + shown


def _choice(label: str, name: str, values: Sequence[str], every: str = "any") -> str:
    options = tag("option", every, {"value": ""}) + "".join(tag("option", escaped(v), {"value": v}) for v in values)
    return _label(label, tag("select", options, {"name": name}))


def _label(text: str, field: str) -> str:
    return tag("label", tag("span", escaped(text)) + field)
