"""How far gradients of independent batches agree: their mean cosine and its jackknife standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2**20
"""Entries of the sums that are in double precision at one time."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class BlockSums:
    """What is kept of the gradients g_i of B batches: enough for their mean cosine, with any one block of batches left out.

    Args:
        gram: inner products of the blocks' sums of g_i / |g_i|.
        counts: batches of each block.
        signal: (|sum_i g_i|^2 - sum_i |g_i|^2) / ((B - 1) sum_i |g_i|^2): estimates |E g|^2 / E |g|^2, the share of the squared
            length that batches have in common.
        length: sqrt(mean |g_i|^2).
    """

    gram: Float[Tensor, "J J"]
    counts: Sequence[int]
    signal: float
    length: float

    def cosine(self, without: int | None = None) -> float:
        """Mean cosine of all pairs of batches, u_i = g_i / |g_i|; NaN of fewer than two.

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
        """The mean cosine and its standard error; see `jackknife`."""
        kept = [j for j, count in enumerate(self.counts) if count]
        return Estimate(self.cosine(), jackknife([self.cosine(without=j) for j in kept]))

    def above(self, other: BlockSums) -> Estimate:
        """This mean cosine less another one from the same batches, with the standard error of this paired difference."""
        both = range(len(self.counts))
        kept = [j for j in both if self.counts[j] or other.counts[j]]
        return Estimate(self.cosine() - other.cosine(), jackknife([self.cosine(j) - other.cosine(j) for j in kept]))


def jackknife(without: Sequence[float]) -> float:
    """Standard error of a figure from its values with one of J blocks left out; NaN of fewer than two.

        sqrt((J - 1) / J * sum_j (value_j - mean of the values)^2)

    With a batch in each block it is the delete-one jackknife. Its square is unbiased for what is linear in the batches and too
    large for the rest: where gradients have next to nothing in common, which leaves products of two batches alone, the standard
    error is up to sqrt(2) times the true one, never too small in expectation.
    """
    J = len(without)
    if J < 2:
        return math.nan
    mean = sum(without) / J
    return math.sqrt((J - 1) / J * sum((value - mean) ** 2 for value in without))


class GradientSums:
    """Running sums over batches, whose gradients are given one by one.

    Holds `blocks + 1` vectors of the gradient's size, D: 4 (blocks + 1) D bytes, however many batches there are.

    Args:
        blocks: J; batch i goes to block i mod J.
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
        """Those that count."""
        return sum(self._counts)

    def add(self, batch: int, gradient: Float[Tensor, " D"] | None) -> None:
        """Count a batch; None and zero stand for no gradient.

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

    def compute(self) -> BlockSums:
        """What they come to."""
        gram = torch.zeros(self.blocks, self.blocks, dtype=torch.float64)
        some = [j for j, units in enumerate(self._units) if units is not None]
        if some:
            gram[torch.tensor(some)[:, None], torch.tensor(some)] = _gram([u for u in self._units if u is not None])
        B, squares = self.batches, self._squares
        common = math.nan
        if self._sum is not None and B > 1:
            common = (float(_gram([self._sum])) - squares) / ((B - 1) * squares)
        return BlockSums(gram, list(self._counts), common, math.sqrt(squares / B) if B else math.nan)


def _gram(rows: Sequence[Float[Tensor, " D"]]) -> Float[Tensor, "J J"]:
    """Inner products in double precision: the figures are small differences of them."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for first in range(0, len(rows[0]), CHUNK):
        part = torch.stack([row[first : first + CHUNK] for row in rows]).double()
        total += part @ part.T
    return total.cpu()
