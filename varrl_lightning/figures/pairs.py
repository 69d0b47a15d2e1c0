"""Draws images before and after training, two pairs for each category, as the paper's Figs. 9 and 10 show them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch.nn.functional import avg_pool2d

from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.prompts.benchmarks import categories_of
from varrl_lightning.types import Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels

PER_CATEGORY = 2
_SIDE = 1.5
"""Width of one picture, in inches."""
_GAP = 0.08
"""Width of the gap after a pair, in pictures."""
_CAPTION = 0.14
"""Height of the line above a picture, in inches."""
_PIXELS = 384
"""Longest side of a drawn picture, in pixels."""


def choose_pairs(prompts: Sequence[Prompt], per_category: int = PER_CATEGORY, seed: int = 0) -> dict[str, list[int]]:
    """Choose prompts of each category at random, by their ids alone, so that the choice depends on no result; return their places.

    Raises:
        ValueError: when a prompt has no category, or `per_category` is not positive.
    """
    if per_category < 1:
        raise ValueError(f"per_category must be at least 1, got {per_category}")
    names = categories_of(prompts)
    if not names:
        raise ValueError("pairs by category need prompts that all have a 'category'")
    order = sorted(range(len(prompts)), key=lambda i: hashlib.sha256(f"{seed} {prompts[i].id}".encode()).digest())
    of_category = {name: [i for i in order if categories_of([prompts[i]]) == (name,)] for name in names}
    return {name: places[:per_category] for name, places in of_category.items()}


def category_figures(before: Evaluation, after: Evaluation, per_category: int = PER_CATEGORY, rows: int = 6) -> list[Figure]:
    """Figures of `rows` categories each; within each pair the left image is before and the right one after, rewards above.

    Args:
        before, after: of the same prompts, with their images; see `choose_pairs` for which to evaluate.

    Raises:
        ValueError: when the prompts differ, have no category, or the images were left out.
    """
    if [p.id for p in before.prompts] != [p.id for p in after.prompts]:
        raise ValueError("before and after must be evaluations of the same prompts, in the same order")
    if not len(before.images) == len(after.images) == len(before.prompts):
        raise ValueError(f"got {len(before.images)} and {len(after.images)} images of {len(before.prompts)} prompts; expected all")
    chosen = list(choose_pairs(before.prompts, per_category).items())
    return [_figure(before, after, chosen[i : i + rows], per_category) for i in range(0, len(chosen), rows)]


def _figure(before: Evaluation, after: Evaluation, chosen: Sequence[tuple[str, list[int]]], per_category: int) -> Figure:
    aspect = before.images.shape[-2] / before.images.shape[-1]
    figure, axes = _grid(len(chosen), per_category, aspect)
    for line, (name, places) in zip(axes, chosen, strict=True):
        label = name.replace(" ", "\n")
        line[0].text(-0.05, 0.5, label, transform=line[0].transAxes, rotation=90, ha="right", va="center", fontsize=7)
        for pair, place in enumerate(places):
            for axis, side in zip(line[3 * pair : 3 * pair + 2], (before, after), strict=True):
                axis.imshow(_pixels(side, place), interpolation="nearest", aspect="auto")
                axis.set_title(f"{float(side.values[place]):.2f}", fontsize=6.5, pad=2)
    return figure


def _grid(rows: int, per_category: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """An empty figure with a title, and its axes: a row per category, three columns per pair."""
    width, height = 0.5 + (2 + _GAP) * per_category * _SIDE, 0.35 + rows * (_SIDE * aspect + _CAPTION)
    figure = Figure(figsize=(width, height))
    figure.suptitle(
        "In each pair: before (left), after (right)", fontsize=8, x=0.1 / width, y=1 - 0.05 / height, ha="left", va="top"
    )
    # Between pairs lies an empty column, narrower than the pictures.
    ratios = [1.0, 1.0, _GAP] * per_category
    space = _CAPTION / (_SIDE * aspect)
    axes: np.ndarray = figure.subplots(
        rows,
        len(ratios),
        squeeze=False,
        width_ratios=ratios,
        gridspec_kw={"left": 0.4 / width, "right": 1.0, "top": 1 - 0.35 / height, "bottom": 0.02, "wspace": 0.03, "hspace": space},
    )
    for axis in axes.ravel():
        axis.set_axis_off()
    return figure, axes


def _pixels(evaluation: Evaluation, place: int) -> np.ndarray:
    image = evaluation.images[place].detach().float().cpu()
    image = avg_pool2d(image, max(1, -(-max(image.shape[-2:]) // _PIXELS)))
    return eight_bit_pixels(image)
