"""Stratified uniforms: each row's are uniform and independent of each other, and a group covers [0, 1) evenly. Costs a second."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.noise import Strata, fold, row_key, uniforms
from varrl_lightning.algorithms.sampling import inverse_cdf

WORD, GRID = 2**64, 2**24
GAMMA = 0x9E3779B97F4A7C15


def groups(number: int, A: int) -> tuple[Tensor, Strata]:
    """The keys of all rows of some groups, group by group."""
    keys = torch.tensor([row_key(0, 0, str(i)) for i in range(number)]).repeat_interleave(A)
    numbers = torch.arange(A).repeat(number)
    return fold(keys, numbers), Strata(keys, numbers, A)


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def test_they_are_the_uniforms_of_the_rows_moved_into_the_strata_of_a_permutation() -> None:
    """In Python's integers, which are exact: the rank of a row's draw, then (s + u) / A rounded down."""
    A, scale, count = 6, 2, 40
    keys, strata = groups(3, A)
    plain = uniforms(keys, scale, count).double().mul(GRID).long().tolist()
    drawn = uniforms(keys, scale, count, strata).double().mul(GRID).tolist()
    for row, group in enumerate(strata.keys.tolist()):
        stream = _mix(((group % WORD ^ 0x14057B7EF767814F) + _mix((scale + 1) * GAMMA % WORD)) % WORD)
        for i in range(count):
            draws = [_mix((stream + (i * A + a + 1) * GAMMA) % WORD) for a in range(A)]
            signed = [x - WORD if x >= WORD // 2 else x for x in draws]
            s = sorted(signed).index(signed[row % A])
            assert drawn[row][i] == (s * GRID + plain[row][i]) // A


@pytest.mark.parametrize("A", [1, 2, 6, 8])
def test_each_stratum_is_hit_once(A: int) -> None:
    keys, strata = groups(20, A)
    drawn = uniforms(keys, 1, 50, strata).double().unflatten(0, (20, A)).sort(dim=1).values
    edges = torch.arange(A + 1)[:, None] / A
    assert bool((drawn > edges[:-1] - 2**-24).all())  # an edge that is no multiple of 2^-24 is rounded down
    assert bool((drawn < edges[1:]).all())


@pytest.mark.parametrize("A", [6, 8])
def test_a_row_by_itself_is_uniform_and_its_numbers_are_independent(A: int) -> None:
    keys, strata = groups(1000, A)
    every = slice(3, None, A)  # the fourth row of each group
    own = Strata(strata.keys[every], strata.numbers[every], A)
    draws = torch.stack([uniforms(keys[every], scale, 50, own) for scale in range(3)])
    assert bool((draws.double() * GRID % 1 == 0).all())
    assert draws.min() >= 0
    assert draws.max() < 1
    # 150,000 draws in 100 bins of about 1500: the chi-square statistic has mean 99 and deviation 14.
    counts = torch.histc(draws, 100, 0, 1)
    assert ((counts - 1500).square() / 1500).sum().item() == pytest.approx(99, abs=5 * 14)
    x = draws.double() - 0.5
    for a, b in ((x[:, :, 1:], x[:, :, :-1]), (x[:, 1:], x[:, :-1]), (x[1:], x[:-1])):
        assert abs((a * b).mean().item() * 12) < 5 / a.numel() ** 0.5


def test_all_orders_of_the_strata_are_equally_likely() -> None:
    keys, strata = groups(100, 3)
    orders = (uniforms(keys, 0, 100, strata) * 3).long().unflatten(0, (100, 3)).transpose(1, 2).reshape(-1, 3)
    counts = [int((orders == torch.tensor(order)).all(dim=1).sum()) for order in permutations(range(3))]
    # 10,000 orders of six kinds: a count has mean 1667 and deviation 37.
    assert sum(counts) == 10000
    assert counts == pytest.approx([10000 / 6] * 6, abs=5 * 37)


def test_a_row_needs_neither_the_other_rows_nor_the_later_numbers() -> None:
    keys, strata = groups(4, 8)
    whole = uniforms(keys, 2, 30, strata)
    rows = torch.tensor([30, 3, 12])
    part = uniforms(keys[rows], 2, 11, Strata(strata.keys[rows], strata.numbers[rows], 8))
    assert torch.equal(part, whole[rows, :11])


def test_a_group_of_one_is_not_changed() -> None:
    keys, strata = groups(5, 1)
    assert torch.equal(uniforms(keys, 1, 20, strata), uniforms(keys, 1, 20))


def test_how_many_groups_of_8_never_show_a_token_of_probability_a_tenth() -> None:
    """.9^8 of independent ones; of stratified ones the last stratum, of an eighth, misses the last tenth of [0, 1) by a fifth."""
    keys, strata = groups(200, 8)
    probabilities = torch.tensor([0.9, 0.1]).expand(1600, 100, 2)
    for given, expected in ((None, 0.9**8), (strata, 1 - 0.1 * 8)):
        seen = inverse_cdf(probabilities, uniforms(keys, 0, 100, given)).unflatten(0, (200, 8)).any(dim=1)
        assert (~seen).double().mean().item() == pytest.approx(expected, abs=5 * (0.25 / 20000) ** 0.5)
