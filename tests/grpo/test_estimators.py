"""The gradient that an update follows, against the gradient it should follow, by enumeration of everything that can be drawn.

The update is composed of the library's own parts: returns (Eq. 10), advantages, k_t (Eq. 9), masks, surrogate, weights. What it
should be is differentiated from the tables of a tabular policy, which are all the parameters there are.
"""

from itertools import product

import pytest
import torch
from tabular import paths
from tabular_policy import TabularPolicy
from torch import Tensor

from varrl_lightning.algorithms.advantages import group_advantages
from varrl_lightning.algorithms.losses import Ratio, clipped_surrogate, policy_loss
from varrl_lightning.algorithms.panw import panw_weights, row_weights
from varrl_lightning.algorithms.stages import stage_returns
from varrl_lightning.types import Prompt, Sampling, Score, Stage

TWO, THREE = ((1, 2), (1, 1)), ((1, 1), (1, 2), (1, 1))
ETA = 0.6


def _categorical(scales: int) -> TabularPolicy:
    return TabularPolicy(TWO if scales == 2 else THREE, vocab_size=2, seed=4)


def _bitwise() -> TabularPolicy:
    return TabularPolicy(((1, 1), (1, 1)), vocab_size=4, bits=2, seed=4)


def _log_policy(policy: TabularPolicy) -> list[Tensor]:
    """Differentiable log-probabilities of actions from the tables alone."""
    return [policy.tree.factorised(x.double(), t) for t, x in enumerate(policy.token_logits())]


def _rewards(policy: TabularPolicy, stage: Stage) -> Tensor:
    """R of every s_T, or of every draft s_b; all different, so that no group is without variance by chance."""
    states = policy.tree.states(stage.stop if stage.continuations == 0 else len(policy.tree))
    return torch.randn(states, generator=torch.Generator().manual_seed(5)).double()


def _branch_tokens(policy: TabularPolicy, states: Tensor, stop: int) -> list[Tensor]:
    """The tokens of s_stop, in the policy's own form."""
    length = policy.schedule().offsets[stop]
    places = policy.vocab_size ** torch.arange(length - 1, -1, -1)
    return policy.tokens_of((states[:, None] // places) % policy.vocab_size)[:stop]


def _expected_update(policy: TabularPolicy, stage: Stage, ratio: Ratio) -> list[Tensor]:
    """Gradient of the tables, expected over all groups of A = 2 branches with K continuations each; with K = 0, of drafts.

    Mean-only advantages times A / (A-1), alpha = 0, a full mask, no normaliser, no KL, the sampler's own score.
    """
    A, K, T = stage.branches, stage.continuations, len(policy.tree)
    log_policy, R = [x.detach() for x in _log_policy(policy)], _rewards(policy, stage)
    start = paths(log_policy, 0, stage.start)[0] if stage.start else torch.zeros(1).double()
    branch = paths(log_policy, stage.start, stage.stop)  # (S_a, branches of each)
    tail = paths(log_policy, stage.stop, T) if stage.stop < T else torch.zeros(len(R), 1).double()
    outcomes = list(product(range(branch.shape[1]), product(range(tail.shape[1]), repeat=K)))
    groups, log_probability, rewards = [], [], []
    for s, drawn in product(range(len(start)), product(outcomes, repeat=A)):
        states = [s * branch.shape[1] + b for b, _ in drawn]
        groups.append(states)
        log_probability.append(
            start[s] + sum(branch[s, b] + tail[state, list(k)].sum() for (b, k), state in zip(drawn, states, strict=True))
        )
        images = [[state * tail.shape[1] + leaf for leaf in k] or [state] for (_, k), state in zip(drawn, states, strict=True)]
        rewards.append([[R[image] for image in of_branch] for of_branch in images])
    probability = torch.stack(log_probability).exp()
    assert probability.sum().item() == pytest.approx(1)

    returns = stage_returns(torch.tensor(rewards), stage, ETA)
    advantages, active = group_advantages(returns, scale="none")
    rows = torch.tensor(groups).flatten()
    cond = policy.encode_prompts([Prompt("p")]).repeat(len(rows))
    out = policy(_branch_tokens(policy, rows, stage.stop), cond, stage.start, stage.stop, score=Score("sampler", Sampling()))
    log_prob = torch.cat(out.log_prob, dim=1).double()
    lengths = policy.tree.lengths[stage.start : stage.stop]
    surrogate, _ = clipped_surrogate(log_prob, log_prob, advantages.flatten(), 0.2, 0.2, ratio=ratio, lengths=lengths)
    k = panw_weights(policy.schedule(), stage.start, stage.stop, alpha=0.0).double()
    mask = torch.ones(A, sum(lengths)).double()
    loss = torch.zeros(()).double()
    for p, on, term in zip(probability, active, surrogate.unflatten(0, (-1, A)), strict=True):
        loss = loss + p * policy_loss(term, row_weights(k, mask, on, "none")) * A / (A - 1)
    return list(torch.autograd.grad(loss, list(policy.transformer)[stage.start : stage.stop]))


def _gradient_of_the_value(policy: TabularPolicy, stage: Stage) -> list[Tensor]:
    """Gradient of E[V_K] with respect to the stage's tables, V_K the Eq. 10 estimate from K draws of a fixed tail; V_0 = R."""
    log_policy, R, T = _log_policy(policy), _rewards(policy, stage), len(policy.tree)
    K = stage.continuations
    value = R
    if stage.stop < T and K > 0:
        tail = paths(log_policy, stage.stop, T).detach()
        draws = list(product(range(tail.shape[1]), repeat=K))
        of_state = R.view(tail.shape)
        value = sum(tail[:, list(k)].sum(dim=1).exp() * ETA * (of_state[:, list(k)] / ETA).exp().mean(dim=1).log() for k in draws)
    E = (paths(log_policy, 0, stage.stop)[0].exp() * value).sum()
    return [-g for g in torch.autograd.grad(E, list(policy.transformer)[stage.start : stage.stop])]


def _name(x: Stage | int) -> str:
    return f"{x} scales" if isinstance(x, int) else f"[{x.start}, {x.stop}) K={x.continuations}"


STAGES = [
    (2, Stage(0, 1, branches=2, continuations=0)),
    (3, Stage(1, 2, branches=2, continuations=0)),
    (2, Stage(0, 1, branches=2, continuations=1)),
    (2, Stage(0, 1, branches=2, continuations=2)),
    (3, Stage(0, 2, branches=2, continuations=2)),
    (3, Stage(1, 2, branches=2, continuations=2)),
    (3, Stage(2, 3, branches=2)),
    (2, Stage(0, 2, branches=2)),
]


@pytest.mark.parametrize("ratio", ["token", "scale_mean", "scale_sum", "sequence_mean"])
@pytest.mark.parametrize(("scales", "stage"), STAGES, ids=_name)
def test_the_expected_update_is_the_gradient_of_the_expected_value(scales: int, stage: Stage, ratio: Ratio) -> None:
    policy = _categorical(scales)
    for update, exact in zip(_expected_update(policy, stage, ratio), _gradient_of_the_value(policy, stage), strict=True):
        assert exact.abs().max() > 1e-2
        torch.testing.assert_close(update, exact, atol=1e-6, rtol=1e-4)


def test_so_it_is_for_bits() -> None:
    policy, stage = _bitwise(), Stage(0, 2, branches=2)
    for update, exact in zip(_expected_update(policy, stage, "token"), _gradient_of_the_value(policy, stage), strict=True):
        assert exact.abs().max() > 1e-2
        torch.testing.assert_close(update, exact, atol=1e-6, rtol=1e-4)


def test_k_1_and_k_2_are_different_objectives() -> None:
    one, two = (_gradient_of_the_value(_categorical(2), Stage(0, 1, 2, K))[0] for K in (1, 2))
    assert (one - two).abs().max() > 1e-3


@pytest.mark.parametrize("policy", [_categorical(3), _bitwise()], ids=["categorical", "bitwise"])
def test_the_weighted_masked_update_is_the_sum_of_its_terms(policy: TabularPolicy) -> None:
    """-1/R sum_i A_i sum_t k_t mask_it grad log pi_t, every token's log-probability read off the tables one by one."""
    T, schedule, alpha = len(policy.tree), policy.schedule(), 0.6
    draw = torch.Generator().manual_seed(6)
    states = torch.randint(policy.tree.states(T), (6,), generator=draw)
    A = torch.randn(6, generator=draw)
    mask = torch.rand(6, schedule.offsets[-1], generator=draw) * (torch.rand(6, schedule.offsets[-1], generator=draw) > 0.3)
    active = torch.tensor([True, True, False, True, True, True])

    out = policy(_branch_tokens(policy, states, T), policy.encode_prompts([Prompt("p")] * 6), 0, T)
    log_prob = torch.cat(out.log_prob, dim=1)
    surrogate, _ = clipped_surrogate(log_prob, log_prob, A, 0.2, 0.2)
    W = row_weights(panw_weights(schedule, 0, T, alpha), mask, active, "none")
    update = torch.autograd.grad(policy_loss(surrogate, W), list(policy.transformer))

    tables = [x.log_softmax(-1) for x in policy.token_logits()]
    loss = torch.zeros(())
    for row in active.nonzero().flatten().tolist():
        path = [(int(states[row]) // policy.vocab_size**i) % policy.vocab_size for i in reversed(range(schedule.offsets[-1]))]
        for t, (h, w) in enumerate(schedule.grids):
            first = schedule.offsets[t]
            s = sum(v * policy.vocab_size**i for i, v in enumerate(reversed(path[:first])))
            for i in range(h * w):
                log_pi = tables[t][s, i, path[first + i]]
                loss = loss - A[row] * mask[row, first + i] / (h * w) ** alpha * log_pi / 5
    expected = torch.autograd.grad(loss, list(policy.transformer))
    for a, b in zip(update, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert all(g.abs().max() > 1e-3 for g in expected)
