"""How far gradients of independent batches agree: their mean cosine and its jackknife standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**20
"""Number of entries of a sum that are converted to double precision at one time."""


@dataclass(frozen=True)
class Estimate:
    """An estimated value and its standard error.

    Examples:
        >>> agreement = Estimate(value=0.3, standard_error=0.1)
        >>> round(agreement.value / agreement.standard_error)  # how many standard errors it is above zero
        3
    """

    value: float
    standard_error: float


@dataclass(frozen=True)
class BlockSums:
    """Sums over the gradients g_i of B batches: enough for their mean cosine, with any one block of batches left out.

    Args:
        gram: inner products of the blocks' sums of g_i / |g_i|.
        counts: batches of each block.
        signal: (|sum_i g_i|^2 - sum_i |g_i|^2) / ((B - 1) sum_i |g_i|^2): estimates |E g|^2 / E |g|^2, the share of the squared
            length that batches have in common.
        length: sqrt(mean |g_i|^2).

    Examples:
        Two batches, one in each block, whose gradients have the cosine 0.6:

        >>> sums = BlockSums(torch.tensor([[1.0, 0.6], [0.6, 1.0]]), [1, 1], signal=0.6, length=1.0)
        >>> round(sums.cosine(), 4)  # (3.2 - 2) / (2 * 1)
        0.6
        >>> sums.cosine(without=0)  # one batch has no pair
        nan
    """

    gram: Float[Tensor, "J J"]
    counts: Sequence[int]
    signal: float
    length: float

    def cosine(self, without: int | None = None) -> float:
        """Return the mean cosine of all pairs of batches, u_i = g_i / |g_i|; NaN for fewer than two.

            (|sum_i u_i|^2 - B) / (B (B - 1))

        Args:
            without: a block to leave out.
        """
        n, squared = sum(self.counts), float(self.gram.sum())
        if without is not None:
            n -= self.counts[without]
            squared += float(self.gram[without, without] - 2 * self.gram[without].sum())
        return (squared - n) / (n * (n - 1)) if n > 1 else math.nan

    def estimate(self) -> Estimate:
        """Return the mean cosine and its standard error; see `jackknife`."""
        kept = [j for j, count in enumerate(self.counts) if count]
        return Estimate(self.cosine(), jackknife([self.cosine(without=j) for j in kept]))

    def above(self, other: BlockSums) -> Estimate:
        """Return this mean cosine less that of `other`, of the same batches, with the standard error of the paired difference."""
        both = range(len(self.counts))
        kept = [j for j in both if self.counts[j] or other.counts[j]]
        return Estimate(self.cosine() - other.cosine(), jackknife([self.cosine(j) - other.cosine(j) for j in kept]))


def jackknife(without: Sequence[float]) -> float:
    """Return the standard error of a value, given what it becomes with each of J blocks left out; NaN for fewer than two.

        sqrt((J - 1) / J * sum_j (value_j - mean of the values)^2)

    With a batch in each block it is the delete-one jackknife. Its square is unbiased for what is linear in the batches and too
    large for the rest: where gradients have next to nothing in common, which leaves products of two batches alone, the standard
    error is up to sqrt(2) times the true one, never too small in expectation.

    Examples:
        >>> round(jackknife([1.0, 0.0, 0.0]), 4)  # sqrt(2/3 * ((2/3)^2 + (1/3)^2 + (1/3)^2))
        0.6667
        >>> jackknife([0.5, 0.5, 0.5])
        0.0
    """
    J = len(without)
    if J < 2:
        return math.nan
    mean = sum(without) / J
    return math.sqrt((J - 1) / J * sum((value - mean) ** 2 for value in without))


class GradientSums:
    """Running sums over batches, whose gradients are added one by one.

    It holds `blocks + 1` vectors of the gradient's size, D: 4 (blocks + 1) D bytes, however many batches there are.

    Args:
        blocks: J; batch i goes to block i mod J.

    Examples:
        >>> running = GradientSums(blocks=3)
        >>> for batch, gradient in enumerate([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]):
        ...     running.add(batch, torch.tensor(gradient))
        >>> sums = running.compute()
        >>> round(sums.cosine(), 4)  # the three pairs have the cosines 1, 0 and 0
        0.3333
        >>> sums.cosine(without=2)  # leaves the pair of equal gradients
        1.0
        >>> round(sums.estimate().standard_error, 4)  # jackknife([0, 0, 1])
        0.6667
    """

    def __init__(self, blocks: int) -> None:
        if blocks < 2:
            raise ValueError(f"blocks must be at least 2, to leave one out, got {blocks}")
        self.blocks = blocks
        self.left_out = 0
        """Batches without a gradient, or with one that is not finite."""
        self._units: list[Tensor | None] = [None] * blocks
        self._counts = [0] * blocks
        self._sum: Tensor | None = None
        self._squares = 0.0

    @property
    def batches(self) -> int:
        """Number of batches that count: those with a finite gradient other than zero."""
        return sum(self._counts)

    def add(self, batch: int, gradient: Float[Tensor, " D"] | None) -> None:
        """Add the gradient of a batch; None and zero stand for no gradient.

        Args:
            batch: its number, from 0.
        """
        length = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
        if gradient is None or not (length > 0 and math.isfinite(length)):
            self.left_out += 1
            return
        block = batch % self.blocks
        unit, units = gradient / length, self._units[block]
        self._units[block] = unit if units is None else units.add_(unit)
        self._counts[block] += 1
        self._sum = gradient.clone() if self._sum is None else self._sum.add_(gradient)
        self._squares += length**2

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain values, for a file."""
        return {"units": self._units, "counts": self._counts, "sum": self._sum, "squares": self._squares, "left_out": self.left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of another object, in as many blocks as it has."""
        self.blocks = len(state["counts"])
        self._units, self._counts = list(state["units"]), list(state["counts"])
        self._sum, self._squares, self.left_out = state["sum"], state["squares"], state["left_out"]

    def compute(self) -> BlockSums:
        """Return the sums of the batches added so far."""
        gram = torch.zeros(self.blocks, self.blocks, dtype=torch.float64)
        filled = [j for j, units in enumerate(self._units) if units is not None]
        if filled:
            gram[torch.tensor(filled)[:, None], torch.tensor(filled)] = inner_products([u for u in self._units if u is not None])
        B, squares = self.batches, self._squares
        common = math.nan
        if self._sum is not None and B > 1:
            common = (float(inner_products([self._sum])) - squares) / ((B - 1) * squares)
        return BlockSums(gram, list(self._counts), common, math.sqrt(squares / B) if B else math.nan)


def inner_products(rows: Sequence[Float[Tensor, " D"]]) -> Float[Tensor, "J J"]:
    """Return the inner products in double precision: the estimates are small differences of them.

    Examples:
        >>> inner_products([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])])
        tensor([[5., 3.],
                [3., 9.]], dtype=torch.float64)
    """
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for first in range(0, len(rows[0]), CHUNK):
        part = torch.stack([row[first : first + CHUNK] for row in rows]).double()
        total += part @ part.T
    return total.cpu()
