"""An adapted policy is the base policy with its adapter off, exactly, and a policy like any other with it on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny import PROMPTS, SCHEDULE, TinyPolicy, tiny_policy
from torch import Tensor, nn

from tests.families import same
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lora import (
    AdapterOff,
    adapter_off,
    adapter_tensors,
    add_lora,
    base_tensors,
    has_adapter,
    load_adapter,
    merged_tensors,
)
from varrl_lightning.types import LogProbs, Sampling, Score

START, STOP = 1, 3
SAMPLING = Sampling(cfg=2.0, top_k=8)


def plain(name: str) -> LetteringPolicy:
    return LetteringPolicy.from_pretrained() if name == "embedded" else tiny_policy()


def disturbed(policy: VARPolicy, seed: int = 1) -> VARPolicy:
    """The adapter as after some training: B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def adapted(name: str = "tiny", **options: Any) -> VARPolicy:
    torch.manual_seed(3)
    return add_lora(plain(name), **({"rank": 4, "alpha": 8.0} | options))


def drawn(policy: VARPolicy, k: int = 1) -> list[Tensor]:
    """Tokens of each prompt; the last scales are drawn by k forks."""
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, SAMPLING, torch.arange(len(PROMPTS))), 2)
    return policy.sample(state.fork(k), len(cond.schedule)).tokens


def scored(policy: VARPolicy, reference: Any = None, kind: Any = "model") -> LogProbs:
    tokens = drawn(plain("tiny" if isinstance(policy, TinyPolicy) else "embedded"))
    scores: LogProbs = policy(tokens, policy.encode_prompts(PROMPTS), START, STOP, score=Score(kind, SAMPLING), reference=reference)
    return scores


@pytest.mark.parametrize("name", ["tiny", "embedded"])
@torch.no_grad()
def test_a_new_adapter_changes_nothing(name: str) -> None:
    base, policy = plain(name), adapted(name)
    assert has_adapter(policy)
    assert not has_adapter(base)
    assert same(scored(policy).log_prob, scored(base).log_prob)


@pytest.mark.parametrize("name", ["tiny", "embedded"])
@pytest.mark.parametrize("kind", ["model", "sampler", "guided"])
@torch.no_grad()
def test_with_its_adapter_off_a_policy_is_its_base_exactly(name: str, kind: str) -> None:
    base, policy = plain(name), disturbed(adapted(name))
    assert not same(scored(policy, kind=kind).log_prob, scored(base, kind=kind).log_prob)
    with adapter_off(policy):
        assert same(scored(policy, kind=kind).log_prob, scored(base, kind=kind).log_prob)
        assert same(drawn(policy, k=2), drawn(base, k=2))
    assert not same(scored(policy, kind=kind).log_prob, scored(base, kind=kind).log_prob)


def test_the_adapter_is_on_again_after_an_error_and_after_the_inner_of_two_blocks() -> None:
    policy = disturbed(adapted())
    on = scored(policy).log_prob
    with pytest.raises(RuntimeError, match="inside"), adapter_off(policy):
        raise RuntimeError("inside")
    assert same(scored(policy).log_prob, on)
    with adapter_off(policy):
        off = scored(policy).log_prob
        with adapter_off(policy):
            pass
        assert same(scored(policy).log_prob, off)
    assert same(scored(policy).log_prob, on)


def test_only_the_adapter_trains_and_an_off_block_leaves_it_so() -> None:
    policy = disturbed(adapted())
    names = {name for name, p in policy.transformer.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    with adapter_off(policy):
        assert {name for name, p in policy.transformer.named_parameters() if p.requires_grad} == names
    sum(x.sum() for x in scored(policy, AdapterOff(policy)).log_prob).backward()
    with_gradient = {name for name, p in policy.transformer.named_parameters() if p.grad is not None and p.grad.any()}
    exits = {name for name in names if name.startswith("exits.")}
    trained = {f"exits.{t}." for t in range(START, STOP)}
    assert with_gradient == (names - exits) | {name for name in exits if name.startswith(tuple(trained))}


@pytest.mark.parametrize("kind", ["model", "sampler", "guided"])
def test_the_kl_to_the_policy_with_its_adapter_off(kind: str) -> None:
    """It is 0 at first; after a step it is the KL to a copy of the base, and so is its gradient."""
    policy = adapted()
    scores = scored(policy, AdapterOff(policy), kind)
    assert all(not kl.any() for kl in scores.kl)
    assert same(scores.reference_log_prob, [x.detach() for x in scores.log_prob])
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    (-sum(x.mean() for x in scores.log_prob)).backward()
    optimizer.step()
    gradients = []
    for reference in (AdapterOff(policy), plain("tiny").frozen_copy()):
        optimizer.zero_grad()
        scores = scored(policy, reference, kind)
        total = sum(kl.sum() for kl in scores.kl)
        total.backward()
        assert float(total.detach()) > 1e-4
        gradients.append([float(total.detach()), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)])
    assert gradients[0][0] == gradients[1][0]
    assert same(gradients[0][1:], gradients[1][1:])


def test_recomputed_blocks_are_recomputed_with_the_adapter_on() -> None:
    """Gradient checkpointing of every block, while the reference is the same blocks with the adapter off."""
    from torch.utils.checkpoint import checkpoint

    gradients = []
    for recompute in (False, True):
        policy = disturbed(adapted())
        if recompute:
            for block in policy.transformer.blocks:
                original = block.forward
                block.forward = lambda *args, _f=original: checkpoint(_f, *args, use_reentrant=False)
        scores = scored(policy, AdapterOff(policy))
        sum((kl + x).sum() for kl, x in zip(scores.kl, scores.log_prob, strict=True)).backward()
        gradients.append([p.grad for p in policy.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    assert same(*gradients)


def test_adapter_off_of_a_policy_without_one() -> None:
    with pytest.raises(ValueError, match="no adapter that could be off; apply add_lora first"):
        AdapterOff(plain("tiny"))


@pytest.mark.parametrize("name", ["tiny", "embedded"])
@torch.no_grad()
def test_merged_tensors_in_a_plain_policy_are_the_adapted_policy(name: str) -> None:
    policy, merged = disturbed(adapted(name)), plain(name)
    before = {key: x.clone() for key, x in policy.state_dict().items()}
    merged.transformer.load_state_dict(merged_tensors(policy))
    for a, b in zip(scored(merged).log_prob, scored(policy).log_prob, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not same(scored(merged).log_prob, scored(plain(name)).log_prob)
    assert all(torch.equal(x, before[key]) for key, x in policy.state_dict().items())


def test_merged_tensors_have_the_digits_of_the_adapter_unless_a_dtype_is_asked_for() -> None:
    policy = plain("tiny")
    policy.transformer.bfloat16()
    disturbed(add_lora(policy, targets=["qkv"]))
    adapted = {f"{name}.weight" for name in ("blocks.0.qkv", "blocks.1.qkv")}
    dtypes = {name: x.dtype for name, x in merged_tensors(policy).items()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == adapted
    assert {x.dtype for x in merged_tensors(policy, torch.bfloat16).values()} == {torch.bfloat16}


def test_base_tensors_are_those_before() -> None:
    base, policy = plain("tiny"), disturbed(adapted())
    tensors = base_tensors(policy)
    assert list(tensors) == list(base.transformer.state_dict())
    assert all(torch.equal(tensors[name], x) for name, x in base.transformer.state_dict().items())


def test_an_adapter_is_saved_and_loaded_alone() -> None:
    policy, fresh = disturbed(adapted()), adapted()
    tensors = {name: x.clone() for name, x in adapter_tensors(policy).items()}
    assert tensors["blocks.0.qkv.lora_A.weight"].shape == (4, 16)
    assert tensors["blocks.0.qkv.lora_B.weight"].shape == (48, 4)
    assert all("lora_" in name for name in tensors)
    assert adapter_tensors(plain("tiny")) == {}
    load_adapter(fresh, tensors)
    assert same(scored(fresh).log_prob, scored(policy).log_prob)


def test_an_adapter_of_another_shape_is_refused_whole() -> None:
    policy = adapted(targets=["qkv"])
    before = {name: x.clone() for name, x in adapter_tensors(policy).items()}
    with pytest.raises(ValueError, match=r"misshaped blocks\.0\.qkv\.lora_A\.weight: \[8, 16\] in the file, \[4, 16\]"):
        load_adapter(policy, adapter_tensors(disturbed(adapted(targets=["qkv"], rank=8))))
    with pytest.raises(ValueError, match=r"unexpected blocks\.0\.out\.lora_A\.weight"):
        load_adapter(policy, adapter_tensors(disturbed(adapted(targets=["qkv", "out"]))))
    assert all(torch.equal(x, before[name]) for name, x in adapter_tensors(policy).items())


def test_a_copy_has_an_adapter_of_its_own() -> None:
    policy = disturbed(adapted())
    for other in (copy.deepcopy(policy), policy.frozen_copy()):
        assert same(scored(other).log_prob, scored(policy).log_prob)
        disturbed(other, seed=2)
        assert not same(scored(other).log_prob, scored(policy).log_prob)
    anchor = copy.deepcopy((policy, AdapterOff(policy)))
    assert anchor[1].policy is anchor[0]


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (["qkv"], {"blocks.0.qkv", "blocks.1.qkv"}),
        (["blocks.0.qkv", "head"], {"blocks.0.qkv", "head"}),
        (["blocks.*.mlp.*"], {f"blocks.{i}.mlp.{j}" for i in (0, 1) for j in (0, 2)}),
        (["mlp.0"], {"blocks.0.mlp.0", "blocks.1.mlp.0"}),
        (["exits.?"], {f"exits.{t}" for t in range(len(SCHEDULE))}),
    ],
)
def test_targets_are_names_or_their_ends_or_patterns(targets: list[str], wanted: set[str]) -> None:
    policy = adapted(targets=targets)
    assert {name.partition(".lora_")[0] for name in adapter_tensors(policy)} == wanted


def test_all_linear_layers_are_adapted_by_default() -> None:
    linear = {name for name, module in plain("tiny").transformer.named_modules() if isinstance(module, nn.Linear)}
    assert {name.partition(".lora_")[0] for name in adapter_tensors(adapted())} == linear


@pytest.mark.parametrize("target", ["q", "kv", "norm1", "blocks.7.qkv", "letter"])
def test_an_unknown_target_lists_those_that_exist(target: str) -> None:
    policy = plain("tiny")
    listing = r"place, latent, blocks\.\*\.qkv, blocks\.\*\.out, blocks\.\*\.mlp\.\*, exits\.\*, head$"
    with pytest.raises(ValueError, match=rf"'{target}' is no linear layer of TinyTransformer: {listing}"):
        add_lora(policy, targets=["qkv", target])
    assert not has_adapter(policy)
    assert all(p.requires_grad for p in policy.transformer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0.0}, "alpha > 0"),
        ({"dropout": 0.1}, "dropout must be 0, got 0.1"),
        ({"targets": []}, "no linear layers to adapt"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**options)


def test_one_adapter_is_enough() -> None:
    with pytest.raises(ValueError, match="has an adapter already"):
        add_lora(adapted())


def test_the_adapter_of_a_bf16_policy_is_fp32_and_learns() -> None:
    base = plain("tiny")
    base.transformer.bfloat16()
    policy = add_lora(copy.deepcopy(base), rank=4)
    assert {x.dtype for x in adapter_tensors(policy).values()} == {torch.float32}
    assert {x.dtype for x in base_tensors(policy).values()} == {torch.bfloat16}
    sum(x.sum() for x in scored(disturbed(policy)).log_prob).backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    with torch.no_grad(), adapter_off(policy):
        assert same(scored(policy).log_prob, scored(base).log_prob)


def test_an_adapted_policy_stays_in_evaluation_mode() -> None:
    assert not any(module.training for module in adapted().train().modules())
