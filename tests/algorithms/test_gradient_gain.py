"""The gain against a brute force over pairs of batches, its known limits, and its error against the spread of repetitions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.advantages import leave_one_out
from varrl_lightning.algorithms.gradient_cosine import Estimate, jackknife
from varrl_lightning.algorithms.gradient_gain import Gain, GainSums, Kind, adam_metric

P = torch.tensor([1.0, 4.0, 0.25])
KINDS: tuple[Kind, ...] = ("mean", "batch")


def gain_of(gradients: Tensor, targets: Tensor, blocks: int, metric: Tensor) -> Gain:
    g, G = GainSums(blocks, metric), GainSums(blocks, metric)
    for batch, (gradient, target) in enumerate(zip(gradients, targets, strict=True)):
        g.add(batch, gradient, target)
        G.add(batch, target, target)
    return g.compute(G)


def by_pairs(gradients: Tensor, targets: Tensor, metric: Tensor, kind: Kind) -> float:
    """Products of different batches, one by one."""

    def product(x: Tensor, y: Tensor) -> float:
        return sum(float(a * b / p) for a, b, p in zip(x, y, metric, strict=True))

    pairs = list(itertools.permutations(range(len(gradients)), 2))
    cross = sum(product(gradients[i], targets[j]) for i, j in pairs) / len(pairs)
    target = sum(product(targets[i], targets[j]) for i, j in pairs) / len(pairs)
    own = sum(product(gradients[i], gradients[j]) for i, j in pairs) / len(pairs)
    if kind == "batch":
        own = sum(product(g, g) for g in gradients) / len(gradients)
    return cross / math.sqrt(own * target)


def drawn(batches: int, mean: Tensor, noise: float, seed: int) -> Tensor:
    return mean + noise * torch.randn(batches, len(mean), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_pairs_say_whole_and_without_a_block(kind: Kind) -> None:
    gradients, targets = drawn(8, torch.tensor([1.0, 2.0, 0.0]), 0.5, 0), drawn(8, torch.tensor([2.0, 0.0, 1.0]), 0.5, 1)
    found = gain_of(gradients, targets, 3, P)
    assert found.counts == [3, 3, 2]
    assert found.value(kind) == pytest.approx(by_pairs(gradients, targets, P, kind), abs=1e-5)
    left = []
    for block in range(3):
        kept = [i for i in range(8) if i % 3 != block]
        left.append(by_pairs(gradients[kept], targets[kept], P, kind))
    assert [found.value(kind, without=j) for j in range(3)] == pytest.approx(left, abs=1e-5)
    assert found.estimate(kind).standard_error == pytest.approx(jackknife(left), abs=1e-5)


def test_the_product_is_that_of_the_metric() -> None:
    """g = (1, 2, 0) and G = (2, 0, 1): <g, G> = 2, |g|^2 = 1 + 4/4, |G|^2 = 4 + 4 when P = (1, 4, 1/4)."""
    g, G = torch.tensor([[1.0, 2.0, 0.0]]).repeat(3, 1), torch.tensor([[2.0, 0.0, 1.0]]).repeat(3, 1)
    for kind in KINDS:
        assert gain_of(g, G, 3, P).value(kind) == pytest.approx(2 / math.sqrt(2 * 8))
        assert gain_of(g, G, 3, P).estimate(kind).standard_error == pytest.approx(0, abs=1e-6)
        assert gain_of(-7 * g, G, 3, P).value(kind) == pytest.approx(-0.5)
        assert gain_of(g, G, 3, torch.tensor([1.0, math.inf, 0.25])).value(kind) == pytest.approx(2 / math.sqrt(8))


def test_of_the_target_itself_it_is_1_and_of_what_is_orthogonal_0() -> None:
    """With noise of its own in each, so that only the mean over repetitions is; a batch's is less by its noise."""
    D, noise = 30, 1.0
    one, other = 2 * torch.eye(D)[0], 2 * torch.eye(D)[1]
    same = [gain_of(drawn(24, one, noise, 2 * s), drawn(24, one, noise, 2 * s + 1), 3, torch.ones(D)) for s in range(40)]
    mean, batch = (torch.tensor([gain.value(kind) for gain in same]) for kind in KINDS)
    assert float(mean.mean()) == pytest.approx(1, abs=0.02)
    assert float(batch.mean()) == pytest.approx(math.sqrt(4 / (4 + D)), abs=0.01)
    orthogonal = [gain_of(drawn(24, other, noise, 2 * s), drawn(24, one, noise, 2 * s + 1), 3, torch.ones(D)) for s in range(40)]
    assert float(torch.tensor([gain.value("mean") for gain in orthogonal]).mean()) == pytest.approx(0, abs=0.02)
    assert gain_of(drawn(9, one, 1.0, 0), drawn(9, one, 1.0, 0), 3, torch.ones(D)).value("mean") == pytest.approx(1)


def test_the_standard_errors_are_the_spreads_over_repetitions() -> None:
    """Of the gain, and of its multiple of another's, which the noise of G that both share does not blur."""
    D, repetitions = 30, 100
    found: dict[tuple[Kind, bool], list[Estimate]] = {(kind, relative): [] for kind in KINDS for relative in (False, True)}
    for seed in range(repetitions):
        target = drawn(16, torch.eye(D)[0], 0.3, 3 * seed)
        one = gain_of(drawn(16, torch.eye(D)[0], 0.3, 3 * seed + 1), target, 8, torch.ones(D))
        other = gain_of(drawn(16, torch.eye(D)[0] + torch.eye(D)[1], 0.3, 3 * seed + 2), target, 8, torch.ones(D))
        for (kind, relative), estimates in found.items():
            estimates.append(other.relative(kind, one) if relative else other.estimate(kind))
    noise = D * 0.09
    limits = {"mean": math.sqrt(1 / 2), "batch": math.sqrt((1 + noise) / (2 + noise))}
    for (kind, relative), estimates in found.items():
        values = torch.tensor([each.value for each in estimates])
        said = math.sqrt(sum(each.standard_error**2 for each in estimates) / repetitions)
        assert 0.8 < said / float(values.std()) < 1.3
        assert not relative or float(values.mean()) == pytest.approx(limits[kind], abs=0.02)


def test_a_batch_without_a_gradient_counts_as_one_of_0() -> None:
    """Half of the batches say nothing: the gain of the mean does not see that the mean is half as long, that of a batch does."""
    g, G = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0])
    sums, target = GainSums(2, torch.ones(2)), GainSums(2, torch.ones(2))
    for batch in range(200):
        sums.add(batch, (None, g)[batch // 2 % 2], G)
        target.add(batch, G, G)
    found = sums.compute(target)
    assert found.counts == [100, 100]
    assert found.value("mean") == pytest.approx(1, abs=0.01)
    assert found.value("batch") == pytest.approx(0.5 / math.sqrt(0.5), abs=0.001)


def test_without_a_length_there_is_no_gain() -> None:
    opposite = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert math.isnan(gain_of(opposite, torch.ones(4, 1), 4, torch.ones(1)).value("mean"))
    assert gain_of(opposite, torch.ones(4, 1), 4, torch.ones(1)).value("batch") == 0
    nothing = GainSums(3, torch.ones(1)).compute(GainSums(3, torch.ones(1)))
    assert math.isnan(nothing.value("mean"))
    assert math.isnan(nothing.estimate("batch").standard_error)


def test_the_metric_is_that_of_adamw() -> None:
    gradients = drawn(6, torch.tensor([1.0, 0.1, 0.0]), 0.2, 0)
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.0, betas=(0.9, 0.95), eps=1e-3)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    state = optimizer.state[parameter]
    wanted = (state["exp_avg_sq"] / (1 - 0.95 ** int(state["step"]))).sqrt() + 1e-3
    torch.testing.assert_close(adam_metric(gradients, 0.95, 1e-3), wanted)
    none = [None, *gradients[:3], torch.zeros(3), torch.full((3,), math.nan), *gradients[3:]]
    torch.testing.assert_close(adam_metric(none, 0.95, 1e-3), wanted)
    with pytest.raises(ValueError, match="no batch had a gradient"):
        adam_metric([None, torch.zeros(3)], 0.95, 1e-3)


def test_a_branch_alone_in_its_group_has_no_advantage() -> None:
    values = torch.tensor([[5.0, math.nan, math.nan], [1.0, 2.0, 6.0]])
    found = leave_one_out(values, values.isfinite())
    assert found.tolist() == [[0.0, 0.0, 0.0], [-3.0, -1.5, 4.5]]
