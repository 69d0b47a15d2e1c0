"""Next-scale generators small enough to enumerate: every state, every action, every trajectory.

A state s_t is a number in [0, S_t), an action a_t one in [0, A_t), and s_{t+1} = s_t * A_t + a_t: a table over (s_t, a_t) is one
over s_{t+1}. A policy is a list over t of log-probabilities (S_t, A_t); leading dimensions hold restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Policy = Sequence[Tensor]


@dataclass(frozen=True)
class Tree:
    """Scale t has `lengths[t]` tokens out of `vocab`."""

    lengths: tuple[int, ...]
    vocab: int

    def __len__(self) -> int:
        return len(self.lengths)

    def actions(self, t: int) -> Tensor:
        """(A_t, n_t): the tokens of each action."""
        return torch.tensor(list(product(range(self.vocab), repeat=self.lengths[t])))

    def states(self, t: int) -> int:
        """S_t."""
        return self.vocab ** sum(self.lengths[:t])

    def factorised(self, logits: Tensor, t: int) -> Tensor:
        """Eq. 6: (..., S_t, n_t, V) token logits as log-probabilities (..., S_t, A_t) of actions."""
        tokens = logits.log_softmax(dim=-1)
        return sum(tokens[..., i, self.actions(t)[:, i]] for i in range(self.lengths[t]))

    def random_logits(self, *restarts: int, spread: float = 1.0) -> list[Tensor]:
        """Token logits that depend on the state."""
        shapes = [(*restarts, self.states(t), n, self.vocab) for t, n in enumerate(self.lengths)]
        return [spread * torch.randn(shape, dtype=torch.float64) for shape in shapes]

    def random_policy(self) -> list[Tensor]:
        """A factorised policy that depends on the state: pi_old."""
        return [self.factorised(logits, t) for t, logits in enumerate(self.random_logits())]


def paths(policy: Policy, start: int, stop: int) -> Tensor:
    """(..., S_start, S_stop / S_start): log-probability of every way from each s_start to scale `stop`."""
    total = torch.zeros_like(policy[start][..., :1])
    for step in policy[start:stop]:
        total = (total.flatten(-2)[..., None] + step).unflatten(-2, (policy[start].shape[-2], -1)).flatten(-2)
    return total


def middle_value(old: Policy, R: Tensor, m: int, eta: float) -> Tensor:
    """Eq. 4 as it stands: V*_m(s_m) = eta log E_old[exp(R / eta) | s_m], over all ways from s_m to the end."""
    if m == len(old):
        return R
    return eta * (paths(old, m, len(old)) + R.view(old[m].shape[0], -1) / eta).logsumexp(dim=-1)


def objective(policy: Policy, old: Policy, returns: Tensor, eta: float) -> list[Tensor]:
    """J to go of each state, for t = 0..T (Eq. 7): E_pi[returns] - eta KL(pi || pi_old) from there on; the last is `returns`."""
    values = [returns]
    for step, old_step in zip(reversed(policy), reversed(old), strict=True):
        after = values[0].unflatten(-1, old_step.shape)
        values.insert(0, (step.exp() * (after - eta * (step - old_step))).sum(dim=-1))
    return values


def tilted(old_step: Tensor, value: Tensor, eta: float) -> Tensor:
    """pi_old(a | s) exp(V(s') / eta), normalised: Eq. 1 with Q(s, a) = V(s')."""
    return (old_step + value.view(old_step.shape) / eta).log_softmax(dim=-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities over the last dimension."""
    return (p.exp() * (p - q)).sum(dim=-1)


def project(target: Tensor, tree: Tree, t: int, restarts: int = 24, sweeps: int = 100) -> Tensor:
    """Reverse-KL projection of (S_t, A_t) onto the factorised family, by coordinate ascent on each token in turn.

    With all other tokens held, the best q_i is proportional to exp E_{others}[log target]. Local optima: the best of the restarts.
    """
    actions = tree.actions(t)
    logits = 3 * torch.randn(restarts, target.shape[0], tree.lengths[t], tree.vocab, dtype=target.dtype)
    for _ in range(sweeps):
        for i in range(tree.lengths[t]):
            others = tree.factorised(logits, t) - logits.log_softmax(dim=-1)[..., i, actions[:, i]]
            which = torch.nn.functional.one_hot(actions[:, i], tree.vocab).to(target)
            logits[..., i, :] = (others.exp() * target) @ which
    joint = tree.factorised(logits, t)
    best = kl(joint, target).argmin(dim=0)
    return joint[best, torch.arange(target.shape[0])]


def maximise(value: Callable[[list[Tensor]], Tensor], start: list[Tensor], steps: int = 300) -> list[Tensor]:
    """Ascent on many restarts at once; `value` gives one number a restart."""
    parameters = [x.clone().requires_grad_() for x in start]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=steps, history_size=30, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -value(parameters).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return [x.detach() for x in parameters]
