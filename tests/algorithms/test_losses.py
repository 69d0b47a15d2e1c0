import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from varrl_lightning.algorithms.losses import (
    clipped_surrogate,
    kl_penalty,
    kl_to_old,
    policy_loss,
    truncated_importance,
)
from varrl_lightning.algorithms.panw import row_weights

LENGTHS = (1, 2, 3)
LOW, HIGH = 0.2, 0.3


def _case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    old = -torch.rand(4, 6, dtype=torch.float64)
    new = old + torch.randn(4, 6, dtype=torch.float64)
    mask = (torch.rand(4, 6) > 0.4).double()
    mask[0, 1:3] = 0  # a scale without active tokens
    return new, old, torch.tensor([1.5, -0.7, 0.0, -2.0], dtype=torch.float64), mask


def _clip(r: float, A: float) -> tuple[float, float, float]:
    clipped = min(max(r, 1 - LOW), 1 + HIGH)
    return min(r * A, clipped * A), float(r < 1 - LOW and A < 0), float(r > 1 + HIGH and A > 0)


def _ratio(ratio: str, new: list[float], old: list[float], on: list[bool], t: int) -> tuple[float, float]:
    """The ratio of a token, and its share of the surrogate."""
    if ratio == "token":
        return math.exp(new[t] - old[t]), 1.0
    start = max(s for s in (0, 1, 3) if s <= t)
    scale = range(sum(LENGTHS)) if ratio == "sequence_mean" else range(start, start + LENGTHS[(0, 1, 3).index(start)])
    logs = [new[s] - old[s] for s in scale if on[s]]
    if not logs:
        return 1.0, 1.0
    if ratio != "scale_sum":
        return math.exp(sum(logs) / len(logs)), 1.0
    return math.exp(sum(logs)), 1 / len(logs)


@pytest.mark.parametrize("ratio", ["token", "scale_mean", "scale_sum", "sequence_mean"])
@pytest.mark.parametrize("masked", ["masked", "all"])
def test_surrogate_by_loops(ratio: str, masked: str) -> None:
    new, old, A, mask = _case()
    mask = mask if masked == "masked" else torch.ones_like(mask)
    surrogate, clipped = clipped_surrogate(new, old, A, LOW, HIGH, ratio=ratio, lengths=LENGTHS, mask=mask)
    for i, t in product(range(4), range(6)):
        r, share = _ratio(ratio, new[i].tolist(), old[i].tolist(), (mask[i] > 0).tolist(), t)
        expected, low, high = _clip(r, A[i].item())
        assert surrogate[i, t].item() == pytest.approx(expected * share)
        assert (clipped["low"][i, t], clipped["high"][i, t], clipped["region"][i, t]) == (low, high, low + high)
    assert clipped["low"].any()
    assert clipped["high"].any()


def test_bits_are_clipped_one_by_one_and_summed() -> None:
    torch.manual_seed(4)
    new, old = -torch.rand(2, 3, 5), -torch.rand(2, 3, 5)
    A = torch.tensor([1.0, -1.0])
    surrogate, clipped = clipped_surrogate(
        new.sum(-1), old.sum(-1), A, LOW, HIGH, ratio="bit", bit_log_prob=new, old_bit_log_prob=old
    )
    for i, t in product(range(2), range(3)):
        bits = [_clip(math.exp(new[i, t, d] - old[i, t, d]), A[i].item()) for d in range(5)]
        expected, low, high = (sum(column) for column in zip(*bits, strict=True))
        low, high = low / 5, high / 5
        assert surrogate[i, t].item() == pytest.approx(expected, rel=1e-5)
        assert clipped["low"][i, t].item() == pytest.approx(low)
        assert clipped["high"][i, t].item() == pytest.approx(high)


def _gradient(value: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    x = at.clone().requires_grad_()
    return torch.autograd.grad(value(x).sum(), x)[0]


@pytest.mark.parametrize("ratio", ["token", "scale_mean", "scale_sum", "sequence_mean"])
def test_on_policy_the_gradient_is_the_advantage(ratio: str) -> None:
    """r = 1 exactly, so grad sum_t r_t A = A sum_t grad log pi_t, whatever the ratio is of."""
    log_prob, _, A, _ = _case()

    def total(x: Tensor) -> Tensor:
        surrogate, clipped = clipped_surrogate(x, x, A, LOW, HIGH, ratio=ratio, lengths=LENGTHS)
        assert not clipped["region"].any()
        return surrogate

    torch.testing.assert_close(_gradient(total, log_prob), A[:, None].expand(4, 6))


def test_on_policy_bits_have_the_gradient_of_the_token() -> None:
    bits = -torch.rand(1, 2, 4)

    def total(x: Tensor) -> Tensor:
        return clipped_surrogate(x.sum(-1), x.sum(-1), torch.ones(1), LOW, HIGH, ratio="bit", bit_log_prob=x, old_bit_log_prob=x)[0]

    torch.testing.assert_close(_gradient(total, bits), torch.ones(1, 2, 4))


def test_no_gradient_where_clipped_and_none_through_old_or_advantage() -> None:
    log_prob = torch.tensor([[1.0, -1.0], [1.0, -1.0]], requires_grad=True)
    old, A = torch.zeros(2, 2, requires_grad=True), torch.tensor([1.0, -1.0], requires_grad=True)
    surrogate, clipped = clipped_surrogate(log_prob, old, A, LOW, HIGH)
    surrogate.sum().backward()
    assert clipped["high"].tolist() == [[1, 0], [0, 0]]
    assert clipped["low"].tolist() == [[0, 0], [0, 1]]
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad, torch.tensor([[0.0, math.exp(-1)], [-math.exp(1), 0.0]]))
    assert old.grad is None
    assert A.grad is None


def test_absurd_ratios_stay_finite() -> None:
    far = torch.tensor([[500.0, -500.0]], requires_grad=True)
    for A in (-1.0, 0.0, 1.0):
        surrogate, _ = clipped_surrogate(far, torch.zeros(1, 2), torch.tensor([A]), LOW, math.inf)
        assert torch.isfinite(surrogate).all()
        assert torch.isfinite(_gradient(lambda x, A=A: clipped_surrogate(
            x, torch.zeros(1, 2), torch.tensor([A]), LOW, HIGH)[0], far.detach())).all()  # fmt: skip
    assert torch.isfinite(kl_to_old(far, torch.zeros(1, 2))).all()
    assert torch.isfinite(kl_penalty("k3", None, far, torch.zeros(1, 2))).all()


def test_a_token_that_is_off_may_hold_anything() -> None:
    log_prob = torch.tensor([[-math.inf, -1.0]])
    surrogate, _ = clipped_surrogate(
        log_prob, torch.tensor([[-1.0, -1.0]]), torch.ones(1), LOW, HIGH,
        ratio="scale_sum", lengths=(2,), mask=torch.tensor([[0.0, 1.0]]),
    )  # fmt: skip
    assert surrogate.tolist() == [[1.0, 1.0]]


def test_a_sequence_s_ratio_with_equal_weights_is_the_objective_of_gspo() -> None:
    """J = mean_i min(s_i A_i, clip(s_i) A_i), s_i = (pi(y_i) / pi_old(y_i))^(1 / |y_i|) (arXiv 2507.18071, Eq. 5 and 7)."""
    new, old, A, _ = _case()
    surrogate, _ = clipped_surrogate(new, old, A, 3e-4, 4e-4, ratio="sequence_mean")
    loss = policy_loss(surrogate, row_weights(torch.ones(6), torch.ones(4, 6), torch.ones(4, dtype=torch.bool), "branch"))
    s = (new.sum(dim=1).exp() / old.sum(dim=1).exp()) ** (1 / 6)
    J = torch.minimum(s * A, s.clamp(1 - 3e-4, 1 + 4e-4) * A).mean()
    assert loss.item() == pytest.approx(-J.item(), rel=1e-5)


def test_policy_loss_is_the_weighted_sum() -> None:
    assert policy_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.25]])).item() == -1.0


# The penalties, by enumeration of one categorical variable: value and gradient, expected over draws of pi or pi_old.

THETA = torch.tensor([0.3, -1.0, 0.9], dtype=torch.float64)
OTHER = torch.tensor([-0.2, 0.5, 0.1], dtype=torch.float64)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    p, q = p.log_softmax(0), q.log_softmax(0)
    return (p.exp() * (p - q)).sum()


def _expected(drawn_by: Tensor, value: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """E[value(log pi)] with the sampling distribution held fixed, as it is in an update."""
    return lambda theta: (drawn_by.softmax(0) * value(theta.log_softmax(0)[None])[0]).sum()


@pytest.mark.parametrize(
    ("kind", "gradient_of"),
    [
        ("k1", lambda theta: 0 * theta.sum()),
        ("k2", lambda theta: _kl(theta, OTHER)),
        ("k3", lambda theta: _kl(OTHER, theta)),
    ],
)
def test_whose_gradient_an_estimator_has(kind: str, gradient_of: Callable[[Tensor], Tensor]) -> None:
    reference = OTHER.log_softmax(0)[None]
    estimate = _expected(THETA, lambda log_prob: kl_penalty(kind, None, log_prob, reference))
    torch.testing.assert_close(_gradient(estimate, THETA), _gradient(gradient_of, THETA))
    if kind != "k2":
        torch.testing.assert_close(estimate(THETA), _kl(THETA, OTHER))


def test_k2_is_half_the_square() -> None:
    assert kl_penalty("k2", None, torch.tensor([[1.0]]), torch.tensor([[4.0]])).item() == 4.5


def test_the_exact_kl_passes_through() -> None:
    exact = torch.rand(2, 3)
    assert kl_penalty("exact", exact, torch.zeros(2, 3), None) is exact


def test_kl_to_old_is_unbiased_in_value_and_gradient() -> None:
    old = OTHER.log_softmax(0)[None]
    estimate = _expected(OTHER, lambda log_prob: kl_to_old(log_prob, old))
    torch.testing.assert_close(estimate(THETA), _kl(THETA, OTHER))
    torch.testing.assert_close(_gradient(estimate, THETA), _gradient(lambda theta: _kl(theta, OTHER), THETA))


def test_kl_to_old_does_nothing_at_theta_old() -> None:
    log_prob = -torch.rand(2, 3)
    assert (kl_to_old(log_prob, log_prob) == 0).all()
    assert (_gradient(lambda x: kl_to_old(x, x.detach()), log_prob) == 0).all()


def test_importance_weights_turn_the_samplers_draws_into_the_models() -> None:
    model, sampler = THETA.log_softmax(0)[None], OTHER.log_softmax(0)[None]
    weights = truncated_importance(model.requires_grad_(), sampler, math.inf)
    torch.testing.assert_close(sampler.exp() * weights, model.exp().detach())
    assert not weights.requires_grad
    assert torch.equal(truncated_importance(model, sampler, 0.8), weights.clamp(max=0.8))
    assert (weights > 0.8).any()


def test_errors_name_value_and_range() -> None:
    one, A = torch.zeros(1, 2), torch.ones(1)
    with pytest.raises(ValueError, match=r"clip_low must be in \[0, 1\], got 1.5"):
        clipped_surrogate(one, one, A, 1.5, 0.2)
    with pytest.raises(ValueError, match=r"clip_high must be >= 0, got -0.2"):
        clipped_surrogate(one, one, A, 0.2, -0.2)
    with pytest.raises(ValueError, match=r"ratio 'bit' needs bit_log_prob and old_bit_log_prob"):
        clipped_surrogate(one, one, A, 0.2, 0.2, ratio="bit")
    with pytest.raises(ValueError, match=r"ratio 'scale_mean' needs lengths that sum to 2 tokens, got \(1, 2\)"):
        clipped_surrogate(one, one, A, 0.2, 0.2, ratio="scale_mean", lengths=(1, 2))
    with pytest.raises(ValueError, match="kl 'exact' needs the exact KL of each token, got None"):
        kl_penalty("exact", None, one, one)
    with pytest.raises(ValueError, match="kl 'k3' needs reference_log_prob, got None"):
        kl_penalty("k3", None, one, None)
    with pytest.raises(ValueError, match=r"maximum must be > 0, got 0\.0"):
        truncated_importance(one, one, 0.0)
