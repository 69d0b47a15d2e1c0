"""Tokens without weight: whatever they hold, loss and gradient are those of the others."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny import tiny_module
from torch import Tensor

from varrl_lightning import KLOptions, Objective, Score
from varrl_lightning.algorithms.losses import clipped_surrogate, kl_penalty, kl_to_old, policy_loss
from varrl_lightning.grpo.credit import Rows
from varrl_lightning.types import LogProbs

LENGTHS = (2, 4)
MASK = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0], [1.0] * 6])
ACTIVE = torch.tensor([True, True, False])
OFF = (MASK == 0) | ~ACTIVE[:, None]
CASES: list[dict[str, Any]] = [
    *({"ratio": ratio} for ratio in ("token", "scale_mean", "scale_sum", "sequence_mean")),
    *({"kl_coef": 0.3, "kl": KLOptions(estimator, 0.2, True)} for estimator in ("exact", "k1", "k2", "k3")),  # type: ignore[arg-type]
    {"score": Score("corrected")},
]


def loss_and_gradient(
    objective: Objective, new: Tensor, old: Tensor, sampled: Tensor, reference: Tensor, kl: Tensor
) -> list[Tensor]:
    new, kl = new.clone().requires_grad_(), kl.clone().requires_grad_()

    def scales(x: Tensor) -> list[Tensor]:
        return list(x.split(LENGTHS, dim=1))

    W = MASK * ACTIVE[:, None] / 6
    of_new = LogProbs(scales(new), scales(torch.ones_like(new)), scales(kl), scales(reference))
    loss, tokens = objective(of_new, LogProbs(scales(old), []), sampled, Rows(ACTIVE * 0.7, MASK, W, W), LENGTHS)
    assert all(not torch.isnan(values).any() for name, values in tokens.items() if name != "kl")
    gradients = torch.autograd.grad(loss, (new, kl), allow_unused=True)
    return [loss.detach(), *(torch.zeros_like(new) if g is None else g for g in gradients)]


@pytest.mark.parametrize("options", CASES, ids=lambda case: str(case.get("kl", case.get("ratio", "corrected"))))
@pytest.mark.parametrize("impossible", ["under both", "now", "then"])
def test_a_masked_token_that_is_impossible_changes_nothing(options: dict[str, Any], impossible: str) -> None:
    torch.manual_seed(0)
    values = [-torch.rand(3, 6) for _ in range(4)]
    kl = torch.rand(3, 6)
    expected = loss_and_gradient(Objective(**options), *values, kl)
    for number, x in enumerate(values):
        if impossible == "under both" or (number == 0) == (impossible == "now"):
            x[OFF] = -math.inf
    kl[OFF] = math.nan
    found = loss_and_gradient(Objective(**options), *values, kl)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_parts_of_the_loss_bear_such_tokens_by_themselves() -> None:
    new = torch.tensor([[-1.0, -math.inf, -math.inf]], requires_grad=True)
    old = torch.tensor([[-1.5, -math.inf, -2.0]])
    surrogate, _ = clipped_surrogate(new, old, torch.ones(1), 0.2, 10.0)
    loss = (
        policy_loss(surrogate, torch.tensor([[1.0, 0.0, 1.0]])) + kl_to_old(new, old).sum() + kl_penalty("k3", None, new, old)[0, 1]
    )
    loss.backward()
    assert loss.item() == pytest.approx(-math.exp(0.5) + (math.exp(0.5) * 0.5 - math.exp(0.5) + 1) + 1)
    assert new.grad is not None
    torch.testing.assert_close(new.grad, torch.tensor([[-math.exp(0.5) + 0.5 * math.exp(0.5), 0.0, 0.0]]))


@pytest.mark.parametrize("normalise", [{"tokens": "none"}, {"tokens": "constant", "constant": 100.0}], ids=lambda n: n["tokens"])
def test_an_alpha_that_nothing_makes_up_for_is_refused(normalise: dict[str, Any]) -> None:
    """16 tokens^-40 is 7e-49; only `branch` and `batch` divide it by its like."""
    with pytest.raises(
        ValueError, match=r"alpha = 40 with normalise.tokens '(none|constant)' gives tokens of stage 'suffix' the weight"
    ):
        tiny_module(alpha=40.0, normalise=normalise)
    tiny_module(alpha=40.0)
    tiny_module(alpha=20.0, normalise=normalise)
