"""What the branches and continuations of a group share of their noise, in rollouts. Costs a second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tabular_policy import TabularPolicy
from tiny import PROMPTS, tiny_module
from torch import Tensor

from varrl_lightning.algorithms.noise import Strata, common, fold, uniforms
from varrl_lightning.algorithms.sampling import inverse_cdf
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.types import Prompt, Rollout, Sampling, Stage

GRIDS = ((1, 1), (1, 2), (1, 3))
BOTH = NoiseOptions(continuations="common", branches="stratified")
A = 8
STAGES = {
    "prefix": Stage(0, 2, A, continuations=2),
    "prefix after r_1": Stage(1, 2, A, continuations=2),
    "drafts": Stage(1, 2, A, continuations=0),
    "suffix": Stage(1, 3, A),
    "suffix of two starts": Stage(1, 3, A, starts=2),
    "whole": Stage(0, 3, A),
}


def policy(bits: int | None = None) -> TabularPolicy:
    return TabularPolicy(GRIDS, vocab_size=4, bits=bits, labels=3)


def sampled(stage: Stage, noise: NoiseOptions, bits: int | None = None, **options: Any) -> Rollout:
    prompts = [Prompt(str(i), label=i % 3) for i in range(12)]
    keys = prompt_keys(0, 0, prompts, torch.device("cpu"))
    return sample_tree(policy(bits), prompts, stage, Sampling(), keys, noise=noise, **options)


def everything(rollout: Rollout) -> list[Tensor]:
    assert rollout.keys is not None
    return [rollout.images, rollout.keys, *rollout.tokens, *rollout.tail_tokens, *rollout.log_probs]


@pytest.mark.parametrize("name", STAGES)
def test_what_is_sampled_depends_neither_on_chunks_nor_on_who_samples_which_branches(name: str) -> None:
    stage, K = STAGES[name], STAGES[name].images_per_branch
    whole = sampled(stage, BOTH)
    for images_at_once in (13, 37):
        parts = sampled(stage, BOTH, images_at_once=images_at_once)
        assert all(torch.equal(a, b) for a, b in zip(everything(whole), everything(parts), strict=True))
    branches = [3, 9, 10, 50, 95]
    some = sampled(stage, BOTH, branches=branches)
    assert torch.equal(some.images, whole.images.unflatten(0, (-1, K))[branches].flatten(0, 1))
    assert all(torch.equal(a[branches], b) for a, b in zip(whole.tokens, some.tokens, strict=True))


@pytest.mark.parametrize("name", [name for name in STAGES if name != "drafts"])
def test_by_default_every_image_has_noise_of_its_own(name: str) -> None:
    """The keys by their definition: prompt, start, branch, continuation; and the last tokens drawn from them again."""
    stage = STAGES[name]
    rollout, model = sampled(stage, NoiseOptions()), policy()
    own = prompt_keys(0, 0, rollout.prompts, torch.device("cpu"))
    each = A // stage.starts
    keys = [
        fold(fold(fold(key[None], branch // each), branch % each), k)
        for key in own
        for branch in range(A)
        for k in range(stage.continuations)
    ]
    assert torch.equal(rollout.keys, torch.cat(keys))
    if stage.stop < 3:
        images = rollout.image_prompts
        history = torch.cat([t.repeat_interleave(stage.continuations, dim=0) for t in rollout.tokens], dim=1)
        states = (history * 4 ** torch.arange(history.shape[1] - 1, -1, -1)).sum(dim=1)
        logits = model.transformer[2][torch.tensor([1 + (p.label or 0) for p in images]), states]
        assert torch.equal(rollout.tail_tokens[0], inverse_cdf(logits.softmax(-1), uniforms(rollout.keys, 2, 3)))


def test_continuations_in_common_are_equal_where_the_branches_are() -> None:
    stage = Stage(0, 2, A, continuations=3)
    rollout, apart = (sampled(stage, NoiseOptions(continuations=c)) for c in ("common", "independent"))
    assert all(torch.equal(a, b) for a, b in zip(rollout.tokens, apart.tokens, strict=True))
    shared = common(prompt_keys(0, 0, rollout.prompts, torch.device("cpu")))
    assert torch.equal(rollout.keys, fold(shared.repeat_interleave(3 * A), torch.arange(3).repeat(12 * A)))
    prefixes = torch.cat(rollout.tokens, dim=1).unflatten(0, (-1, A))
    equal = (prefixes[:, :, None] == prefixes[:, None]).all(dim=-1).triu(1).nonzero().tolist()
    assert len(equal) > 10
    tails, theirs = (r.tail_tokens[0].unflatten(0, (-1, A, 3)) for r in (rollout, apart))
    assert all(torch.equal(tails[p, a], tails[p, b]) for p, a, b in equal)
    assert not all(torch.equal(theirs[p, a], theirs[p, b]) for p, a, b in equal)
    assert not torch.equal(tails[:, :, 0], tails[:, :, 1])  # those of one branch are different
    assert not torch.equal(tails[0, :, 0], tails[3, :, 0])  # and so are those of prompts with the same label


@pytest.mark.parametrize("name", ["prefix after r_1", "suffix of two starts", "whole"])
@pytest.mark.parametrize("bits", [None, 2])
def test_tokens_of_branches_that_share_a_start_are_as_frequent_as_they_are_likely(name: str, bits: int | None) -> None:
    """Of n branches the first v tokens have n times their probability, to less than one branch: so little is left to chance."""
    stage = STAGES[name]
    rollout, model, each = sampled(stage, BOTH, bits), policy(bits), A // stage.starts
    scale = stage.start
    tokens = rollout.tokens[scale].unflatten(0, (-1, each))
    labels = torch.tensor([1 + (p.label or 0) for p in rollout.prompts]).repeat_interleave(stage.starts)
    before = [model.tokens_of(torch.arange(4)[:, None])[0][:, 0].tolist().index(t.tolist()) for t in _first(rollout, each)]
    states = torch.tensor(before) if scale else torch.zeros(len(labels), dtype=torch.long)
    cumulative = model.transformer[scale][labels, states].softmax(-1).cumsum(-1)
    counts = torch.stack([(tokens <= v).sum(dim=1) for v in range(cumulative.shape[-1])], dim=-1)
    assert (counts - each * cumulative).abs().max() < 1 + 1e-5
    loose = sampled(stage, NoiseOptions(), bits).tokens[scale].unflatten(0, (-1, each))
    counts = torch.stack([(loose <= v).sum(dim=1) for v in range(cumulative.shape[-1])], dim=-1)
    assert (counts - each * cumulative).abs().max() > 1.5


def _first(rollout: Rollout, each: int) -> Tensor:
    """The token of r_1 of each start."""
    return rollout.tokens[0][::each, 0]


def test_drafts_are_those_of_the_branches_that_would_be_continued() -> None:
    drafts, continued = sampled(STAGES["drafts"], BOTH), sampled(STAGES["prefix after r_1"], BOTH)
    assert all(torch.equal(a, b) for a, b in zip(drafts.tokens, continued.tokens, strict=True))


def test_only_trained_scales_are_stratified() -> None:
    """The last scale is continued: its tokens come from the leaves' own keys, without strata."""
    stage = STAGES["prefix"]
    plain, stratified = sampled(stage, NoiseOptions()), sampled(stage, NoiseOptions(branches="stratified"))
    assert torch.equal(plain.keys, stratified.keys)
    model, history = policy(), torch.cat([t.repeat_interleave(2, dim=0) for t in stratified.tokens], dim=1)
    states = (history * torch.tensor([16, 4, 1])).sum(dim=1)
    labels = torch.tensor([1 + (p.label or 0) for p in stratified.image_prompts])
    logits = model.transformer[2][labels, states]
    assert torch.equal(stratified.tail_tokens[0], inverse_cdf(logits.softmax(-1), uniforms(stratified.keys, 2, 3)))


@pytest.mark.parametrize("options", [{"continuations": "common"}, {"branches": "stratified"}])
def test_a_generator_is_refused(options: dict[str, Any]) -> None:
    prompts = [Prompt("a", label=0)]
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=r"needs noise keys, one a prompt.*torch\.Generator"):
        sample_tree(policy(), prompts, STAGES["prefix"], Sampling(), generator, noise=NoiseOptions(**options))
    state = policy().begin(policy().encode_prompts(prompts), Sampling(), generator)
    with pytest.raises(ValueError, match=r"need noise keys, one a row"):
        state.children([0, 0], [0, 1], stratified=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"noise": {"continuations": "common"}, "num_continuations": 0, "alternation": ["prefix"]},
            "continuations: common does nothing",
        ),
        ({"noise": {"continuations": "common"}, "stages": [Stage(0, 4, 4)]}, "continuations: common does nothing: no stage has"),
        ({"noise": {"branches": "stratified"}, "first_scale": "per_branch"}, "branches: stratified does nothing in prefix: each"),
        (
            {"noise": {"branches": "stratified"}, "suffix_starts": 4, "alternation": ["suffix"]},
            "branches: stratified does nothing in suffix",
        ),
    ],
)
def test_an_option_that_does_nothing_is_warned_of(options: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message) as caught:
        tiny_module(**options)
    assert len(caught) == 1


def test_one_continuation_can_share_its_noise() -> None:
    assert tiny_module(noise={"continuations": "common"}, num_continuations=1).grpo.noise.continuations == "common"


def test_it_is_an_argument_of_the_module() -> None:
    module = tiny_module(noise={"branches": "stratified"}, group_size=4)
    assert module.grpo.noise == NoiseOptions(branches="stratified")
    assert module.describe()["noise"] == module.grpo.noise  # processes compare it
    assert module.hparams["noise"] == {"branches": "stratified"}  # a checkpoint holds it
    keys = prompt_keys(0, 0, PROMPTS[:2], module.device)
    rollout, _ = module.grpo.sample(module.policy, PROMPTS[:2], module.grpo.stage(0), keys)
    index = torch.arange(4).repeat(2)
    start = fold(keys, 0).repeat_interleave(4)
    cond = module.policy.encode_prompts(PROMPTS[:2]).repeat(4)
    state = module.policy.begin(cond, module.sampling, fold(start, index))
    expected = module.policy.sample(replace(state, strata=Strata(start, index, 4)), 2)
    assert all(torch.equal(a, b) for a, b in zip(rollout.tokens, expected.tokens, strict=True))
