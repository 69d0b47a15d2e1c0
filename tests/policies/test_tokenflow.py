"""TokenFlow-t2i against what the public code computed with the same weights, and what only ours has to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rules import abridged
from torch import Tensor
from torch.nn import functional as F

from tests.families import TOKENFLOW_PROMPTS as PROMPTS
from tests.families import TOKENFLOW_TEXTS as TEXTS
from tests.families import load_tokenflow as load
from tests.families import read, relative, tokenflow_of, write_tokenflow
from varrl_lightning.policies.tokenflow import NEGATIVE, TokenFlowPolicy
from varrl_lightning.schedule import Schedule, square
from varrl_lightning.tokenizers.tokenflow_vq import TOKENFLOW_256, TokenFlowVQ
from varrl_lightning.types import Prompt, Sampling, Score

VARIANTS = ("plain", "grouped")
LOGITS = 1e-5
"""Of the largest logit."""


def stored(variant: str) -> dict[str, Any]:
    return read(f"tokenflow_{variant}")


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, weights_folder: Path) -> tuple[dict[str, Any], TokenFlowPolicy]:
    return stored(request.param), load(weights_folder, request.param)


def logits_of(policy: TokenFlowPolicy, inputs: dict[str, Tensor], tokens: list[Tensor], stop: int) -> Tensor:
    features = policy.span_features(inputs, tokens, 0, stop, policy.schedule())
    return torch.cat([policy.logits(x) for x in features], dim=1)


class WholeVocabulary(TokenFlowPolicy):
    """Draws from text and visual tokens together, as the public sampler does, so that a generator's numbers mean the same."""

    def logits(self, features: Tensor) -> Tensor:
        return F.pad(super().logits(features), (self.transformer.visual_range.start, 0), value=-1e30)

    def accumulate(self, latent: Tensor, tokens: Tensor, scale: int, schedule: Schedule) -> Tensor:
        return super().accumulate(latent, tokens - self.transformer.visual_range.start, scale, schedule)


def test_teacher_forced_logits_and_log_probs(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    data, policy = case
    teacher, cond, tokens = data["teacher"], policy.encode_prompts(PROMPTS), data["sampling"][-1]["tokens"]
    with torch.no_grad():
        assert relative(logits_of(policy, cond.tensors, tokens, len(tokens)), teacher["cond"]) < LOGITS
        assert relative(logits_of(policy, cond.unconditional, tokens, len(tokens)), teacher["uncond"]) < LOGITS
        scored = policy(tokens, cond, 0, len(tokens))
    assert relative(torch.cat(scored.log_prob, dim=1), teacher["log_prob"]) < LOGITS


def test_truncated_passes(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    """Scales [0, m) alone give what the whole pass gives for them."""
    data, policy = case
    tokens, cond = data["sampling"][-1]["tokens"], policy.encode_prompts(PROMPTS)
    for m in range(1, len(tokens)):
        wanted = data["teacher"]["cond"][:, : policy.schedule().offsets[m]]
        with torch.no_grad():
            assert relative(logits_of(policy, cond.tensors, tokens[: m - 1], m), wanted) < LOGITS


def test_sampling_draws_the_same_tokens_and_images(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    data, policy = case
    whole = WholeVocabulary(policy.transformer, policy.tokenizer, policy.text_encoder, policy.longest, NEGATIVE)
    cond, start = whole.encode_prompts(PROMPTS), data["config"]["text_tokens"]
    for drawn in data["sampling"]:
        sampling = Sampling(cfg=drawn["cfg"], top_k=drawn["top_k"], top_p=drawn["top_p"] or 1.0)
        state = whole.begin(cond, sampling, torch.Generator().manual_seed(drawn["seed"]))
        state = whole.sample(state, len(whole.schedule()))
        for ours, public in zip(state.tokens, drawn["tokens"], strict=True):
            torch.testing.assert_close(ours - start, public)
        torch.testing.assert_close(
            policy.decode(drawn["tokens"], policy.schedule()), drawn["images"].clamp(0, 1), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["model", "guided"])
def test_gradients(case: tuple[dict[str, Any], TokenFlowPolicy], kind: Any, checkpointing: bool) -> None:
    data, policy = case
    wanted, drawn = data["teacher"]["gradients" if kind == "model" else "guided_gradients"], data["sampling"][-1]
    policy.zero_grad()
    policy.transformer.gradient_checkpointing = checkpointing
    try:
        score = Score(kind, Sampling(cfg=drawn["cfg"]))
        scored = policy(drawn["tokens"], policy.encode_prompts(PROMPTS), 0, len(drawn["tokens"]), score=score)
        torch.cat(scored.log_prob, dim=1).mean().backward()
    finally:
        policy.transformer.gradient_checkpointing = False
    assert dict(policy.transformer.named_parameters()).keys() == wanted.keys()
    for name, parameter in policy.transformer.named_parameters():
        assert parameter.grad is not None, name
        found = abridged(parameter.grad)
        assert found["norm"] == pytest.approx(wanted[name]["norm"], rel=1e-4, abs=1e-7), name
        torch.testing.assert_close(found["entries"], wanted[name]["entries"], atol=1e-6, rtol=1e-3, msg=name)


def test_rows_do_not_know_of_each_other(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    """Prompts of 5, 8 and 14 ids in one batch are drawn as each is alone."""
    data, policy = case
    tokens = data["sampling"][-1]["tokens"]
    together = policy.encode_prompts(PROMPTS)
    with torch.no_grad():
        batch = logits_of(policy, together.tensors, tokens, len(tokens))
        for i, prompt in enumerate(PROMPTS):
            alone = policy.encode_prompts([prompt])
            row = logits_of(policy, alone.tensors, [t[i : i + 1] for t in tokens], len(tokens))
            assert relative(batch[i : i + 1], row) < LOGITS


@pytest.mark.parametrize("guided", [False, True])
def test_sampled_and_teacher_forced_log_probs_agree_after_a_fork(
    case: tuple[dict[str, Any], TokenFlowPolicy], guided: bool
) -> None:
    _, policy = case
    sampling = Sampling(cfg=3.0 if guided else None, top_k=20, top_p=0.9, temperature=0.7)
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, sampling, torch.tensor([5, 6, 7])), 2).fork(2)
    state = policy.sample(state, len(policy.schedule()))
    assert not torch.equal(state.tokens[-1][0], state.tokens[-1][1])
    with torch.no_grad():
        scored = policy(state.tokens, cond.repeat(2), 0, len(state.tokens), score=Score("sampler", sampling))
    torch.testing.assert_close(torch.cat(scored.log_prob, 1), torch.cat(state.log_probs, 1), atol=1e-5, rtol=0)


def test_what_padding_holds_has_no_influence(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    data, policy = case
    tokens, cond = data["sampling"][-1]["tokens"], policy.encode_prompts(PROMPTS)
    other = cond.tensors | {"ids": cond.tensors["ids"].masked_fill(~cond.tensors["mask"], 9)}
    assert not torch.equal(other["ids"], cond.tensors["ids"])
    with torch.no_grad():
        torch.testing.assert_close(logits_of(policy, other, tokens, 3), logits_of(policy, cond.tensors, tokens, 3), atol=0, rtol=0)


def test_bfloat16_weights_keep_their_rotary_frequencies(weights_folder: Path) -> None:
    policy = load(weights_folder, "plain", dtype="bfloat16")
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    x = torch.zeros(1, 1, 1)
    cos, _ = policy.to(torch.bfloat16).transformer._rotary[0](x, torch.tensor([[101]]))
    angles = 101 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(cos[0, 0], angles.cos().repeat(2), atol=1e-4, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_near_full(weights_folder: Path, autocast: bool) -> None:
    data = stored("grouped")
    policy = load(weights_folder, "grouped", dtype="float32" if autocast else "bfloat16")
    tokens, cond = data["sampling"][-1]["tokens"], policy.encode_prompts(PROMPTS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = logits_of(policy, cond.tensors, tokens, len(tokens)).float()
    assert 1e-4 < relative(found, data["teacher"]["cond"]) < 0.05


def test_loading_names_what_does_not_fit(tmp_path: Path) -> None:
    data = stored("plain")
    data["layouts"]["transformer"]["shapes"]["model.layers.1.extra.weight"] = (3,)
    del data["layouts"]["transformer"]["shapes"]["model.layers.2.mlp.down_proj.weight"]
    with pytest.raises(
        ValueError, match=r"(?s)missing model.layers.2.mlp.down_proj.weight.*unexpected model.layers.1.extra.weight"
    ):
        tokenflow_of(write_tokenflow(tmp_path, data), data)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    data = stored("plain")
    del data["layouts"]["transformer"]["shapes"]["model.pos_1LC"]
    with pytest.raises(ValueError, match=r"no TokenFlow-t2i checkpoint: it has no model.pos_1LC"):
        tokenflow_of(write_tokenflow(tmp_path, data), data)


def test_another_schedule_is_refused(weights_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on 3 scales of 21 tokens in all.*has 9 of 817"):
        load(weights_folder, "plain", schedule=TOKENFLOW_256)


def test_visual_tokens_must_fit_the_vocabulary(weights_folder: Path) -> None:
    with pytest.raises(ValueError, match="48 visual tokens from id 21 on do not fit a vocabulary of 68"):
        load(weights_folder, "plain", image_token_start=21)


class Words:
    """A tokenizer of transformers, as far as it is asked."""

    bos_token_id = 1

    def __init__(self, adds_begin: bool) -> None:
        self.adds_begin = adds_begin

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if text == "<img>":
            assert not add_special_tokens
            return [3, 4]
        return [self.bos_token_id] * self.adds_begin + [5 + len(word) for word in text.split()]

    def convert_tokens_to_ids(self, token: str) -> int:
        assert token == "<vq_token_0>"
        return 20


@pytest.mark.parametrize("adds_begin", [False, True])
def test_a_prompt_begins_once_and_is_cut_off(weights_folder: Path, adds_begin: bool) -> None:
    policy = load(weights_folder, "plain", text_encoder=Words(adds_begin), max_text_tokens=4)
    assert policy.prefix_ids("a cow") == [1, 6, 8, 3, 4]
    assert policy.prefix_ids("a cow in the rain") == [1, 6, 8, 7, 3, 4]


def test_the_tokenizer_says_where_visual_tokens_begin(tmp_path: Path) -> None:
    data = stored("plain")
    transformer, tokenizer = write_tokenflow(tmp_path, data)
    tensors = torch.load(transformer, weights_only=True)
    del tensors["image_token_start"]
    torch.save(tensors, transformer)
    vq, schedule = TokenFlowVQ.from_pretrained(tokenizer), square((1, 2, 4), stride=2)
    policy = TokenFlowPolicy.from_pretrained(transformer, vq, Words(True), schedule=schedule)
    assert policy.transformer.visual_range == slice(20, 68)
    with pytest.raises(ValueError, match="nothing says where visual tokens begin; give image_token_start, the id of <vq_token_0>"):
        TokenFlowPolicy.from_pretrained(transformer, vq, schedule=schedule)


def test_prompts_may_have_their_own_negative(weights_folder: Path) -> None:
    policy = load(weights_folder, "plain", text_encoder=Words(True))
    ours = policy.encode_prompts([Prompt("a cow", negative="mud"), Prompt("a cow")])
    own, default = ours.unconditional["ids"]
    assert own[ours.unconditional["mask"][0]].tolist() == [1, 8, 3, 4]
    assert default[ours.unconditional["mask"][1]].tolist() == policy.prefix_ids(NEGATIVE)


def test_only_the_trained_size_is_drawn(case: tuple[dict[str, Any], TokenFlowPolicy]) -> None:
    _, policy = case
    assert policy.schedule((8, 8)) == policy.schedule()
    with pytest.raises(ValueError, match=r"images of \(8, 8\) pixels only, got \(4, 4\)"):
        policy.encode_prompts([Prompt(TEXTS[0], size=(4, 4))])


def test_published_names_are_kept(case: tuple[dict[str, Any], TokenFlowPolicy], tmp_path: Path) -> None:
    """With the ids of the visual tokens, so that what is exported tells as much as what was loaded."""
    data, policy = case
    exported = policy.published(policy.transformer.state_dict())
    shapes = {name: tuple(x.shape) for name, x in exported.items()}
    assert shapes == data["layouts"]["transformer"]["shapes"] | {"image_token_start": (), "image_token_end": ()}
    torch.save(exported, tmp_path / "exported.pth")
    again = TokenFlowPolicy.from_pretrained(tmp_path / "exported.pth", policy.tokenizer, schedule=data["config"]["sides"])
    assert again.transformer.visual_range == policy.transformer.visual_range
