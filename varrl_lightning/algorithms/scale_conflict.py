"""Whether the gradients of different scales pull against each other: their norms and cosines, freed of the noise of batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.gradient_cosine import Estimate, inner_products, jackknife

TWO_ERRORS = 2.0
"""Standard errors on either side of a value within which the true one is taken to be."""


@dataclass(frozen=True)
class ScaleConflict:
    """Inner products of the gradients g_t^b of T scales over B batches, of which any one block can be left out.

    Cosines of single batches are near 0 where noise prevails, whatever the gradients have in common. Here they are of the expected
    gradients G_t, from products of different batches alone, whose noise is independent:

        <G_s, G_t> = sum_{b != c} g_s^b . g_t^c / (B (B - 1)),   cos(s, t) = <G_s, G_t> / sqrt(<G_s, G_s> <G_t, G_t>)

    The products are without bias. A cosine is NaN where a squared length is estimated at 0 or less: it cannot be told.

    Args:
        across: products of the blocks' sums, [i, s, j, t] that of scale s in block i and scale t in block j.
        within: sums over the batches of a block of g_s^b . g_t^b.
        counts: batches of each block.
        batch_cosine: mean of the cosines of g_s^b and g_t^b of one batch, noise included.

    Examples:
        Two scales that pull against each other, the same in three batches:

        >>> sums = ConflictSums(scales=2, blocks=3)
        >>> for batch in range(3):
        ...     sums.add(batch, [torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])])
        >>> conflict = sums.compute()
        >>> round(conflict.cosine([0], [1]).value, 4), round(conflict.norm(1), 4)
        (-0.7071, 2.0)
    """

    across: Float[Tensor, "J T J T"]
    within: Float[Tensor, "J T T"]
    counts: Sequence[int]
    batch_cosine: Float[Tensor, "T T"]

    @property
    def scales(self) -> int:
        """T, how many scales there are."""
        return len(self.batch_cosine)

    def norm(self, scale: int) -> float:
        """sqrt(mean_b |g_t^b|^2): the length of a batch's gradient, noise included."""
        return math.sqrt(float(self.within[:, scale, scale].sum()) / max(sum(self.counts), 1))

    def common(self, without: int | None = None) -> Float[Tensor, "T T"]:
        """<G_s, G_t> of all pairs of scales; NaN for fewer than two batches.

        Args:
            without: a block to leave out.
        """
        kept = [j for j in range(len(self.counts)) if j != without]
        B = sum(self.counts[j] for j in kept)
        if B < 2:
            return torch.full_like(self.batch_cosine, torch.nan)
        rows = torch.tensor(kept)
        products = self.across[rows][:, :, rows].sum(dim=(0, 2)) - self.within[rows].sum(dim=0)
        return products / (B * (B - 1))

    def cosine(self, first: Sequence[int], second: Sequence[int]) -> Estimate:
        """The cosine between the gradients of two sets of scales, each summed, and its jackknife standard error."""
        return self._estimate(lambda common: _cosine(common, first, second))

    def agreement(self, scale: int) -> Estimate:
        """|G_t|^2 / E |g_t|^2: the share of a batch's squared gradient that all batches have in common, in [0, 1] but for noise."""

        def share(common: Tensor, without: int | None) -> float:
            kept = [j for j in range(len(self.counts)) if j != without]
            squares = float(sum(self.within[j, scale, scale] for j in kept)) / max(sum(self.counts[j] for j in kept), 1)
            return float(common[scale, scale]) / squares if squares > 0 else math.nan

        blocks = [j for j, count in enumerate(self.counts) if count]
        return Estimate(share(self.common(), None), jackknife([share(self.common(j), j) for j in blocks]))

    def split(self, m: int) -> Estimate:
        """The cosine between the gradients of the scales before m and of those from m on."""
        return self.cosine(range(m), range(m, self.scales))

    def _estimate(self, value: Callable[[Tensor], float]) -> Estimate:
        blocks = [j for j, count in enumerate(self.counts) if count]
        return Estimate(value(self.common()), jackknife([value(self.common(j)) for j in blocks]))


class ConflictSums:
    """Running sums over batches of the gradients of T scales.

    It holds `blocks` * T vectors of the gradient's size, D: 4 blocks T D bytes.

    Args:
        scales: T.
        blocks: J; batch b goes to block b mod J.

    Raises:
        ValueError: for fewer than two blocks.

    Examples:
        >>> sums = ConflictSums(scales=1, blocks=2)
        >>> for batch, gradient in enumerate([[1.0, 2.0], [3.0, 0.0]]):
        ...     sums.add(batch, [torch.tensor(gradient)])
        >>> sums.compute().common()  # the product of the two batches
        tensor([[3.]], dtype=torch.float64)
    """

    def __init__(self, scales: int, blocks: int) -> None:
        if blocks < 2:
            raise ValueError(f"blocks must be at least 2, to leave one out, got {blocks}")
        self.scales, self.blocks, self.left_out = scales, blocks, 0
        self._sums: list[list[Tensor | None]] = [[None] * scales for _ in range(blocks)]
        self._within = torch.zeros(blocks, scales, scales, dtype=torch.float64)
        self._cosines = torch.zeros(scales, scales, dtype=torch.float64)
        self._counts = [0] * blocks

    def add(self, batch: int, gradients: Sequence[Float[Tensor, " D"] | None]) -> None:
        """Add the gradients of a batch, scale by scale; None stands for no gradient.

        A batch without any gradient, or with one that is not finite, is left out and counted.

        Args:
            batch: its number, from 0.
        """
        there = [t for t, gradient in enumerate(gradients) if gradient is not None]
        products = torch.zeros(self.scales, self.scales, dtype=torch.float64)
        if there:
            index = torch.tensor(there)
            products[index[:, None], index] = inner_products([g for g in gradients if g is not None])
        if not (torch.isfinite(products).all() and products.diagonal().sum() > 0):
            self.left_out += 1
            return
        block = batch % self.blocks
        for t in there:
            before, gradient = self._sums[block][t], gradients[t]
            assert gradient is not None
            self._sums[block][t] = gradient.clone() if before is None else before.add_(gradient)
        lengths = products.diagonal().sqrt()
        self._within[block] += products
        self._cosines += torch.where(lengths[:, None] * lengths > 0, products / (lengths[:, None] * lengths), 0.0).nan_to_num()
        self._counts[block] += 1

    def compute(self) -> ScaleConflict:
        """The inner products of the batches added so far."""
        J, T = self.blocks, self.scales
        places = [(j, t) for j in range(J) for t in range(T) if self._sums[j][t] is not None]
        across = torch.zeros(J * T, J * T, dtype=torch.float64)
        if places:
            index = torch.tensor([j * T + t for j, t in places])
            across[index[:, None], index] = inner_products([v for row in self._sums for v in row if v is not None])
        mean = self._cosines / max(sum(self._counts), 1)
        return ScaleConflict(across.view(J, T, J, T), self._within.clone(), list(self._counts), mean)


def _cosine(common: Float[Tensor, "T T"], first: Sequence[int], second: Sequence[int]) -> float:
    a, b = torch.tensor(list(first)), torch.tensor(list(second))
    if not len(a) or not len(b):
        return math.nan
    product, squares = float(common[a][:, b].sum()), [float(common[i][:, i].sum()) for i in (a, b)]
    return product / math.sqrt(squares[0] * squares[1]) if min(squares) > 0 else math.nan


@dataclass(frozen=True)
class Suggestion:
    """The m at which prefix and suffix conflict most.

    Args:
        m: the one with the lowest cosine, or None where no other could be told from it.
        lowest: the m with the lowest cosine.
        splits: the cosine of every m.

    Examples:
        >>> told = Suggestion(m=3, lowest=3, splits={2: Estimate(0.4, 0.05), 3: Estimate(-0.3, 0.05)})
        >>> told.splits[told.m].value
        -0.3
    """

    m: int | None
    lowest: int | None
    splits: dict[int, Estimate]


def suggest_m(conflict: ScaleConflict) -> Suggestion:
    """The m in 2 .. T - 1 whose prefix and suffix have the lowest cosine, if its interval overlaps that of no other m.

    An interval is two standard errors on either side.

    Splitting there takes apart what pulls against each other most; whether training is better for it, only training tells.

    Examples:
        Four scales, of which the last pulls against the others, the same in three batches:

        >>> sums = ConflictSums(scales=4, blocks=3)
        >>> for batch in range(3):
        ...     sums.add(batch, [torch.tensor([g]) for g in (1.0, 1.0, 2.0, -1.5)])
        >>> suggestion = suggest_m(sums.compute())
        >>> suggestion.m, {m: split.value for m, split in suggestion.splits.items()}
        (3, {2: 1.0, 3: -1.0})
    """
    splits = {m: conflict.split(m) for m in range(2, conflict.scales)}
    known = {m: split for m, split in splits.items() if not math.isnan(split.value) and not math.isnan(split.standard_error)}
    if not known:
        return Suggestion(None, None, splits)
    lowest = min(known, key=lambda m: known[m].value)
    top = known[lowest].value + TWO_ERRORS * known[lowest].standard_error
    others = [split.value - TWO_ERRORS * split.standard_error for m, split in known.items() if m != lowest]
    told = len(known) == len(splits) and all(top < bottom for bottom in others)
    return Suggestion(lowest if told else None, lowest, splits)
