"""Pictures inside the page: as data URLs, small enough for many."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from varrl_lightning.figures.pictures import chosen
from varrl_lightning.figures.samples import Sample
from varrl_lightning.run_page.markup import escaped, tag
from varrl_lightning.run_page.panels import Section
from varrl_lightning.run_page.record import RunRecord

SIDE = 256
"""Longest side of a picture on the page, in pixels."""
EXACT = 12_000
"""Bytes up to which a picture stays a PNG; larger ones become JPEG."""
PAIRS = 24
"""Pairs of pictures on a page, over all runs."""


def data_url(picture: np.ndarray | bytes) -> str:
    """A picture as the address of itself: PNG where that is small, otherwise JPEG.

    Args:
        picture: RGB, (H, W, 3), 0 to 255, or the bytes of a picture file.
    """
    opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else Image.fromarray(picture)
    image = opened.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    written = _written(image, "PNG", optimize=True)
    kind = "png"
    if len(written) > EXACT:
        kind, written = "jpeg", _written(image, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(written).decode('ascii')}"


def before_after(runs: Sequence[RunRecord]) -> Section:
    """The same prompts and noise before and after training, a pair of pictures for each prompt."""
    section = Section("Before and after")
    for run in runs:
        if len(run.samples) < 2:
            section.notes.append(f"{run.name}: samples/raw has no pictures of two steps, so that nothing can be compared.")
            continue
        (_, before), (step, after) = run.samples[0], run.samples[-1]
        if [s.text for s in before] != [s.text for s in after]:
            section.notes.append(
                f"{run.name}: the prompts of samples/raw were changed during the run, so that nothing can be compared."
            )
            continue
        shown = chosen(before, after, max(1, PAIRS // len(runs)))
        section.notes.append(
            f"{run.name}: the first {len(shown)} of {len(before)} prompts of samples/, "
            f"with the same noise before and after {step} updates."
        )
        heading = tag("h3", escaped(run.name)) if len(runs) > 1 else ""
        section.html += heading + tag("ul", "".join(_pair(before[i], after[i]) for i in shown), {"class": "pairs"})
    return section


def says(read: Sequence[str] | None, correct: bool | None) -> str:
    """What was read in a picture, and whether that is right, as text."""
    if read is None:
        return "not read"
    words = " ".join(read) or "nothing"
    return f"read {words}" + ("" if correct is None else " ✓" if correct else " ✗")


def _pair(before: Sample, after: Sample) -> str:
    pictures = ""
    for when, sample in (("before", before), ("after", after)):
        about = says(sample.read, sample.correct)
        look = tag("img", None, {"src": data_url(sample.image), "alt": f"{when} training, of the prompt {sample.text}: {about}"})
        state = {True: "right", False: "wrong", None: "plain"}[sample.correct]
        pictures += tag("div", look + tag("span", f"{when}: {escaped(about)}"), {"class": f"picture {state}"})
    return tag("li", tag("figure", tag("div", pictures, {"class": "two"}) + tag("figcaption", escaped(before.text))))


def _written(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
