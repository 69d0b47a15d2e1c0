"""Language models that draw: against transformers' own forward under a 4D mask, and what sampler and teacher forcing must share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fresh import Fresh
from parity.seeded import seeded_state
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, Qwen2Config

from tests.families import LLM_CONFIGS as CONFIGS
from tests.families import LLM_IDS as IDS
from tests.families import LLM_PROMPTS as PROMPTS
from tests.families import LLM_SIDES as SIDES
from tests.families import LLM_SIZES as SIZES
from tests.families import llm_tokenizer as tiny_tokenizer
from tests.families import load_llm_prefix as tiny_policy
from tests.families import plain_llm as plain_model
from varrl_lightning.policies.language_model import causal
from varrl_lightning.policies.llm_prefix import LLMPrefixPolicy
from varrl_lightning.schedule import NEXTFLOW_1024, Schedule
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Sampling, Score


@pytest.fixture(params=sorted(CONFIGS))
def policy(request: pytest.FixtureRequest) -> LLMPrefixPolicy:
    return tiny_policy(request.param)


def drawn(policy: LLMPrefixPolicy, rows: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(policy.vocab_size, (rows, n), generator=generator) for n in policy.schedule().lengths]


def features_of(policy: LLMPrefixPolicy, inputs: dict[str, Tensor], tokens: list[Tensor], stop: int) -> Tensor:
    return torch.cat(policy.span_features(inputs, tokens, 0, stop, policy.schedule()), dim=1)


def test_features_are_those_of_transformers_under_the_mask_written_out() -> None:
    """One pass of the library's own decoder over text and scales, row by row and without padding."""
    for kind in CONFIGS:
        policy, schedule = tiny_policy(kind), tiny_policy(kind).schedule()
        tokens, cond = drawn(policy, 3), policy.encode_prompts(PROMPTS)
        latents = [policy.initial_latent(3, schedule)]
        for t in range(len(SIDES) - 1):
            latents.append(policy.accumulate(latents[-1], tokens[t], t, schedule))
        decoder = plain_model(kind).get_decoder().eval()
        block = torch.repeat_interleave(torch.arange(len(SIDES)), torch.tensor(schedule.lengths))
        for row, prompt in enumerate(PROMPTS):
            ids = torch.tensor([IDS[prompt.text]])
            parts = [policy.transformer.text(ids)]
            for t, latent in enumerate(latents):
                one = latent[row : row + 1]
                parts.append(
                    policy.transformer.picture(policy.tokenizer.next_input(one, t, schedule), t, schedule)
                    if t
                    else policy.transformer.query(None, 1, schedule)
                )
            rank = torch.cat((torch.arange(ids.shape[1]) - ids.shape[1], block))
            unseen = torch.where(rank[:, None] >= rank[None, :], 0.0, torch.finfo(torch.float32).min)
            with torch.no_grad():
                wanted = decoder(inputs_embeds=torch.cat(parts, dim=1), attention_mask=unseen[None, None]).last_hidden_state
                found = features_of(policy, cond.tensors, tokens, len(SIDES))[row : row + 1]
            torch.testing.assert_close(found, wanted[:, ids.shape[1] :], atol=1e-5, rtol=1e-5)


def test_rows_do_not_know_of_each_other(policy: LLMPrefixPolicy) -> None:
    """Texts of 2, 5, 1 and no ids in one batch."""
    prompts = [*PROMPTS, Prompt("snow", negative="")]
    tokens, cond = drawn(policy, 4), policy.encode_prompts(prompts)
    with torch.no_grad():
        batch = features_of(policy, cond.tensors, tokens, 4)
        for i, prompt in enumerate(prompts):
            alone = policy.encode_prompts([prompt])
            row = features_of(policy, alone.tensors, [t[i : i + 1] for t in tokens], 4)
            torch.testing.assert_close(batch[i : i + 1], row, atol=1e-5, rtol=1e-5)
        empty = features_of(policy, cond.unconditional, tokens, 4)
    assert not cond.unconditional["mask"].any()
    assert torch.isfinite(empty).all()


@pytest.mark.parametrize("cfg", [None, 5.0])
def test_sampled_and_teacher_forced_log_probs_agree_after_a_fork(policy: LLMPrefixPolicy, cfg: float | None) -> None:
    sampling = Sampling(cfg=cfg, top_k=9, top_p=0.9)
    cond = policy.encode_prompts(PROMPTS)
    state = policy.sample(policy.begin(cond, sampling, torch.tensor([5, 6, 7])), 2).fork(2)
    state = policy.sample(state, len(SIDES))
    assert not torch.equal(state.tokens[-1][0], state.tokens[-1][1])
    with torch.no_grad():
        scored = policy(state.tokens, cond.repeat(2), 0, len(SIDES), score=Score("sampler", sampling))
    torch.testing.assert_close(torch.cat(scored.log_prob, 1), torch.cat(state.log_probs, 1), atol=1e-5, rtol=0)


def test_a_prefix_needs_nothing_of_what_follows(policy: LLMPrefixPolicy) -> None:
    tokens, cond = drawn(policy, 3), policy.encode_prompts(PROMPTS)
    with torch.no_grad():
        whole = features_of(policy, cond.tensors, tokens, 4)
        for m in range(1, 4):
            part = features_of(policy, cond.tensors, tokens[: m - 1], m)
            torch.testing.assert_close(part, whole[:, : policy.schedule().offsets[m]], atol=1e-5, rtol=1e-5)


def gradients(policy: LLMPrefixPolicy, score: Score) -> dict[str, Tensor]:
    policy.zero_grad()
    scored = policy(drawn(policy, 3), policy.encode_prompts(PROMPTS), 1, 4, score=score)
    torch.cat(scored.log_prob, dim=1).mean().backward()
    return {name: p.grad.clone() for name, p in policy.transformer.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["model", "guided"])
def test_gradients_reach_everything_and_checkpointing_leaves_them(policy: LLMPrefixPolicy, kind: Any) -> None:
    score = Score(kind, Sampling(cfg=2.0))
    plain = gradients(policy, score)
    policy.transformer.gradient_checkpointing = True
    recomputed = gradients(policy, score)
    assert plain.keys() == dict(policy.transformer.named_parameters()).keys()
    assert all(x.abs().max() > 0 for x in plain.values())
    torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-5)
    for ids in IDS.values():  # the text is learned from through its keys and values alone
        assert all(plain["backbone.embed_tokens.weight"][i].abs().max() > 0 for i in ids)


def test_checkpointing_runs_layers_again(policy: LLMPrefixPolicy) -> None:
    calls = []
    policy.transformer.decoder.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for enabled in (False, True):
        calls.clear()
        policy.transformer.gradient_checkpointing = enabled
        gradients(policy, Score())
        assert len(calls) == (4 if enabled else 2)  # text, then scales; each again when checkpointed


def test_what_is_saved_is_loaded(policy: LLMPrefixPolicy, tmp_path: Path) -> None:
    tokens, cond = drawn(policy, 3), policy.encode_prompts(PROMPTS)
    save_file(policy.published(policy.transformer.state_dict()), tmp_path / "model.safetensors")
    config = policy.transformer.decoder.config
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict() | {"model_type": config.model_type}))
    with torch.no_grad():
        wanted = features_of(policy, cond.tensors, tokens, 4)
        for backbone, path in ((None, tmp_path), (type(config)(**SIZES), tmp_path / "model.safetensors")):
            loaded = LLMPrefixPolicy.from_pretrained(path, policy.tokenizer, IDS, backbone=backbone, schedule=SIDES)
            torch.testing.assert_close(features_of(loaded, cond.tensors, tokens, 4), wanted, atol=0, rtol=0)


def test_loading_is_strict(policy: LLMPrefixPolicy, tmp_path: Path) -> None:
    tensors = policy.transformer.state_dict()
    del tensors["backbone.norm.weight"]
    save_file(tensors | {"odd": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)missing backbone.norm.weight.*unexpected odd"):
        LLMPrefixPolicy.from_pretrained(
            tmp_path / "model.safetensors", policy.tokenizer, backbone=policy.transformer.decoder.config, schedule=SIDES
        )


def test_fresh_parts_depend_on_the_seed_alone() -> None:
    first, second, third = (
        LLMPrefixPolicy.from_backbone(plain_model("llama", seed=i), tiny_tokenizer(), schedule=SIDES, seed=seed)
        for i, seed in enumerate((5, 5, 6))
    )
    ours, same, other = (p.transformer.state_dict() for p in (first, second, third))
    fresh = [name for name in ours if not name.startswith("backbone.")]
    assert len(fresh) == 9
    for name in fresh:
        assert torch.equal(ours[name], same[name])
        assert not torch.equal(ours[name], other[name])
        assert ours[name].abs().max() > 0


def test_a_folder_with_a_backbone_is_enough(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("c", "o"), ("co", "w"), ("Ġ", "cow")]
    words = Tokenizer(models.BPE({"Ġ": 1, "c": 2, "o": 3, "w": 4, "co": 5, "cow": 6, "a": 7, "Ġcow": 8}, merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path)
    model = plain_model("qwen2")
    model.save_pretrained(tmp_path)
    policy = LLMPrefixPolicy.from_backbone(tmp_path, tiny_tokenizer(), schedule=SIDES, dtype="bfloat16")
    assert policy.prefix_ids("a cow") == [7, 8]
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    embeddings = model.get_input_embeddings().weight.bfloat16()
    torch.testing.assert_close(policy.transformer.decoder.embed_tokens.weight, embeddings, atol=0, rtol=0)


def test_the_tokenizer_of_var_fits_too(tmp_path: Path) -> None:
    vae = VQVAE(24, 8, 32, (1, 1), 1)
    vae.load_state_dict(seeded_state({name: x.shape for name, x in vae.state_dict().items()}))
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    policy = LLMPrefixPolicy.from_backbone(plain_model("llama"), tmp_path / "vae.safetensors", IDS, schedule=SIDES)
    state = policy.sample(policy.begin(policy.encode_prompts(PROMPTS), policy.default_sampling, torch.tensor([1, 2, 3])), 4)
    assert policy.decode(state.tokens, policy.schedule()).shape == (3, 3, 8, 8)


def test_rectangular_grids() -> None:
    wide = Schedule(((1, 1), (1, 2), (2, 3)), (2, 2))
    policy = tiny_policy(schedule=wide)
    state = policy.sample(policy.begin(policy.encode_prompts(PROMPTS), Sampling(cfg=2.0), torch.tensor([1, 2, 3])), 3)
    assert policy.decode(state.tokens, wide).shape == (3, 3, 4, 6)
    with torch.no_grad():
        scored = policy(state.tokens, policy.encode_prompts(PROMPTS), 0, 3, score=Score("sampler", Sampling(cfg=2.0)))
    torch.testing.assert_close(torch.cat(scored.log_prob, 1), torch.cat(state.log_probs, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_stays_near_full(policy: LLMPrefixPolicy, autocast: bool) -> None:
    tokens, cond = drawn(policy, 3), policy.encode_prompts(PROMPTS)
    with torch.no_grad():
        full = features_of(policy, cond.tensors, tokens, 4)
        if not autocast:
            policy = policy.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = policy.sample(policy.begin(cond, Sampling(cfg=2.0), torch.tensor([1, 2, 3])), 4)
            half = features_of(policy, cond.tensors, tokens, 4).float()
    assert {x.dtype for pair in state.cache.layers for x in pair} == {torch.bfloat16}
    assert state.latent.dtype == torch.float32
    assert 1e-4 < (half - full).abs().mean() / full.abs().mean() < 0.05


def test_adapters_train() -> None:
    peft = pytest.importorskip("peft")
    policy = tiny_policy("llama")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "head", "connector.0"], init_lora_weights=False)
    policy.transformer = peft.inject_adapter_in_model(config, policy.transformer)
    trained = [name for name, p in policy.transformer.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * (2 + 1 + 1)
    assert gradients(policy, Score()).keys() == set(trained)


def test_the_reference_is_a_copy_that_stays() -> None:
    policy = tiny_policy()
    reference, tokens, cond = policy.frozen_copy(), drawn(policy, 3), policy.encode_prompts(PROMPTS)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(policy(tokens, cond, 0, 4, reference=reference).kl, 1).abs().max(), torch.tensor(0.0))
        policy.transformer.head.weight.mul_(2)
        assert torch.cat(policy(tokens, cond, 0, 4, reference=reference).kl, 1).min() > 0


def test_text_sees_itself_and_what_is_before_it() -> None:
    mask = torch.tensor([[False, True, True]])
    wanted = torch.tensor([[True, False, False], [False, True, False], [False, True, True]])
    assert torch.equal(causal(mask)[0, 0], wanted)


def test_sizes_are_prefixes_of_the_schedule() -> None:
    policy = tiny_policy(schedule=NEXTFLOW_1024)
    assert policy.schedule() == NEXTFLOW_1024
    assert policy.schedule((256, 256)).grids == NEXTFLOW_1024.grids[:12]
    with pytest.raises(ValueError, match=r"no image of \(250, 250\) pixels ends this model's schedule; it generates \[\(16, 16\)"):
        policy.schedule((250, 250))


def test_prompts_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size, got \['\(4, 4\)', 'None'\]"):
        tiny_policy().encode_prompts([Prompt("snow"), Prompt("snow", size=(4, 4))])


def test_texts_without_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="holds the ids of 4 texts, and not those of 'a pig'"):
        tiny_policy().encode_prompts([Prompt("a pig")])
    with pytest.raises(ValueError, match="no text tokenizer was given to make ids of 'snow'"):
        tiny_policy(text_encoder=None).encode_prompts([Prompt("snow")])


def test_a_file_alone_does_not_say_what_its_backbone_is(tmp_path: Path) -> None:
    policy = tiny_policy()
    save_file(policy.transformer.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is a file and has no config of the backbone; give backbone"):
        LLMPrefixPolicy.from_pretrained(tmp_path / "model.safetensors", policy.tokenizer, schedule=SIDES)


def test_long_texts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a prompt has 5 tokens, max_text_tokens is 4.*'a cow in the rain'"):
        tiny_policy(max_text_tokens=4).encode_prompts(PROMPTS)


def test_backbones_of_another_kind_are_refused() -> None:
    gpt = AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="GPT2Model has no embed_tokens, layers, norm, rotary_emb; the backbone must be"):
        LLMPrefixPolicy.from_backbone(gpt, tiny_tokenizer(), schedule=SIDES)
    sliding = AutoModelForCausalLM.from_config(Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1))
    with pytest.raises(ValueError, match="sliding_window 8; every scale must see the whole prompt"):
        LLMPrefixPolicy.from_backbone(sliding, tiny_tokenizer(), schedule=SIDES)


def test_nothing_imports_transformers_before_a_model_is_built(fresh: Fresh) -> None:
    code = (
        "import sys, varrl_lightning.policies.tokenflow, varrl_lightning.policies.llm_prefix; print('transformers' in sys.modules)"
    )
    assert fresh(code).stdout.strip() == "False"
