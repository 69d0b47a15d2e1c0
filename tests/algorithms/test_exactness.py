"""What the theorems of the paper say, and where they hold, by enumeration of tabular generators.

pi_old depends on the state and factorises over at least two tokens a scale (Eq. 6), as a real generator does.
"""

import pytest
import torch
from tabular import Tree, kl, maximise, middle_value, objective, paths, project, tilted
from torch import Tensor

from varrl_lightning.algorithms.vmr import soft_value


def _problem(tree: Tree, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(seed)
    old = tree.random_policy()
    return old, 2 * torch.randn(tree.states(len(tree)), dtype=torch.float64)


def _tokens_best(tree: Tree, t: int, value: Tensor, old: Tensor, eta: float, restarts: int = 20) -> Tensor:
    """max over factorised pi(. | s) of E[value] - eta KL(pi || old) at each s_t by gradient ascent, the best of the restarts."""

    def gain(logits: list[Tensor]) -> Tensor:
        return objective([tree.factorised(logits[0], t)], [old], value, eta)[0]

    start = 2 * torch.randn(restarts, *old.shape[:1], tree.lengths[t], tree.vocab, dtype=torch.float64)
    logits = maximise(gain, [start])
    best = gain(logits).argmax(dim=0)
    return tree.factorised(logits[0], t)[best, torch.arange(old.shape[0])]


def _recursion(tree: Tree, old: list[Tensor], R: Tensor, eta: float) -> tuple[list[Tensor], list[Tensor]]:
    """V_t = max over factorised pi of E[V_{t+1}] - eta KL(pi || pi_old), pi the projection of pi_old exp(V_{t+1} / eta)."""
    values, policy = [R], []
    for t in reversed(range(len(tree))):
        policy.insert(0, project(tilted(old[t], values[0], eta), tree, t))
        values.insert(0, objective(policy[:1], old[t : t + 1], values[0], eta)[0])
    return values, policy


# Theorem 2, unconstrained policies.


@pytest.mark.parametrize(
    ("tree", "cuts", "eta"),
    [
        (Tree((2, 2), 3), (1,), 0.7),
        (Tree((2, 2, 2), 2), (1,), 2.0),
        (Tree((2, 3, 1), 2), (2,), 0.7),
        (Tree((2, 2, 2), 2), (1, 2), 1.0),
    ],
    ids=str,
)
def test_the_optima_of_the_stages_are_the_full_horizon_optimum(tree: Tree, cuts: tuple[int, ...], eta: float) -> None:
    """Each stage maximises E[V_b] - eta KL to pi_old with V_b of Eq. 4, alone; concatenated they are p* of Eq. 24."""
    old, R = _problem(tree)
    T, concatenated = len(tree), []
    for start, stop in zip((0, *cuts), (*cuts, T), strict=True):
        returns = middle_value(old, R, stop, eta)
        stage_old = old[start:stop]

        def gain(logits: list[Tensor], stage_old: list[Tensor] = stage_old, returns: Tensor = returns) -> Tensor:
            return objective([x.log_softmax(-1) for x in logits], stage_old, returns, eta)[0]

        concatenated += [x.log_softmax(-1) for x in maximise(gain, [torch.zeros_like(x) for x in stage_old])]
    p_star = (paths(old, 0, T).flatten() + R / eta).softmax(dim=0)
    torch.testing.assert_close(paths(concatenated, 0, T).exp().flatten(), p_star, atol=2e-5, rtol=0)
    log_Z = (paths(old, 0, T).flatten() + R / eta).logsumexp(dim=0)
    torch.testing.assert_close(objective(concatenated, old, R, eta)[0].squeeze(), eta * log_Z)


def test_continuations_of_another_policy_lead_the_prefix_elsewhere() -> None:
    """The theorem needs V_m of the very policy that the suffix is regularised to."""
    tree, eta = Tree((2, 2), 3), 0.7
    old, R = _problem(tree)
    prefix = tilted(old[0], middle_value(old, R, 1, eta), eta).exp()
    other = tilted(old[0], middle_value([old[0], _problem(tree, seed=1)[0][1]], R, 1, eta), eta).exp()
    p_star = (paths(old, 0, 2).flatten() + R / eta).softmax(dim=0).view(prefix.shape[-1], -1).sum(dim=-1)
    torch.testing.assert_close(prefix.flatten(), p_star)
    assert (other.flatten() - p_star).abs().max() > 0.05


def test_soft_value_is_eq_4_when_every_continuation_is_drawn_as_often_as_it_is_likely() -> None:
    tree, eta = Tree((2, 1, 2), 2), 0.7
    _, R = _problem(tree)
    quarters = torch.tensor([[1, 3], [2, 2], [3, 1], [1, 3]])  # of s_1: probabilities of its two actions, times 4
    old = [torch.zeros(1, 4).log_softmax(-1), (quarters / 4).log(), torch.zeros(8, 4).log_softmax(-1)]
    copies = quarters.flatten().repeat_interleave(4)
    drawn = R.repeat_interleave(copies).view(1, 4, 16)
    expected = middle_value([x.double() for x in old], R, 1, eta)
    torch.testing.assert_close(soft_value(drawn, eta)[0], expected, atol=1e-6, rtol=1e-6)


# Theorem 1: the factorised family.


@pytest.mark.parametrize(("tree", "eta"), [(Tree((2, 2), 3), 0.5), (Tree((2, 2, 2), 2), 1.5), (Tree((2, 1, 3), 2), 0.8)], ids=str)
def test_eq_8_holds_at_the_last_action(tree: Tree, eta: float) -> None:
    """The constrained optimum there is the reverse-KL projection of pi*, found by two different optimisers."""
    old, R = _problem(tree)
    last = len(tree) - 1
    pi_star = tilted(old[last], R, eta)
    optimum = _tokens_best(tree, last, R, old[last], eta)
    projection = project(pi_star, tree, last)
    torch.testing.assert_close(kl(optimum, pi_star), kl(projection, pi_star), atol=1e-5, rtol=0)
    torch.testing.assert_close(optimum.exp(), projection.exp(), atol=1e-3, rtol=1e-3)
    assert kl(projection, pi_star).max() > 0.01, "pi* must lie outside the family for this to say anything"


@pytest.mark.parametrize(("tree", "eta"), [(Tree((2, 2), 3), 1.0), (Tree((2, 2, 2), 2), 2.5)], ids=str)
def test_the_recursion_is_optimal_at_every_state(tree: Tree, eta: float) -> None:
    old, R = _problem(tree)
    values, policy = _recursion(tree, old, R, eta)
    for t in range(len(tree)):
        by_ascent = _tokens_best(tree, t, values[t + 1], old[t], eta)
        best = objective([by_ascent], old[t : t + 1], values[t + 1], eta)[0]
        torch.testing.assert_close(values[t], best, atol=1e-5, rtol=0)
        assert (middle_value(old, R, t, eta) >= values[t] - 1e-9).all(), "V* is an upper bound"
    assert (middle_value(old, R, 0, eta) > values[0] + 1e-3).all(), "the family costs something here"
    torch.testing.assert_close(objective(policy, old, R, eta)[0], values[0])


@pytest.mark.parametrize(("tree", "eta"), [(Tree((2, 2), 2), 1.0), (Tree((1, 2), 2), 0.7), (Tree((2, 2), 3), 2.5)], ids=str)
def test_no_factorised_policy_does_better_than_the_recursion(tree: Tree, eta: float) -> None:
    """J is maximised over the policies of all states together, from many starts: none passes V_0 and the best reach it."""
    old, R = _problem(tree, seed=3)
    V_0 = _recursion(tree, old, R, eta)[0][0]

    def total(logits: list[Tensor]) -> Tensor:
        return objective([tree.factorised(x, t) for t, x in enumerate(logits)], old, R.expand(100, -1), eta)[0].squeeze(-1)

    found = total(maximise(total, tree.random_logits(100, spread=2.0)))
    assert (found <= V_0 + 1e-8).all()
    assert found.max().item() == pytest.approx(V_0.item(), abs=1e-6)


def test_theorem_1_as_printed_fails_before_the_last_action() -> None:
    """One binary token, then two factorised ones, pi_old uniform, eta = 1.

    After r_1 = 0 every image is worth 3; after r_1 = 1 one with equal tokens is worth 4, others 0. pi* counts on drawing equal
    tokens, either way, which no factorised policy can: the projection of pi*(r_1) takes r_1 = 1 too often.
    """
    tree, eta = Tree((1, 2), 2), 1.0
    old = [torch.zeros(1, 2).double().log_softmax(-1), torch.zeros(2, 4).double().log_softmax(-1)]
    R = torch.tensor([3.0, 3, 3, 3, 4, 0, 0, 4]).double()
    printed = [project(tilted(old[t], middle_value(old, R, t + 1, eta), eta), tree, t) for t in range(2)]
    J_printed = objective(printed, old, R, eta)[0].item()
    values, policy = _recursion(tree, old, R, eta)
    assert J_printed == pytest.approx(2.786, abs=1e-3)
    assert values[0].item() == pytest.approx(2.841, abs=1e-3)
    assert objective(policy, old, R, eta)[0].item() == pytest.approx(values[0].item())
    assert printed[0].exp()[0, 1].item() == pytest.approx(0.581, abs=1e-3)
    assert policy[0].exp()[0, 1].item() == pytest.approx(0.414, abs=1e-3)
