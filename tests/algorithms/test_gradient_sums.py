"""The mean cosine against a brute force and its known limits, its standard error against the spread of repetitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.tiny import mean_cosine
from varrl_lightning.algorithms.gradient_cosine import BlockSums, GradientSums, jackknife


def sums_of(gradients: Tensor, blocks: int) -> BlockSums:
    sums = GradientSums(blocks)
    for batch, gradient in enumerate(gradients):
        sums.add(batch, gradient)
    return sums.compute()


def drawn(batches: int, signal: float, seed: int, D: int = 40) -> Tensor:
    """Gradients whose mean has the length `signal` times that of the noise."""
    noise = torch.randn(batches, D, generator=torch.Generator().manual_seed(seed))
    return noise + signal * math.sqrt(D) * torch.eye(D)[0]


def test_the_cosine_is_the_mean_over_pairs_whole_and_without_a_block() -> None:
    gradients = drawn(8, 0.5, 0) * torch.arange(1, 9)[:, None]
    found = sums_of(gradients, 3)
    assert found.counts == [3, 3, 2]
    assert found.cosine() == pytest.approx(mean_cosine(gradients), abs=1e-6)
    left = [mean_cosine([g for i, g in enumerate(gradients) if i % 3 != block]) for block in range(3)]
    assert [found.cosine(without=j) for j in range(3)] == pytest.approx(left, abs=1e-6)
    error = math.sqrt(2 / 3 * sum((x - sum(left) / 3) ** 2 for x in left))
    assert found.estimate().standard_error == pytest.approx(error, abs=1e-6)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = [1.0, 4.0, 7.0, 0.0]
    left = [(12.0 - x) / 3 for x in values]
    assert jackknife(left) == pytest.approx(float(torch.tensor(values).std()) / 2)
    assert math.isnan(jackknife([1.0]))


def test_the_limit_is_the_share_of_the_signal() -> None:
    """g = mu + e, e ~ N(0, I) in many dimensions: all |g|^2 are near |mu|^2 + D, and the cosine near |mu|^2 / (|mu|^2 + D)."""
    found = sums_of(drawn(200, 0.5, 1, D=4000), 20)
    limit = 0.25 / 1.25
    assert found.estimate().value == pytest.approx(limit, abs=0.005)
    assert found.signal == pytest.approx(limit, abs=0.005)
    assert found.length == pytest.approx(math.sqrt(1.25 * 4000), rel=0.01)


def test_the_signal_is_the_mean_inner_product_over_the_mean_squared_length() -> None:
    gradients = drawn(5, 0.3, 2).double()
    products = [float(a @ b) for a, b in itertools.combinations(gradients, 2)]
    expected = sum(products) / 10 / float(gradients.square().sum(dim=1).mean())
    assert sums_of(gradients.float(), 5).signal == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("blocks", [40, 20])
@pytest.mark.parametrize(("signal", "least", "most"), [(0.5, 0.85, 1.2), (0.0, 1.1, 1.6)])
def test_the_standard_error_is_the_spread_over_repetitions(blocks: int, signal: float, least: float, most: float) -> None:
    """Where there is no signal it is too large, by up to sqrt(2)."""
    found = [sums_of(drawn(40, signal, seed), blocks).estimate() for seed in range(300)]
    spread = float(torch.tensor([each.value for each in found]).std())
    said = math.sqrt(sum(each.standard_error**2 for each in found) / len(found))
    assert least < said / spread < most
    mean = sum(each.value for each in found) / len(found)
    assert mean == pytest.approx(0.0 if signal == 0 else 0.2, abs=4 * spread / math.sqrt(300) + (0.01 if signal else 0))


def test_a_difference_is_paired() -> None:
    """Two measures of the same batches differ by far less than either is uncertain; as said by the spread of the difference."""
    differences, errors, apart = [], [], []
    for seed in range(200):
        one = drawn(30, 0.5, seed)
        other = one + 0.2 * drawn(30, 0.0, 1000 + seed)
        a, b = sums_of(one, 15), sums_of(other, 15)
        above = b.above(a)
        differences.append(above.value)
        errors.append(above.standard_error**2)
        apart.append(a.estimate().standard_error ** 2 + b.estimate().standard_error ** 2)
    spread, said = float(torch.tensor(differences).std()), math.sqrt(sum(errors) / 200)
    assert 0.85 < said / spread < 1.25
    assert said < 0.5 * math.sqrt(sum(apart) / 200)
    assert sums_of(drawn(6, 0.5, 0), 3).above(sums_of(drawn(6, 0.5, 0), 3)).standard_error == 0


def test_what_is_no_gradient_is_left_out() -> None:
    gradients = drawn(6, 0.5, 3)
    sums = GradientSums(3)
    for batch, gradient in enumerate((gradients[0], None, gradients[1], gradients[2] * 0, gradients[3] * math.inf, gradients[4])):
        sums.add(batch, gradient)
    assert (sums.batches, sums.left_out) == (3, 3)
    assert sums.compute().cosine() == pytest.approx(mean_cosine(gradients[[0, 1, 4]]), abs=1e-6)


def test_of_nothing_there_is_no_figure() -> None:
    found = GradientSums(4).compute()
    assert all(map(math.isnan, (found.cosine(), found.estimate().standard_error, found.signal, found.length)))
    with pytest.raises(ValueError, match="blocks must be at least 2"):
        GradientSums(1)
