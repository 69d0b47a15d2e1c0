"""What a step along a variant's gradient gains: its alignment, in Adam's metric, with the gradient G of the expected reward.

    <x, y> = sum_i x_i y_i / P_i,   P = sqrt(v) + eps,   v the bias-corrected second moment of one fixed AdamW state

The step of Adam along g is -P^-1 g times a learning rate. To first order it changes the expected reward
by <g, G>, and its length is |g|, in the inner product above; momentum is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.gradient_cosine import Estimate, inner_products, jackknife

Kind = Literal["mean", "batch"]
"""The gain of the mean gradient, or that of the gradient of a batch."""


def adam_metric(gradients: Iterable[Float[Tensor, " D"] | None], beta2: float, eps: float) -> Float[Tensor, " D"]:
    """Return P of an AdamW that has seen these gradients and moved nothing.

        v <- beta2 v + (1 - beta2) g^2,   P = sqrt(v / (1 - beta2^n)) + eps

    It is infinite, which leaves an entry out of every inner product, where no gradient but 0 came: there P = eps would have the
    entry outweigh all others, while a step of Adam along it has at most the length of the learning rate.

    Args:
        gradients: n of them that count; None, zero and what is not finite are no step.
        beta2: decay of the second moment, in [0, 1).
        eps: added to the root.

    Raises:
        ValueError: when none counts.

    Examples:
        >>> adam_metric([torch.tensor([3.0, 1.0, 0.0])], beta2=0.9, eps=1.0)
        tensor([4., 2., inf])
        >>> adam_metric([torch.tensor([1.0]), torch.tensor([7.0])], beta2=0.5, eps=0.0)  # sqrt((1/4 * 1 + 1/2 * 49) / (3/4))
        tensor([5.7446])
    """
    v, steps = None, 0
    for gradient in gradients:
        if gradient is None or not bool(gradient.isfinite().all()) or not bool(gradient.any()):
            continue
        squares = gradient.square()
        v, steps = squares * (1 - beta2) if v is None else v.mul_(beta2).add_(squares, alpha=1 - beta2), steps + 1
    if v is None:
        raise ValueError("no batch had a gradient, so that there is no metric: groups without variance teach nothing")
    return torch.where(v > 0, (v / (1 - beta2**steps)).sqrt() + eps, math.inf)


@dataclass(frozen=True)
class Products:
    """Inner products of two series of vectors x_i, y_i over the same batches: enough for the mean over pairs of different batches.

    Args:
        blocks: inner products of the blocks' sums of x and of y.
        same: of each block, the sum of <x_i, y_i> over its batches.

    Examples:
        Batches with x = 1, 2, 4 and y = 1, 1, 0, one in each block:

        >>> products = Products(torch.tensor([[1.0, 1, 0], [2, 2, 0], [4, 4, 0]]), torch.tensor([1.0, 2, 0]))
        >>> products.between([1, 1, 1])  # (1 + 2 + 4 + 4) / 6
        1.8333333333333333
        >>> products.between([1, 1, 1], without=0)  # 4 / 2
        2.0
        >>> products.within([1, 1, 1])
        1.0
    """

    blocks: Float[Tensor, "J J"]
    same: Float[Tensor, " J"]

    def between(self, counts: Sequence[int], without: int | None = None) -> float:
        """Return the mean of <x_i, y_j> over i other than j, which is unbiased for <E x, E y>; NaN for fewer than two batches."""
        n, total = sum(counts), float(self.blocks.sum() - self.same.sum())
        if without is not None:
            n -= counts[without]
            total += float(self.blocks[without, without] - self.blocks[without].sum() - self.blocks[:, without].sum())
            total += float(self.same[without])
        return total / (n * (n - 1)) if n > 1 else math.nan

    def within(self, counts: Sequence[int], without: int | None = None) -> float:
        """Return the mean of <x_i, y_i>; NaN without a batch."""
        n, total = sum(counts), float(self.same.sum())
        if without is not None:
            n, total = n - counts[without], total - float(self.same[without])
        return total / n if n else math.nan


@dataclass(frozen=True)
class Gain:
    """The gain of a variant's gradient g against G, whole and with any one block of batches left out.

        of the mean:      <E g, G> / (|E g| |G|)            how far the direction that all batches share points along G: its bias
        of a batch:       <E g, G> / (sqrt(E |g_i|^2) |G|)  what the step of one batch gains for its length: bias and noise

    Every product but |g_i|^2 is one of two different batches, so that no noise is in both factors: |E g|^2 and |G|^2 are the means
    over all ways to take independent halves. A square that comes out negative, for want of batches, has no root: the gain is NaN.

    Args:
        cross: products <g_i, G_j>.
        own: products <g_i, g_j>.
        target: products <G_i, G_j>.
        counts: batches of each block.

    Examples:
        >>> one = Products(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([1.0, 1.0]))  # two batches, all vectors the same
        >>> noisy = Products(torch.tensor([[9.0, 4.0], [4.0, 9.0]]), torch.tensor([9.0, 9.0]))  # |E g|^2 = 4, E |g_i|^2 = 9
        >>> gain = Gain(cross=one, own=noisy, target=one, counts=[1, 1])
        >>> gain.value("mean"), round(gain.value("batch"), 4)  # 1 / (2 * 1), 1 / (3 * 1)
        (0.5, 0.3333)
    """

    cross: Products
    own: Products
    target: Products
    counts: Sequence[int]

    def slope(self, kind: Kind, without: int | None = None) -> float:
        """Return the gain times |G|: how fast the expected reward rises along g."""
        length = self.own.between if kind == "mean" else self.own.within
        return _divided(self.cross.between(self.counts, without), _root(length(self.counts, without)))

    def value(self, kind: Kind, without: int | None = None) -> float:
        """Return the gain, in [-1, 1] but for its error.

        Args:
            without: a block to leave out.
        """
        return _divided(self.slope(kind, without), _root(self.target.between(self.counts, without)))

    def estimate(self, kind: Kind) -> Estimate:
        """Return the gain and its standard error, by a jackknife over blocks."""
        return self._jackknifed(lambda without: self.value(kind, without))

    def relative(self, kind: Kind, other: Gain) -> Estimate:
        """Return the gain as a multiple of that of `other`, of the same batches: |G| cancels, and with it most of the error."""
        return self._jackknifed(lambda without: _divided(self.slope(kind, without), other.slope(kind, without)))

    def _jackknifed(self, value: Callable[[int | None], float]) -> Estimate:
        return Estimate(value(None), jackknife([value(j) for j, count in enumerate(self.counts) if count]))


class GainSums:
    """Running sums over batches of gradients x P^-1/2, so that their plain inner products are those of the metric.

    It holds `blocks` vectors of the gradient's size. A batch without a gradient counts as one whose gradient is 0.

    Args:
        blocks: J; batch i goes to block i mod J.
        metric: P.

    Examples:
        >>> g, G = GainSums(2, torch.tensor([1.0, 4.0])), GainSums(2, torch.tensor([1.0, 4.0]))
        >>> for batch in range(2):
        ...     target = torch.tensor([0.0, 2.0])
        ...     g.add(batch, torch.tensor([1.0, 2.0]), target)
        ...     G.add(batch, target, target)
        >>> round(g.compute(G).value("mean"), 4)  # (1 * 0 + 2 * 2 / 4) / sqrt((1 + 4 / 4) * 4 / 4)
        0.7071
        >>> G.compute(G).value("mean")
        1.0
    """

    def __init__(self, blocks: int, metric: Float[Tensor, " D"]) -> None:
        self.blocks = blocks
        self._scale = metric.rsqrt()
        self._sums: list[Tensor | None] = [None] * blocks
        self._own = torch.zeros(blocks, dtype=torch.float64)
        self._cross = torch.zeros(blocks, dtype=torch.float64)
        self._counts = [0] * blocks

    def add(self, batch: int, gradient: Float[Tensor, " D"] | None, target: Float[Tensor, " D"] | None) -> None:
        """Add the gradient of a batch, and what G is estimated as in the same batch; None and what is not finite stand for 0.

        Args:
            batch: its number, from 0.
        """
        block = batch % self.blocks
        self._counts[block] += 1
        if gradient is None or not bool(gradient.isfinite().all()):
            return
        scaled = gradient * self._scale
        self._own[block] += float(scaled.double().square().sum())
        if target is not None and bool(target.isfinite().all()):
            self._cross[block] += float(scaled.double() @ (target * self._scale).double())
        before = self._sums[block]
        self._sums[block] = scaled if before is None else before.add_(scaled)

    def state_dict(self) -> dict[str, Any]:
        """The sums as plain values, for a file."""
        return {"sums": self._sums, "own": self._own, "cross": self._cross, "counts": self._counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of another object of the same metric, in as many blocks as it has."""
        self.blocks = len(state["counts"])
        self._sums, self._counts = list(state["sums"]), list(state["counts"])
        self._own, self._cross = state["own"].cpu(), state["cross"].cpu()

    def compute(self, target: GainSums) -> Gain:
        """Return the gain against the target, whose gradients were added to `target` batch by batch."""
        J = self.blocks
        both = [*self.sums(), *target.sums()]
        products = inner_products(both)
        return Gain(
            cross=Products(products[:J, J:], self._cross),
            own=Products(products[:J, :J], self._own),
            target=Products(products[J:, J:], target.squares()),
            counts=list(self._counts),
        )

    def sums(self) -> list[Float[Tensor, " D"]]:
        """The blocks' sums."""
        return [torch.zeros_like(self._scale) if s is None else s for s in self._sums]

    def squares(self) -> Float[Tensor, " J"]:
        """Of each block, the sum of the squared lengths."""
        return self._own.clone()


def _root(square: float) -> float:
    return math.sqrt(square) if square > 0 else math.nan


def _divided(a: float, b: float) -> float:
    return a / b if b else math.nan
