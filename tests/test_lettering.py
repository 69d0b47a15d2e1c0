"""The embedded model: its sampler and teacher forcing agree, its files load strictly, and it says what it cannot draw."""

import json
import re
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from varrl_lightning.policies.base import Cond, State
from varrl_lightning.policies.lettering import ASSETS, LETTERING, LetteringPolicy
from varrl_lightning.types import Prompt, Sampling, Score

PROMPTS = [Prompt(text=f'"{word}"') for word in ("TERSE", "FOX", "quiz")]
KEYS = torch.arange(3)


@pytest.fixture(scope="module")
def policy() -> LetteringPolicy:
    return LetteringPolicy.from_pretrained()


def split(name: str) -> list[str]:
    return [json.loads(line)["text"].strip('"') for line in (ASSETS / f"{name}.jsonl").read_text().splitlines()]


def sampled_features(policy: LetteringPolicy, cond: Cond, state: State) -> list[torch.Tensor]:
    """Logits of every scale as the sampler computed them, by replaying the drawn tokens through the cache."""
    inputs = cond.tensors
    cache, latent, logits = policy.start_cache(inputs, LETTERING), policy.initial_latent(len(cond), LETTERING), []
    for t, tokens in enumerate(state.tokens):
        (features,), cache = policy.scale_features(inputs, cache, [latent], t, LETTERING)
        logits.append(policy.logits(features))
        latent = policy.accumulate(latent, tokens, t, LETTERING)
    return logits


@pytest.mark.parametrize("fork_at", [0, 3, 5])
def test_sampler_and_teacher_forcing_agree(policy: LetteringPolicy, fork_at: int) -> None:
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, Sampling(), KEYS), fork_at).fork(2)
    state = policy.sample(state, len(LETTERING))
    with torch.no_grad():
        forced = policy.span_features(state.cond.tensors, state.tokens, 0, 6, LETTERING)
        for drawn, features in zip(sampled_features(policy, state.cond, state), forced, strict=True):
            logits = policy.logits(features)
            assert (drawn - logits).abs().max() <= 1e-5 * logits.abs().max()
        scored = policy(state.tokens, state.cond, 0, 6)
    for drawn, log_prob in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(drawn, log_prob, atol=5e-5, rtol=0)  # of logits up to 25, whose rounding this is
    torch.testing.assert_close(policy.decode(state.tokens, LETTERING), policy.decode_latent(state.latent), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [None, 2.0])
def test_truncated_and_guided_log_probs_are_the_samplers(policy: LetteringPolicy, cfg: float | None) -> None:
    sampling = Sampling(cfg=cfg, top_k=2, top_p=0.9, temperature=0.8)
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, sampling, KEYS), 6)
    with torch.no_grad():
        scored = policy(state.tokens, cond, 0, 6, score=Score("sampler", sampling))
    for drawn, log_prob in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(drawn, log_prob, atol=1e-4, rtol=1e-4)


def test_a_span_does_not_look_ahead(policy: LetteringPolicy) -> None:
    """Features of a scale stay the same when later tokens change, and when later scales are not run."""
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, Sampling(), KEYS), 6).tokens
    changed = [*tokens[:3], *((t + 7) % 512 for t in tokens[3:])]
    with torch.no_grad():
        whole = policy.span_features(cond.tensors, tokens, 2, 4, LETTERING)
        other = policy.span_features(cond.tensors, changed, 0, 6, LETTERING)
        short = policy.span_features(cond.tensors, tokens[:3], 2, 4, LETTERING)
    for first, second, third in zip(whole, other[2:4], short, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(first, third, atol=1e-5, rtol=1e-5)


def test_guidance_and_words_change_the_logits(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, Sampling(), KEYS), 6).tokens
    with torch.no_grad():
        plain = policy(tokens, cond, 3, 4).log_prob[0]
        guided = policy(tokens, cond, 3, 4, score=Score("guided", Sampling(cfg=2.0))).log_prob[0]
        wordless = policy(tokens, Cond(LETTERING, cond.unconditional, cond.unconditional), 3, 4).log_prob[0]
    assert (plain - guided).abs().max() > 0.1
    assert (plain - wordless).mean() > 0.1, "knowing the word must make its tokens likelier"


def test_decoding_needs_no_more_than_a_prefix(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, policy.default_sampling, KEYS), 5).tokens
    image = policy.decode(tokens, LETTERING)
    assert image.shape == (3, 3, 24, 64)
    assert 0 <= image.min() < 0.5 < image.max() <= 1


@pytest.mark.parametrize(
    ("text", "given"),
    [('"TO"', "['TO']"), ('"LETTER"', "['LETTER']"), ('"FIVE5"', "['FIVE5']"), ('"ONE" "TWO"', "['ONE', 'TWO']"), ("plain", "[]")],
)
def test_words_that_cannot_be_drawn_are_named(policy: LetteringPolicy, text: str, given: str) -> None:
    with pytest.raises(ValueError, match=r"exactly one word of 3-5 letters A-Z") as error:
        policy.encode_prompts([*PROMPTS, Prompt(text=text, id="the fourth")])
    assert "'the fourth'" in str(error.value)
    assert given in str(error.value)


def test_lower_case_is_upper_case(policy: LetteringPolicy) -> None:
    cond = policy.encode_prompts([Prompt(text='"terse"'), Prompt(text='"TERSE"')])
    assert cond.tensors["letters"].tolist() == [[20, 5, 18, 19, 5]] * 2


def test_other_sizes_are_refused(policy: LetteringPolicy) -> None:
    with pytest.raises(ValueError, match=r"\(24, 64\) pixels only, got \(64, 64\)"):
        policy.encode_prompts([Prompt(text='"TERSE"', size=(64, 64))])


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_loading_is_strict(part: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.safetensors"
    tensors = load_file(ASSETS / f"{part}.safetensors")
    missing, misshaped = sorted(tensors)[:2]
    del tensors[missing]
    tensors[misshaped] = torch.zeros(3)
    save_file({**tensors, "surplus": torch.zeros(2)}, file)
    paths = {"path": file} if part == "transformer" else {"tokenizer": file}
    with pytest.raises(ValueError, match="does not fit") as error:
        LetteringPolicy.from_pretrained(**paths)
    message = str(error.value)
    assert str(file) in message
    assert f"missing {missing} " in message
    assert f"misshaped {misshaped}: [3] in the file" in message
    assert "unexpected surplus [2]" in message


def test_weights_are_small_and_single_precision_in_memory(policy: LetteringPolicy) -> None:
    for part in ("transformer", "tokenizer"):
        assert (ASSETS / f"{part}.safetensors").stat().st_size < 3e6
    assert {p.dtype for p in policy.transformer.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in policy.tokenizer.parameters())
    assert all(p.requires_grad for p in policy.transformer.parameters())


def test_word_splits() -> None:
    train, validation, test = split("train"), split("validation"), split("test")
    assert (len(validation), len(test)) == (300, 600)
    assert len(train) >= 1500
    everything = train + validation + test
    assert len(set(everything)) == len(everything)
    assert all(re.fullmatch("[A-Z]{3,5}", word) for word in everything)
    assert set("".join(test)) == set(string.ascii_uppercase)
