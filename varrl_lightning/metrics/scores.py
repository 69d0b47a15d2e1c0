"""Means of a score over images: over all, by category, and CLIPScore."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from varrl_lightning.metrics.paper import HPSV3_CATEGORIES
from varrl_lightning.types import Prompt, Scores

ALL = "All"
"""The name of the mean over all categories."""
Scorer = Callable[[Tensor, Sequence[Prompt]], Scores]
"""What scores images (N, 3, H, W) of prompts, as a reward does."""


def canonical_category(name: str | None, categories: Sequence[str]) -> int:
    """Return the index of a category in the list; upper and lower case, `_`, `-` and spaces are alike.

    Raises:
        ValueError: when the name is none of them; the message names the closest.

    Examples:
        >>> canonical_category("natural_scenery", ["Plants", "Natural Scenery"])
        1
        >>> canonical_category("plant", ["Plants", "Natural Scenery"])
        Traceback (most recent call last):
        ValueError: no category 'plant'. Did you mean 'Plants'? There are: Plants, Natural Scenery.
    """
    places = {_plain(category): place for place, category in enumerate(categories)}
    if name is not None and _plain(name) in places:
        return places[_plain(name)]
    close = [] if name is None else difflib.get_close_matches(_plain(name), places, n=1)
    hint = f" Did you mean {categories[places[close[0]]]!r}?" if close else ""
    raise ValueError(f"no category {name!r}.{hint} There are: {', '.join(categories)}.")


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


class MeanScore(Metric):
    """Mean of one score per image, over the images that have one.

    Examples:
        >>> metric = MeanScore()
        >>> metric.update(torch.tensor([1.0, 2.0, torch.nan]))
        >>> metric.compute(), metric.unscored
        (tensor(1.5000), tensor(1))
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    images: Tensor
    unscored: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("unscored", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, " N"]) -> None:
        """Add images; one without a score is NaN and counts in `unscored` only."""
        values = values.to(self.total.device)
        finite = values.isfinite()
        self.total += values[finite].double().sum()
        self.images += finite.sum()
        self.unscored += (~finite).sum()

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean, in the unit of the score; NaN when no image has one."""
        return (self.total / self.images).float()


class CLIPScore(MeanScore):
    """Mean CLIPScore of images, as CVTG-2K counts it: each image once.

    Args:
        scorer: gives images their scores, such as the reward `varrl_lightning.rewards.clip_score.CLIPScore()`, whose defaults are
            the benchmark's; it is not part of the metric's state.

    Examples:
        Any function from images and prompts to scores will do, here the mean of the pixels:

        >>> metric = CLIPScore(lambda images, prompts: Scores(images.mean(dim=(1, 2, 3))))
        >>> metric.update(torch.zeros(1, 3, 8, 8), [Prompt("a night")])
        >>> metric.update(torch.ones(3, 3, 8, 8), [Prompt("a day")] * 3)
        >>> metric.compute()  # (0 + 1 + 1 + 1) / 4
        tensor(0.7500)
    """

    def __init__(self, scorer: Scorer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # In a tuple, so that a scorer that is a module does not enter this one's parameters.
        self._scorer = (scorer,)

    @torch.no_grad()
    def update(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> None:  # type: ignore[override]
        """Score images, RGB in [0, 1], against their prompts' texts, and add them."""
        super().update(self._scorer[0](images, prompts).values)


class CategoryMean(Metric):
    """Mean of one score per image, in each category and over all images.

    The mean over all images is not the mean of the categories' means unless they are equally large.

    Args:
        categories: their names, in the order of the table; by default HPSv3's twelve, in the order of the paper's Table 2.

    Examples:
        >>> metric = CategoryMean(["Plants", "Food"])
        >>> metric.update(torch.tensor([1.0, 2.0, 6.0]), ["food", "Plants", "Plants"])
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'All': 3.0, 'Plants': 4.0, 'Food': 1.0}
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    total: Tensor
    images: Tensor
    unscored: Tensor

    def __init__(self, categories: Sequence[str] = HPSV3_CATEGORIES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not categories or len({_plain(c) for c in (*categories, ALL)}) != len(categories) + 1:
            raise ValueError(f"categories need different names, at least one and none called {ALL}; got {list(categories)}")
        self.categories = tuple(categories)
        self.add_state("total", torch.zeros(len(categories), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(len(categories), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("unscored", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, " N"], categories: Sequence[str | None]) -> None:
        """Add images and the category of each; one without a score is NaN and counts in `unscored` only.

        Raises:
            ValueError: when there is not one category per image, or on one that is unknown; nothing is added then.
        """
        if len(values) != len(categories):
            raise ValueError(f"got {len(values)} scores and {len(categories)} categories; expected one category per score")
        places = torch.tensor([canonical_category(c, self.categories) for c in categories], dtype=torch.long)
        places, values = places.to(self.total.device), values.to(self.total.device)
        finite = values.isfinite()
        self.total.index_add_(0, places[finite], values[finite].double())
        self.images.index_add_(0, places[finite], torch.ones_like(places[finite]))
        self.unscored += (~finite).sum()

    def compute(self) -> dict[str, Float[Tensor, ""]]:
        """Return the mean of `All`, then of each category; NaN where no image has a score."""
        means = (self.total / self.images).float()
        overall = (self.total.sum() / self.images.sum()).float()
        return {ALL: overall, **dict(zip(self.categories, means.unbind(), strict=True))}
