"""Adapters on the transformers of all families: layers that are called, and not only read, are adapted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_infinity
import test_switti
import test_tokenflow
import test_var
import torch
from parity import rules
from torch import Tensor

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, adapter_off, add_lora, merged_tensors
from varrl_lightning.policies.state import Cond, State
from varrl_lightning.types import Prompt, Sampling, Score

SAMPLING = Sampling(cfg=2.0)
Made = tuple[VARPolicy, Cond]


def var(folder: Path, **options: Any) -> Made:
    data = torch.load(test_var.DATA / "var_l2norm.pt", weights_only=True)
    files = test_var.write(folder, data)
    policy = test_var.ImageNetVARPolicy.from_pretrained(*files, num_heads=data["config"]["num_heads"], **options)
    return policy, policy.encode_prompts(test_var.PROMPTS)


def infinity(folder: Path, **options: Any) -> Made:
    data = test_infinity.load("published_8b")
    policy = test_infinity.build(folder, data, **options)
    return policy, replace(policy.encode_prompts(test_infinity.PROMPTS), schedule=test_infinity.short(policy, data))


def switti(folder: Path, **options: Any) -> Made:
    data = test_switti.reference("default")
    torch.save(test_switti.public_weights("default"), folder / "switti.pth")
    torch.save(rules.weights(data["layouts"]["tokenizer"], rules.TOKENIZER), folder / "vqvae.pth")
    names = ("num_heads", "rope_theta", "rope_size")
    known = {name: data["config"][name] for name in names} | {"autoregressive": data["config"]["use_ar"]}
    files = (folder / "switti.pth", folder / "vqvae.pth")
    policy = test_switti.SwittiPolicy.from_pretrained(*files, test_switti.MadeUpFeatures(), **known, **options)
    return policy, policy.encode_prompts([Prompt("a cat"), Prompt("a dog", negative="a cat")])


def tokenflow(folder: Path, **options: Any) -> Made:
    policy = test_tokenflow.load(folder, test_tokenflow.stored("grouped"), **options)
    return policy, policy.encode_prompts(test_tokenflow.PROMPTS)


def disturbed(policy: VARPolicy) -> VARPolicy:
    """Adapted, as after some training."""
    torch.manual_seed(0)
    for name, parameter in add_lora(policy, rank=2, alpha=4.0).transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn_like(parameter)
    return policy


def forked(policy: VARPolicy, cond: Cond) -> State:
    """Two scales, then two continuations of each row to the end."""
    state = policy.sample(policy.begin(cond, SAMPLING, torch.arange(len(cond))), 2)
    return policy.sample(state.fork(2), len(cond.schedule))


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}], ids=["", "checkpointed", "bf16"])
@pytest.mark.parametrize("make", [var, infinity, switti, tokenflow])
def test_an_adapter_on(make: Callable[..., Made], options: dict[str, Any], tmp_path: Path) -> None:
    base, cond = make(tmp_path, **options)
    policy = disturbed(make(tmp_path, **options)[0])
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
