"""Infinity against what the public code computed with the same weights, and what only ours has to keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.make_infinity import SEED, TEXT_CHANNELS, state
from parity.seeded import seeded
from torch import Tensor, nn

from tests.families import DATA, Texts, read, recorded_scales, relative, write_infinity
from tests.families import INFINITY_PROMPTS as PROMPTS
from tests.families import load_infinity as build
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.infinity_schedules import PUBLISHED, rotary_angles
from varrl_lightning.policies.infinity_transformer import InfinityTransformer
from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.types import Prompt, Sampling, Score

VARIANTS = sorted(path.stem.removeprefix("infinity_") for path in DATA.glob("infinity_*.pt"))
GUIDED = Score("sampler", Sampling(cfg=3.0, temperature=0.5))
POSITIVE = [replace(prompt, negative=None) for prompt in PROMPTS]


def load(variant: str) -> dict[str, Any]:
    return read(f"infinity_{variant}")


def conditions(policy: InfinityPolicy, data: dict[str, Any], prompts: list[Prompt] = POSITIVE) -> Any:
    """Prompts on the few scales that were recorded."""
    return replace(policy.encode_prompts(prompts), schedule=recorded_scales(policy, data))


def logits_of(policy: InfinityPolicy, inputs: dict[str, Tensor], tokens: list[Tensor], stop: int, schedule: Schedule) -> Tensor:
    features = policy.span_features(inputs, tokens, 0, stop, schedule)
    return torch.cat([policy.logits(x).flatten(-2) for x in features], dim=1)


def long(tokens: list[Tensor]) -> list[Tensor]:
    return [x.long() for x in tokens]


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, weights_folder: Path) -> tuple[dict[str, Any], InfinityPolicy]:
    return load(request.param), build(weights_folder, request.param)


@pytest.fixture(scope="module")
def small(weights_folder: Path) -> tuple[dict[str, Any], InfinityPolicy]:
    return load("published_2b"), build(weights_folder, "published_2b")


def test_all_variants_are_there() -> None:
    assert len(VARIANTS) == 10


def test_teacher_forced_logits_and_log_probs(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    cond, tokens = conditions(policy, data), long(data["tokens"])
    with torch.no_grad():
        for name, inputs in (("cond", cond.tensors), ("uncond", cond.unconditional)):
            assert relative(logits_of(policy, inputs, tokens, len(tokens), cond.schedule), data[name]) < 1e-5
        found = policy(tokens, cond, 0, len(tokens))
    bits = torch.cat(found.bit_log_prob, dim=1)
    torch.testing.assert_close(bits, data["bit_log_prob"], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat(found.log_prob, dim=1), data["bit_log_prob"].sum(-1), rtol=0, atol=1e-5 * policy.bits)


def test_a_prefix_needs_nothing_after_it(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    cond, tokens = conditions(policy, data), long(data["tokens"])[:3]
    with torch.no_grad():
        assert relative(logits_of(policy, cond.tensors, tokens, 3, cond.schedule), data["prefix"]) < 1e-5


def test_negative_prompts_are_read_like_prompts(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    cond, tokens = conditions(policy, data, PROMPTS), long(data["tokens"])[:2]
    with torch.no_grad():
        assert relative(logits_of(policy, cond.unconditional, tokens, 2, cond.schedule), data["negative"]) < 1e-5


def test_the_same_draws_give_the_same_tokens(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    for name, wanted in data["cases"].items():
        cond = conditions(policy, data, PROMPTS if name == "negative" else POSITIVE)
        scales = len(cond.schedule)
        cfg, tau = (tuple(x[:scales]) if isinstance(x, list) else x for x in (wanted["cfg"], wanted["tau"]))
        sampling = Sampling(cfg=None if name == "plain" else cfg, top_p=wanted["top_p"] or 1.0, temperature=tau)
        state = policy.sample(policy.begin(cond, sampling, torch.Generator().manual_seed(wanted["generator"])), scales)
        for found, drawn in zip(state.tokens, wanted["tokens"], strict=True):
            assert torch.equal(found, drawn.long()), name


def test_recorded_cases() -> None:
    for variant in ("published_2b", "published_8b"):
        assert sorted(load(variant)["cases"]) == ["guided", "negative", "per_scale", "plain", "truncated"]
    assert [v for v in VARIANTS if not load(v)["cases"]] == ["one_chunk"]  # the public sampler cannot run it


def test_gradients_of_all_parameters(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    cond, tokens = conditions(policy, data), long(data["tokens"])
    policy.zero_grad()
    log_prob = torch.cat(policy(tokens, cond, 0, len(tokens), score=GUIDED).log_prob, dim=1)
    (log_prob * seeded("loss", log_prob.shape, SEED)).sum().backward()
    found = {name: p.grad for name, p in policy.transformer.named_parameters()}
    assert found.keys() == data["gradients"].keys()
    for name, wanted in data["gradients"].items():
        gradient = found[name]
        assert gradient is not None, name
        torch.testing.assert_close(gradient.norm(), wanted["norm"], rtol=1e-4, atol=0, msg=name)
        assert relative(gradient.flatten()[:64], wanted["first"]) < 1e-4, name
    policy.zero_grad()


def test_sampled_and_teacher_forced_log_probs_agree_per_bit(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    """The public code's sampler is off by 0.16 in logits where its norm is not the fused one: it rotates by the wrong positions."""
    data, policy = case
    cond = conditions(policy, data)
    state = policy.sample(policy.begin(cond, GUIDED.sampling, torch.Generator().manual_seed(1)), len(cond.schedule))
    with torch.no_grad():
        scored = policy(state.tokens, cond, 0, len(cond.schedule), score=GUIDED)
    for found, drawn in zip(scored.log_prob, state.log_probs, strict=True):
        torch.testing.assert_close(found, drawn, rtol=0, atol=1e-5 * policy.bits)


def test_forked_states_agree_with_teacher_forcing(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = small
    cond = conditions(policy, data, PROMPTS)
    state = policy.sample(policy.begin(cond, GUIDED.sampling, torch.tensor([3, 4])), 2).fork(2)
    state = policy.sample(state, len(cond.schedule))
    assert not torch.equal(state.tokens[-1][0], state.tokens[-1][1])
    with torch.no_grad():
        scored = policy(state.tokens, cond.repeat(2), 0, len(cond.schedule), score=GUIDED)
    for found, drawn in zip(scored.log_prob, state.log_probs, strict=True):
        torch.testing.assert_close(found, drawn, rtol=0, atol=1e-5 * policy.bits)


def test_keys_and_values_are_kept_while_scales_follow(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = small
    cond = conditions(policy, data)
    state = policy.begin(cond, GUIDED.sampling, torch.Generator().manual_seed(1))
    for scale in range(1, len(cond.schedule)):
        state = policy.sample(state, scale)
        assert {x.shape[2] for layer in state.cache.layers for x in layer} == {cond.schedule.offsets[scale]}
    assert policy.sample(state, len(cond.schedule)).cache.layers == []


def test_pictures(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    schedule = recorded_scales(policy, data)
    with torch.no_grad():
        images = policy.decode(long(data["tokens"]), schedule)
    assert images.shape == (2, 3, *schedule.image_size)
    assert 0 <= images.min() < images.max() <= 1
    if "crop" in data:
        torch.testing.assert_close(images[:, :, 8:40, 16:48], data["crop"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["published_2b", "published_8b", "rms", "plain_deep_head"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_bf16(variant: str, weights: str, weights_folder: Path) -> None:
    """Logits within 2 % of the largest; the latent and what is added to it stay fp32, and draws still agree with their scores."""
    data = load(variant)
    policy = build(weights_folder, variant, dtype=weights)
    cond, tokens = conditions(policy, data), long(data["tokens"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights == "float32"):
        logits = logits_of(policy, cond.tensors, tokens, len(tokens), cond.schedule)
        state = policy.sample(policy.begin(cond, GUIDED.sampling, torch.Generator().manual_seed(1)), len(tokens))
        scored = policy(state.tokens, cond, 0, len(tokens), score=GUIDED)
        latent = policy.accumulate(policy.initial_latent(2, cond.schedule), tokens[0], 0, cond.schedule)
    assert 1e-5 < relative(logits, data["cond"]) < 2e-2
    assert all(x.dtype == torch.float32 for x in (logits, state.latent, latent))
    assert state.cache.cross[0][0].dtype == torch.bfloat16
    assert torch.equal(latent, policy.accumulate(policy.initial_latent(2, cond.schedule), tokens[0], 0, cond.schedule))
    for found, drawn in zip(scored.log_prob, state.log_probs, strict=True):
        torch.testing.assert_close(found, drawn, rtol=0, atol=1e-5 * policy.bits)


def test_checkpointing_changes_no_gradient(small: tuple[dict[str, Any], InfinityPolicy], weights_folder: Path) -> None:
    data, kept = small
    tokens, gradients = long(data["tokens"])[:3], []
    for policy in (kept, build(weights_folder, "published_2b", gradient_checkpointing=True)):
        policy.zero_grad()
        runs: list[int] = []
        hook = policy.transformer.chunks[0][0].sa.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.cat(policy(tokens, conditions(policy, data), 0, 3, score=GUIDED).log_prob, dim=1).sum().backward()
        hook.remove()
        gradients.append((len(runs), {name: p.grad for name, p in policy.transformer.named_parameters()}))
    assert [runs for runs, _ in gradients] == [1, 2]
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(gradients[1][1][name], gradient, msg=name)
    kept.zero_grad()


def test_every_linear_layer_is_called(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    """LoRA puts other modules in their places, which reading `weight` would pass by."""
    data, policy = case
    called: set[str] = set()
    linear = {name: x for name, x in policy.transformer.named_modules() if isinstance(x, (nn.Linear, nn.Embedding))}
    hooks = [x.register_forward_hook(lambda *_, name=name: called.add(name)) for name, x in linear.items()]
    with torch.no_grad():
        policy(long(data["tokens"])[:2], conditions(policy, data), 0, 2)
    for hook in hooks:
        hook.remove()
    assert called == set(linear)


def test_nothing_is_dropped_in_training_and_no_text_is_overwritten(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    """The public forward pass drops a tenth of the conditions, in evaluation too, by writing into the caller's tensor."""
    data, policy = small
    cond, tokens = conditions(policy, data), long(data["tokens"])[:2]
    before = {name: x.clone() for name, x in cond.tensors.items()}
    policy.train()
    with torch.no_grad():
        first, *others = [torch.cat(policy(tokens, cond, 0, 2).log_prob, dim=1) for _ in range(8)]
    assert all(torch.equal(first, other) for other in others)
    assert all(torch.equal(cond.tensors[name], x) for name, x in before.items())


def test_the_unconditional_text_learns_only_under_guidance(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = small
    tokens = long(data["tokens"])[:2]
    for prompts, score, learns in ((POSITIVE, Score(), False), (PROMPTS, GUIDED, False), (POSITIVE, GUIDED, True)):
        policy.zero_grad()
        policy(tokens, conditions(policy, data, prompts), 0, 2, score=score).log_prob[1].sum().backward()
        gradient = policy.transformer.cfg_uncond.grad
        assert gradient is not None  # also where it is zero: DDP waits for every parameter
        assert bool(gradient.any()) == learns
    policy.zero_grad()


def test_padding_is_not_seen(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = small

    class Padded(Texts):
        def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
            found = super().forward(texts)
            return {"text": nn.functional.pad(found["text"], (0, 0, 0, 20)), "mask": nn.functional.pad(found["mask"], (0, 20))}

    far = InfinityPolicy(policy.transformer, policy.tokenizer, Padded())
    tokens = [x[:1] for x in long(data["tokens"])[:2]]
    alone = conditions(policy, data, POSITIVE[:1])
    padded = conditions(far, data).rows(slice(0, 1))
    assert (padded.tensors["text"].shape[1], alone.tensors["text"].shape[1]) == (9, 5)
    with torch.no_grad():
        found, wanted = (policy(tokens, cond, 0, 2, score=GUIDED).log_prob[1] for cond in (padded, alone))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * policy.bits)


def test_a_negative_prompt_for_one_row_of_two(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = small
    tokens = long(data["tokens"])[:2]
    with torch.no_grad():
        both, none, mixed = (
            policy(tokens, conditions(policy, data, prompts), 0, 2, score=GUIDED).log_prob[1]
            for prompts in (PROMPTS, POSITIVE, [PROMPTS[0], POSITIVE[1]])
        )
    torch.testing.assert_close(mixed, torch.stack((both[0], none[1])), rtol=0, atol=1e-5 * policy.bits)
    assert (both - none).abs().amax(dim=1).min() > 1e-2


# --- files --------------------------------------------------------------------------------------------------------------------


def test_export_has_exactly_the_published_tensors(case: tuple[dict[str, Any], InfinityPolicy]) -> None:
    data, policy = case
    exported, wanted = policy.published(policy.transformer.state_dict()), state(data["shapes"])
    assert exported.keys() == wanted.keys()
    for name, x in wanted.items():
        assert torch.equal(exported[name], x), name


def test_shards(small: tuple[dict[str, Any], InfinityPolicy], tmp_path: Path) -> None:
    data, policy = small
    tensors = state(data["shapes"])
    names = sorted(tensors)
    shards = {f"pytorch_model-{i:05}.bin": names[i::3] for i in range(3)}
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / shard)
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    again = InfinityPolicy.from_pretrained(tmp_path, policy.tokenizer)
    wanted = policy.transformer.state_dict()
    assert all(torch.equal(x, wanted[name]) for name, x in again.transformer.state_dict().items())


def test_loading_is_strict(tmp_path: Path) -> None:
    data = load("published_2b")
    tokenizer = BSQTokenizer.from_pretrained(write_infinity(tmp_path, data)[1])
    tensors = state(data["shapes"])

    def refused(changed: dict[str, Tensor]) -> str:
        torch.save(changed, tmp_path / "changed.pth")
        with pytest.raises(ValueError, match=r"changed\.pth") as error:
            InfinityPolicy.from_pretrained(tmp_path / "changed.pth", tokenizer)
        return str(error.value)

    name = "block_chunks.1.module.0.sa.proj.weight"
    assert f"missing {name} [64, 64]" in refused({k: x for k, x in tensors.items() if k != name})
    assert "unexpected extra [1]" in refused(tensors | {"extra": torch.zeros(1)})
    assert f"misshaped {name}" in refused(tensors | {name: torch.zeros(64, 65)})
    assert "it has no cfg_uncond, lvl_embed.weight" in refused({"weight": torch.zeros(2, 2)})


def test_the_tokenizer_must_fit(tmp_path: Path) -> None:
    for folder, variant in (("a", "published_2b"), ("b", "published_8b")):
        (tmp_path / folder).mkdir()
        write_infinity(tmp_path / folder, load(variant))
    with pytest.raises(ValueError, match="has 8 bits, but the tokenizer's have 4, or 16 for 2 x 2 places"):
        InfinityPolicy.from_pretrained(tmp_path / "a" / "transformer.pth", tmp_path / "b" / "tokenizer.pth")


def test_heads_that_no_tensor_tells_have_to_be_said(weights_folder: Path) -> None:
    for variant, heads, message in (
        ("swiglu", None, "give num_heads"),
        ("swiglu", 3, "must divide the width 64"),
        ("published_2b", 4, "has 2 heads; leave num_heads out"),
    ):
        with pytest.raises(ValueError, match=message):
            build(weights_folder, variant, num_heads=heads)


def test_the_other_published_shape_of_attention_scales(small: tuple[dict[str, Any], InfinityPolicy], tmp_path: Path) -> None:
    data, policy = small
    tensors = state(data["shapes"])
    turned = {name: x.transpose(1, 2) if name.endswith("scale_mul_1H11") else x for name, x in tensors.items()}
    torch.save(turned, tmp_path / "turned.pth")
    other = InfinityPolicy.from_pretrained(tmp_path / "turned.pth", policy.tokenizer, Texts())
    tokens, cond = long(data["tokens"])[:2], conditions(policy, data)
    with torch.no_grad():
        assert torch.equal(other(tokens, cond, 0, 2).log_prob[1], policy(tokens, cond, 0, 2).log_prob[1])
    assert other.published(other.transformer.state_dict())["block_chunks.0.module.0.sa.scale_mul_1H11"].shape == (1, 1, 2, 1)


def test_keywords_are_checked(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    _, policy = small
    with pytest.raises(ValueError, match=r"pixels must be one of 0\.06M, 0\.25M, 0\.60M, 1M, got '2M'"):
        InfinityPolicy(policy.transformer, policy.tokenizer, pixels="2M")
    with pytest.raises(ValueError, match="rope_normalisation must be 0, 1 or 2, got 3"):
        InfinityPolicy(policy.transformer, policy.tokenizer, rope_normalisation=3)
    with pytest.raises(ValueError, match="level_embedding must be first or every, got 'all'"):
        InfinityTransformer(policy.transformer.sizes, "all")
    with pytest.raises(ValueError, match="dtype must be one of"):  # before anything is read
        InfinityPolicy.from_pretrained("no such file", "no such file", dtype="int8")


def test_default_sampling_follows_the_published_demos(weights_folder: Path) -> None:
    assert build(weights_folder, "published_2b").default_sampling == Sampling(cfg=4.0, top_p=0.97, temperature=0.5)
    assert build(weights_folder, "published_8b").default_sampling == Sampling(cfg=4.0, top_p=0.97, temperature=1.0)


# --- schedules and prompts ----------------------------------------------------------------------------------------------------


def test_published_schedules(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    policy = small[1]
    assert policy.schedule() == policy.schedule((1024, 1024))
    assert policy.schedule().offsets[7:] == (521, 921, 1497, 2521, 4121, 6425, 10521)
    portrait, landscape = policy.schedule((1248, 832)), policy.schedule((832, 1248))
    assert portrait.image_size == (1248, 832)
    assert landscape.grids == tuple((w, h) for h, w in portrait.grids)
    assert policy.schedule((256, 256)).grids == policy.schedule().grids[:7]
    sizes = {tuple(16 * x for x in grids[count - 1]) for grids in PUBLISHED for count in (7, 10, 12, 13)}
    assert len(sizes) == 60
    assert all(policy.schedule(size).image_size == size for size in sizes)


@pytest.mark.parametrize(("pixels", "side"), [("0.06M", 256), ("0.25M", 512), ("0.60M", 768), ("1M", 1024)])
def test_default_resolution(pixels: str, side: int, weights_folder: Path) -> None:
    for variant in ("published_2b", "published_8b"):
        policy = build(weights_folder, variant, pixels=pixels)
        assert policy.schedule().image_size == (side, side)
        assert policy.initial_latent(1, policy.schedule()).shape[-1] == side // policy.tokenizer.stride


def test_other_sizes_are_refused(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    with pytest.raises(ValueError, match=r"no schedule for 500x512 pixels .*nearest are 512x512, 448x560, 560x448"):
        small[1].schedule((500, 512))


def test_prompts_are_checked(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    policy = small[1]
    with pytest.raises(ValueError, match="one image size"):
        policy.encode_prompts([replace(POSITIVE[0], size=(256, 256)), POSITIVE[1]])
    bare = InfinityPolicy(policy.transformer, policy.tokenizer)
    with pytest.raises(ValueError, match=r"'five pieces' has to be encoded.*text_encoder"):
        bare.encode_prompts(POSITIVE)

    class Wrong(nn.Module):
        def __init__(self, length: int, width: int) -> None:
            super().__init__()
            self.length, self.width = length, width

        def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
            shape = (len(texts), self.length)
            return {"text": torch.zeros(*shape, self.width), "mask": torch.ones(shape, dtype=torch.bool)}

    for encoder, message in (
        (Wrong(17, TEXT_CHANNELS), "1 to 16 word pieces, got 17 of 'five pieces'"),
        (Wrong(5, 32), "reads 256 features per word piece, the text encoder gives 32"),
    ):
        with pytest.raises(ValueError, match=message):
            InfinityPolicy(policy.transformer, policy.tokenizer, encoder).encode_prompts(POSITIVE)


def test_a_size_in_the_prompt_gives_the_schedule(small: tuple[dict[str, Any], InfinityPolicy]) -> None:
    cond = small[1].encode_prompts([replace(p, size=(336, 224)) for p in POSITIVE])
    assert cond.schedule.image_size == (336, 224)


@pytest.mark.parametrize("normalisation", [1, 2])
def test_positions_need_the_aspect_ratio(normalisation: int) -> None:
    device = torch.device("cpu")
    for grids, message in ((((1, 1), (5, 5)), "of no aspect ratio"), (((1, 1), (2, 2)), "of 15 aspect ratios")):
        with pytest.raises(ValueError, match=message):
            rotary_angles(grids, 32, normalisation, device)
    assert rotary_angles(PUBLISHED[3][:4], 32, normalisation, device)[0].shape == (1 + 4 + 6 + 24, 16)
    assert rotary_angles(((1, 1), (5, 5)), 32, 0, device)[0].shape == (26, 16)


@pytest.mark.parametrize("normalisation", [0, 1, 2])
def test_positions_of_all_aspect_ratios(normalisation: int) -> None:
    tables = torch.load(DATA / "rope_infinity.pt", weights_only=True)[normalisation]
    assert {tuple(tuple(grid) for grid in wanted["grids"]) for wanted in tables} == set(PUBLISHED)
    for wanted in tables:
        grids = tuple(tuple(grid) for grid in wanted["grids"])
        found = torch.stack(rotary_angles(grids, 32, normalisation, torch.device("cpu")))
        torch.testing.assert_close(found[:, wanted["places"]], wanted["table"], rtol=0, atol=1e-6)


def test_positions_made_while_validating_serve_training() -> None:
    with torch.inference_mode():
        cos, _ = rotary_angles(PUBLISHED[5][:3], 32, 2, torch.device("cpu"))
    weight = torch.ones(1, requires_grad=True)
    (cos * weight).sum().backward()
    assert weight.grad is not None
