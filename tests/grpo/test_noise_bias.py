"""The expected gradient of centred advantages where a group shares noise, by enumeration and by the sampler. Costs two seconds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tabular_policy import TabularPolicy
from torch import Tensor

from varrl_lightning.algorithms.noise import common, row_key
from varrl_lightning.types import Prompt, Sampling

V, GRIDS = 3, ((1, 1), (1, 2))
PATHS = torch.tensor(list(product(range(V), repeat=3)))
"""(27, 3): r_1, and the two tokens of r_2, whose distributions depend on r_1."""


def tables() -> tuple[TabularPolicy, list[Tensor]]:
    policy = TabularPolicy(GRIDS, vocab_size=V, seed=3)
    return policy, [x.detach().double().softmax(-1) for x in policy.token_logits()]


def returns() -> Tensor:
    return torch.randn(V, V, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64).flatten()


def scores(p: list[Tensor]) -> Tensor:
    """(27, D): the gradient of log pi of each path with respect to all logits, the tables one after the other."""
    rows = []
    for a, b, c in PATHS.tolist():
        first, second = -p[0].clone(), torch.zeros_like(p[1])
        first[0, 0, a] += 1
        second[a] -= p[1][a]
        second[a, 0, b] += 1
        second[a, 1, c] += 1
        rows.append(torch.cat((first.flatten(), second.flatten())))
    return torch.stack(rows)


def in_stratum(p: Tensor, s: int, A: int) -> Tensor:
    """The probabilities of tokens when u is uniform in [s / A, (s + 1) / A)."""
    upper = p.cumsum(-1)
    low, high = torch.maximum(upper - p, torch.tensor(s / A)), torch.minimum(upper, torch.tensor((s + 1) / A))
    return A * (high - low).clamp(min=0)


def path_probabilities(p: list[Tensor], strata: tuple[int, ...], A: int) -> Tensor:
    a, b, c = PATHS.T
    q = [in_stratum(table, s, A) for table, s in zip((p[0][:, 0], p[1][:, 0], p[1][:, 1]), strata, strict=True)]
    return q[0][0, a] * q[1][a, b] * q[2][a, c]


def expected_gradient(p: list[Tensor], R: Tensor, A: int) -> Tensor:
    """E[1/A sum_i (R_i - mean R) grad log pi(i)] of stratified groups: pairs of branches are in different strata of every token."""
    g, every = scores(p), list(product(range(A), repeat=3))
    P = torch.stack([path_probabilities(p, strata, A) for strata in every])
    torch.testing.assert_close(P.mean(dim=0), path_probabilities(p, (0, 0, 0), 1))  # each branch by itself: the policy
    index = torch.tensor(every)
    apart = (index[:, None] != index[None]).all(dim=-1).double()
    crossed = (apart @ (P @ R)) @ (P @ g) / apart.sum()  # E[R_j grad log pi(i)], j != i
    return (A - 1) / A * (true_gradient(p, R) - crossed)


def true_gradient(p: list[Tensor], R: Tensor) -> Tensor:
    return (path_probabilities(p, (0, 0, 0), 1) * R) @ scores(p)


def simulated(A: int, groups: int, *, stratified: bool, shared: bool) -> tuple[Tensor, Tensor]:
    """The same expectation and its standard error, by the sampler; where noise is `shared`, r_2 is a continuation, untrained."""
    policy, p = tables()
    cond = policy.encode_prompts([Prompt("p")]).at(torch.zeros(groups, dtype=torch.long))
    keys = torch.tensor([row_key(0, 0, str(i)) for i in range(groups)])
    branches = ([i for i in range(groups) for _ in range(A)], list(range(A)) * groups)
    state = policy.begin(cond, Sampling(), keys).children(*branches, stratified=A if stratified else None)
    if shared:
        state = policy.sample(state, 1).fork(1, common(keys).repeat_interleave(A))
    tokens = torch.cat(policy.sample(state, 2).tokens, dim=1)
    paths = (tokens * torch.tensor([V * V, V, 1])).sum(dim=1)
    R, g = returns()[paths].unflatten(0, (-1, A)), scores(p)[paths].unflatten(0, (-1, A))
    per_group = ((R - R.mean(dim=1, keepdim=True))[..., None] * g).mean(dim=1)
    return per_group.mean(dim=0), per_group.std(dim=0) / groups**0.5


def test_common_continuations_leave_the_expected_gradient_as_it_is() -> None:
    _, p = tables()
    A, exact = 2, true_gradient(p, returns())[:V]
    for shared in (True, False):
        mean, error = simulated(A, 12000, stratified=False, shared=shared)
        assert ((mean[:V] - (A - 1) / A * exact) / error[:V]).abs().max() < 4


@pytest.mark.parametrize("A", [2, 4])
def test_the_expected_gradient_of_stratified_groups_is_the_enumerated_one(A: int) -> None:
    _, p = tables()
    mean, error = simulated(A, 12000, stratified=True, shared=False)
    assert ((mean - expected_gradient(p, returns(), A)) / error).abs().max() < 4.5
    assert ((mean - (A - 1) / A * true_gradient(p, returns())) / error).abs().max() > 10  # not that of independent branches


@pytest.mark.parametrize("A", [2, 4, 8])
def test_it_is_the_part_within_strata_times_the_old_factor_plus_the_part_between_them(A: int) -> None:
    """For a return that depends on r_1 alone, as the docstring of `NoiseOptions` says."""
    _, p = tables()
    R = returns()[:V].repeat_interleave(V * V)
    g = scores(p)[:: V * V, :V]
    in_each = torch.stack([in_stratum(p[0][0, 0], s, A) for s in range(A)])
    between = (in_each @ R[:: V * V])[:, None].mul(in_each @ g).mean(dim=0)
    within = true_gradient(p, R)[:V] - between
    torch.testing.assert_close(expected_gradient(p, R, A)[:V], (A - 1) / A * within + between)
    assert between.abs().max() > 0.05


def test_the_gradient_of_a_group_of_8_turns_by_little() -> None:
    """Whatever the tokens do together: no worse than the docstring's 1/A of the true gradient."""
    _, p = tables()
    exact, biased = true_gradient(p, returns()), expected_gradient(p, returns(), 8)
    assert torch.cosine_similarity(exact, biased, dim=0) > 0.99
    assert (biased - 7 / 8 * exact).norm() < exact.norm() / 8
