"""Adapters on the transformers of all families: layers that are called, and not only read, are adapted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import Made, disturbed, infinity, same, switti, tokenflow, var
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, adapter_off, merged_tensors
from varrl_lightning.policies.state import Cond, State
from varrl_lightning.types import Sampling, Score

SAMPLING = Sampling(cfg=2.0)


def forked(policy: VARPolicy, cond: Cond) -> State:
    """Two scales, then two continuations of each row to the end."""
    state = policy.sample(policy.begin(cond, SAMPLING, torch.arange(len(cond))), 2)
    return policy.sample(state.fork(2), len(cond.schedule))


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}], ids=["", "checkpointed", "bf16"])
@pytest.mark.parametrize("make", [var, infinity, switti, tokenflow])
def test_an_adapter_on(make: Callable[..., Made], options: dict[str, Any], weights_folder: Path) -> None:
    base, cond = make(weights_folder, **options)
    policy = disturbed(make(weights_folder, **options)[0])
    drawn, stop = forked(base, cond), len(cond.schedule)
    with adapter_off(policy):
        assert same(forked(policy, cond).log_probs, drawn.log_probs)
    score, twice = Score("sampler", SAMPLING), cond.repeat(2)
    scored = policy(drawn.tokens, twice, 0, stop, score=score, reference=AdapterOff(policy))
    assert same(scored.kl, policy(drawn.tokens, twice, 0, stop, score=score, reference=base).kl)
    assert all(bool((kl.detach() > 0).any()) for kl in scored.kl)
    sum((kl + x).sum() for kl, x in zip(scored.kl, scored.log_prob, strict=True)).backward()
    trained = {name: p for name, p in policy.transformer.named_parameters() if p.requires_grad}
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    base.transformer.load_state_dict(merged_tensors(policy))
    tolerance = 0.2 if "dtype" in options else 2e-5
    with torch.no_grad():
        adapted, merged = policy(drawn.tokens, twice, 0, stop).log_prob, base(drawn.tokens, twice, 0, stop).log_prob
    torch.testing.assert_close(torch.cat(adapted, dim=1), torch.cat(merged, dim=1), rtol=0, atol=tolerance)
