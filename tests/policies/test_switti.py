"""Switti against what the public code computed from the same weights (tests/parity/make_switti.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import rules
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.families import Files, load_switti, once, write
from tests.families import switti_data as reference
from varrl_lightning.commands.export import export_policy
from varrl_lightning.policies.switti import PUBLISHED, SwittiPolicy, crop_numbers, guidance_window
from varrl_lightning.policies.switti_transformer import CropFrequencies, SwittiTransformer
from varrl_lightning.schedule import Schedule, square
from varrl_lightning.text_encoders import EncodedTexts
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt, Sampling, Score

VARIANTS = ("default", "ar", "no_crop", "ar_absolute", "gelu", "other_rope")
AUTOREGRESSIVE = {"ar", "ar_absolute"}


@cache
def public_weights(variant: str) -> dict[str, Tensor]:
    return rules.weights(reference(variant)["layouts"]["transformer"], rules.TRANSFORMER)


@pytest.fixture
def files(weights_folder: Path) -> Files:
    return once(weights_folder, "switti_default", write)


@pytest.fixture
def load(weights_folder: Path) -> Callable[..., SwittiPolicy]:
    return partial(load_switti, weights_folder)


def prompts(variant: str) -> list[Prompt]:
    return [Prompt(text) for text in reference(variant)["prompts"]]


def sampling_of(case: dict[str, Any], scales: int) -> Sampling:
    """The public keywords of one case in ours; there, a top_p of 0 keeps all."""
    window = {
        ours: case[theirs]
        for ours, theirs in (("turn_on", "turn_on_cfg_start_si"), ("turn_off", "turn_off_cfg_start_si"))
        if theirs in case
    }
    return guidance_window(
        scales, case["cfg"], case["top_k"], case["top_p"] or 1.0, last_scale_temp=case.get("last_scale_temp"), **window
    )


def taught(policy: SwittiPolicy, variant: str) -> list[Tensor]:
    found = reference(variant)
    tokens: list[Tensor] = found["sampling"][found["teacher"]["case"]]["tokens"]
    return tokens


def all_logits(policy: SwittiPolicy, inputs: dict[str, Tensor], tokens: list[Tensor], stop: int | None = None) -> Tensor:
    schedule = policy.schedule()
    with torch.no_grad():
        return policy.logits(torch.cat(policy.span_features(inputs, tokens, 0, stop or len(schedule), schedule), dim=1))


def assert_near(found: Tensor, wanted: Tensor, relative: float) -> None:
    assert found.shape == wanted.shape
    assert ((found - wanted).abs().max() / wanted.abs().max()).item() < relative


@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_forced_logits_are_those_of_the_public_code(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy, wanted = load(variant), reference(variant)["teacher"]
    cond = policy.encode_prompts(prompts(variant))
    tokens = taught(policy, variant)
    assert_near(all_logits(policy, cond.tensors, tokens), wanted["cond"], 1e-5)
    assert_near(all_logits(policy, cond.unconditional, tokens), wanted["uncond"], 1e-5)
    found = policy(tokens, cond, 0, len(tokens))
    torch.testing.assert_close(torch.cat(found.log_prob, dim=1), wanted["log_prob"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sampling_draws_the_tokens_and_image_of_the_public_pipeline(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    scales = len(cond.schedule)
    for case in reference(variant)["sampling"]:
        sampling = sampling_of(case, scales)
        generator = torch.Generator().manual_seed(case["seed"])
        state = policy.sample(policy.begin(cond, sampling, generator), scales)
        assert all(torch.equal(x, y) for x, y in zip(state.tokens, case["tokens"], strict=True)), case["seed"]
        torch.testing.assert_close(rules.window(policy.decode_latent(state.latent)), case["image"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_guided_logits_are_those_that_the_public_pipeline_draws_from(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    scales = len(cond.schedule)
    for case in reference(variant)["sampling"]:
        sampling = sampling_of(case, scales)
        untruncated = Sampling(sampling.cfg, temperature=sampling.temperature)
        found = policy(case["tokens"], cond, 0, scales, score=Score("sampler", untruncated)).log_prob
        for t, logits in case["guided"].items():
            torch.testing.assert_close(found[t], rules.log_probs_of(logits, [case["tokens"][t]]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("score", ["model", "guided"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_gradient_is_that_of_the_public_code(variant: str, score: str, load: Callable[..., SwittiPolicy]) -> None:
    policy, wanted = load(variant), reference(variant)["teacher"]
    cond = policy.encode_prompts(prompts(variant))
    tokens = taught(policy, variant)
    cfg = reference(variant)["sampling"][wanted["case"]]["cfg"]
    options = Score() if score == "model" else Score("guided", Sampling(cfg))
    torch.cat(policy(tokens, cond, 0, len(tokens), score=options).log_prob, dim=1).mean().backward()
    gradients = wanted["gradients" if score == "model" else "guided_gradients"]
    parameters = dict(policy.transformer.named_parameters())
    assert parameters.keys() == gradients.keys()
    for name, kept in gradients.items():
        gradient = parameters[name].grad
        assert gradient is not None, name
        found = rules.abridged(gradient)
        assert found["norm"] == pytest.approx(kept["norm"], rel=1e-4), name
        assert_near(found["entries"], kept["entries"], 1e-4)


@pytest.mark.parametrize("variant", ["default", "ar", "gelu", "ar_absolute"])
def test_the_crop_condition_of_another_photograph_is_that_of_the_public_code(
    variant: str, load: Callable[..., SwittiPolicy]
) -> None:
    wanted = reference(variant)["teacher"]
    policy = load(variant, crop_size=wanted["large"])
    cond = policy.encode_prompts(prompts(variant))
    assert_near(all_logits(policy, cond.tensors, taught(policy, variant)), wanted["large_cond"], 1e-5)


def test_a_crop_is_counted_from_the_shorter_side() -> None:
    assert crop_numbers((512, 512)) == [512, 512, 0, 0]
    assert crop_numbers((1024, 1024)) == [512, 512, 0, 0]
    assert crop_numbers((768, 512)) == [768, 512, 128, 0]
    assert crop_numbers((600, 1000)) == [512, 853, 0, 170]
    assert crop_numbers((82, 182)) == [511, 1136, 0, 312]  # the public code's fp32 loses a pixel of the shorter side


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prefix_of_scales_has_the_logits_of_the_whole(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy, wanted = load(variant), reference(variant)["teacher"]["cond"]
    cond = policy.encode_prompts(prompts(variant))
    tokens = taught(policy, variant)
    for m in range(1, len(tokens) + 1):
        found = all_logits(policy, cond.tensors, tokens[: m - 1], m)
        assert_near(found, wanted[:, : cond.schedule.offsets[m]], 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_drawn_and_taught_log_probs_agree_after_a_fork(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    sampling = Sampling(2.0, top_k=30, top_p=0.9, temperature=0.9)
    state = policy.begin(cond, sampling, torch.arange(len(cond)))
    state = policy.sample(policy.sample(state, 3).fork(3), len(cond.schedule))
    found = policy(state.tokens, cond.repeat(3), 0, len(cond.schedule), score=Score("sampler", sampling))
    assert len({tuple(row) for row in state.tokens[-1].tolist()}) == 6
    for drawn, again in zip(state.log_probs, found.log_prob, strict=True):
        torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)


def test_guidance_can_be_turned_off_without_rotary_positions(load: Callable[..., SwittiPolicy]) -> None:
    """The public pipeline fails here: it slices the absent table of angles."""
    policy = load("ar_absolute")
    cond = policy.encode_prompts(prompts("ar_absolute"))
    sampling = guidance_window(5, 3.0, 30, 0.95, turn_on=1, turn_off=3, last_scale_temp=0.5)
    state = policy.sample(policy.begin(cond, sampling, torch.arange(2)), 5)
    found = policy(state.tokens, cond, 0, 5, score=Score("sampler", sampling)).log_prob
    alone = policy(state.tokens, cond, 0, 5, score=Score("sampler", Sampling(None, 30, 0.95, 0.5))).log_prob
    for t, (drawn, again) in enumerate(zip(state.log_probs, found, strict=True)):
        torch.testing.assert_close(again, drawn, rtol=0, atol=1e-5)
        if t >= 3:
            torch.testing.assert_close(alone[t], drawn, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", ["default", "ar"])
def test_a_fork_copies_keys_of_earlier_scales_only_where_these_are_attended_to(
    variant: str, load: Callable[..., SwittiPolicy]
) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    state = policy.sample(policy.begin(cond, Sampling(6.0), torch.arange(2)), 3).fork(4)
    assert [k.shape for k, _ in state.cache.cross] == [(16, 4, 77, 16)] * 3
    expected = [(16, 4, 14, 16)] * 3 if variant in AUTOREGRESSIVE else []
    assert [k.shape for k, _ in state.cache.layers] == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_teacher_forcing_runs_earlier_scales_only_where_these_are_attended_to(
    variant: str, load: Callable[..., SwittiPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    tokens = taught(policy, variant)
    ran: list[int] = []
    scale_features = policy.scale_features

    def watched(inputs: Any, cache: Any, latents: Any, first: int, schedule: Schedule) -> Any:
        ran.extend(range(first, first + len(latents)))
        return scale_features(inputs, cache, latents, first, schedule)

    monkeypatch.setattr(policy, "scale_features", watched)
    policy(tokens, cond, 2, 4)
    assert ran == ([0, 1, 2, 3] if variant in AUTOREGRESSIVE else [2, 3])


@pytest.mark.parametrize("variant", ["default", "no_crop"])
def test_gradients_of_a_span_are_the_same_without_the_scales_before_it(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy = load(variant)
    cond = policy.encode_prompts(prompts(variant))
    tokens = taught(policy, variant)

    def gradients(start: int) -> list[Tensor | None]:
        policy.zero_grad()
        log_prob = policy(tokens, cond, start, 5, score=Score("guided", Sampling(6.0))).log_prob
        torch.cat(log_prob[3 - start :], dim=1).sum().backward()
        return [p.grad for p in policy.transformer.parameters()]

    for (name, _), short, whole in zip(policy.transformer.named_parameters(), gradients(3), gradients(0), strict=True):
        if name == "pos_start":  # only the first scale has it
            assert short is None
        else:
            assert short is not None
            assert whole is not None
            assert_near(short, whole, 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_checkpointing_changes_no_gradient(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    tokens = reference(variant)["sampling"][1]["tokens"]
    found = []
    for enabled in (False, True):
        policy = load(variant, gradient_checkpointing=enabled)
        cond = policy.encode_prompts(prompts(variant))
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=saved: s.append(x.numel()) or x, lambda x: x):
            log_prob = torch.cat(policy(tokens, cond, 0, len(tokens)).log_prob, dim=1).mean()
        log_prob.backward()
        found.append((sum(saved), [p.grad for p in policy.transformer.parameters()]))
    (kept, plain), (kept_again, recomputed) = found
    assert kept_again < kept / 2
    for x, y in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("variant", ["default", "ar"])
@pytest.mark.parametrize("precision", ["weights", "autocast"])
def test_in_bf16_drawn_and_taught_log_probs_differ_by_rounding_only(
    variant: str, precision: str, load: Callable[..., SwittiPolicy]
) -> None:
    policy = load(variant, dtype="bfloat16" if precision == "weights" else "float32")
    cond = policy.encode_prompts(prompts(variant))
    sampling = Sampling(2.0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        state = policy.sample(policy.begin(cond, sampling, torch.arange(2)), 5)
        found = policy(state.tokens, cond, 0, 5, score=Score("sampler", sampling))
    exact = load(variant)(state.tokens, cond, 0, 5, score=Score("sampler", sampling))
    drawn, again, fp32 = (torch.cat(x, dim=1) for x in (state.log_probs, found.log_prob, exact.log_prob))
    assert (drawn - again).abs().max() < 0.02
    assert (drawn - fp32).abs().max() < 0.15
    assert state.latent.dtype == torch.float32


def test_the_crop_frequencies_stay_fp32(load: Callable[..., SwittiPolicy]) -> None:
    policy = load("default", dtype="bfloat16").to(torch.bfloat16)
    exact = load("default").encode_prompts(prompts("default")).tensors["crop"]
    assert torch.equal(policy.encode_prompts(prompts("default")).tensors["crop"], exact)
    assert {p.dtype for p in policy.transformer.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_gives_the_public_state_dict(variant: str, load: Callable[..., SwittiPolicy]) -> None:
    policy = load(variant)
    found = policy.published(policy.transformer.state_dict())
    wanted = public_weights(variant)
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].dtype == x.dtype, name
        assert torch.equal(found[name], x), name


def test_an_export_in_bf16_keeps_the_crop_frequencies_whole(load: Callable[..., SwittiPolicy], tmp_path: Path) -> None:
    """Their angles go into the thousands, where bf16 has no digits left."""
    policy = load("default")
    tensors = load_file(export_policy(policy, tmp_path / "out.safetensors", torch.bfloat16))
    assert tensors["crop_embed.weight"].dtype == torch.float32
    assert torch.equal(tensors["crop_embed.weight"], policy.crop.weight)
    assert tensors["head.weight"].dtype == torch.bfloat16


def test_a_published_file_loads_again(load: Callable[..., SwittiPolicy], tmp_path: Path) -> None:
    policy = load("default")
    torch.save(policy.published(policy.transformer.state_dict()), tmp_path / "again.pth")
    again = SwittiPolicy.from_pretrained(tmp_path / "again.pth", policy.tokenizer, num_heads=4)
    assert again.tokenizer is policy.tokenizer
    assert again.schedule() == policy.schedule()
    for x, y in zip(policy.transformer.parameters(), again.transformer.parameters(), strict=True):
        assert torch.equal(x, y)


def changed(variant: str, change: str) -> tuple[dict[str, Tensor], str]:
    """A damaged file, and what the message must say of it."""
    tensors = dict(public_weights(variant))
    if change == "renamed":
        tensors["blocks.1.attn.qkv.weight"] = tensors.pop("blocks.1.attn.to_qkv.weight")
        return tensors, r"(?s)missing blocks\.1\.attn\.to_qkv\.weight.*unexpected blocks\.1\.attn\.qkv\.weight"
    if change == "missing":
        del tensors["head_nm.ada_lin.1.bias"]
        return tensors, r"missing head_nm\.ada_lin\.1\.bias \[128\]"
    if change == "no frequencies":
        del tensors["crop_embed.weight"]
        return tensors, r"(?s)crop_embed of .*missing weight \[8\]"
    if change == "no projection of the crop":
        del tensors["crop_proj.weight"], tensors["crop_proj.bias"]
        return tensors, r"unexpected blocks\.0\.crop_cond_scales"
    if change == "extra":
        tensors["blocks.0.attn.bias"] = torch.zeros(3)
        return tensors, r"unexpected blocks\.0\.attn\.bias \[3\]"
    if change == "misshaped":
        tensors["blocks.2.cross_attn.to_q.bias"] = torch.zeros(63)
        return tensors, r"misshaped blocks\.2\.cross_attn\.to_q\.bias: \[63\] in the file, \[64\] in the model"
    return {"encoder.weight": torch.zeros(2)}, r"is no Switti transformer: it has no head\.weight, .*it has \['encoder\.weight'\]"


@pytest.mark.parametrize(
    "change", ["renamed", "missing", "no frequencies", "no projection of the crop", "extra", "misshaped", "another model"]
)
def test_a_file_that_does_not_fit_is_refused(change: str, load: Callable[..., SwittiPolicy], tmp_path: Path) -> None:
    tensors, message = changed("default", change)
    torch.save(tensors, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=message):
        SwittiPolicy.from_pretrained(tmp_path / "model.pth", VQVAE(64, 8, 32), num_heads=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": (1, 2, 3)}, r"sides \(1, 2, 3\) were given, but .* stores grids of sides \(1, 2, 3, 4, 6\)"),
        ({"sides": (1, 2, 3, 4, 5)}, r"sides \(1, 2, 3, 4, 5\) were given, but"),
        ({"num_heads": 5}, r"has 64 features, which cannot be shared by 5 heads; give num_heads"),
        ({"autoregressive": False}, r"autoregressive=False was given, but by its stored mask the scales of .* attend to earlier"),
        ({"dtype": "float8"}, r"dtype must be one of .* got 'float8'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str, load: Callable[..., SwittiPolicy]) -> None:
    with pytest.raises(ValueError, match=message):
        load("ar_absolute", **options)


def test_what_a_file_does_not_store_is_asked_for(tmp_path: Path) -> None:
    tensors = {name: x for name, x in public_weights("default").items() if not rules.is_computed(name)}
    torch.save(tensors, tmp_path / "model.pth")

    def loaded(**options: Any) -> SwittiPolicy:
        return SwittiPolicy.from_pretrained(tmp_path / "model.pth", VQVAE(64, 8, 32), num_heads=4, **options)

    with pytest.raises(ValueError, match=r"stores no mask; give autoregressive=True for Switti-AR"):
        loaded(sides=(1, 2, 3, 4, 6))
    with pytest.raises(ValueError, match=r"has 5 scales, the published models have \[10, 14\]; give sides"):
        loaded(autoregressive=True)
    policy = loaded(autoregressive=True, sides=(1, 2, 3, 4, 6))
    assert policy.scales_attend
    assert policy.schedule() == square((1, 2, 3, 4, 6))


def test_a_foreign_tokenizer_is_refused(load: Callable[..., SwittiPolicy]) -> None:
    with pytest.raises(ValueError, match=r"the tokenizer has 32 codes of 8 channels, .* trained with 64 of 8"):
        SwittiPolicy(load("default").transformer, VQVAE(32, 8, 32))


@pytest.mark.parametrize(("scales", "size"), [(10, (512, 512)), (14, (1024, 1024))])
def test_the_number_of_scales_tells_which_published_model_it_is(scales: int, size: tuple[int, int], tmp_path: Path) -> None:
    transformer = SwittiTransformer(16, 8, 64, 1, 1, 32, scales, 24, 20)
    torch.save(transformer.state_dict() | {"crop_embed.weight": CropFrequencies(64).weight}, tmp_path / "model.pth")
    policy = SwittiPolicy.from_pretrained(tmp_path / "model.pth", VQVAE(16, 8, 32), autoregressive=False)
    assert policy.schedule() == square(PUBLISHED[scales])
    assert policy.schedule().image_size == size
    assert policy.transformer.features == 64


def test_guidance_is_on_within_its_window_and_the_temperature_holds_after_it() -> None:
    assert guidance_window(5, 6.0, 20, 0.9, turn_on=1, turn_off=3, last_scale_temp=0.5) == Sampling(
        (0.0, 6.0, 6.0, 0.0, 0.0), 20, 0.9, (1.0, 1.0, 1.0, 0.5, 0.5)
    )
    assert guidance_window(10) == Sampling(6.0, 400, 0.95)
    assert guidance_window(14).cfg == (6.0,) * 10 + (0.0,) * 4
    assert guidance_window(5, cfg=0.0).cfg is None
    with pytest.raises(ValueError, match="turn_on 4 and turn_off 3"):
        guidance_window(5, turn_on=4, turn_off=3)


def test_the_default_sampling_is_that_of_the_public_pipeline(load: Callable[..., SwittiPolicy]) -> None:
    assert load("default").default_sampling == Sampling(6.0, 400, 0.95)
    tokenizer, transformer = VQVAE(64, 8, 32), load("no_crop").transformer
    assert SwittiPolicy(transformer, tokenizer, range(1, 13)).default_sampling.cfg == (6.0,) * 10 + (0.0,) * 2


def test_the_negative_prompt_is_the_unconditional_half(load: Callable[..., SwittiPolicy]) -> None:
    cond = load("default").encode_prompts([Prompt("a cat", negative="blurry"), Prompt("a dog")])
    for name in ("text", "pooled", "mask"):
        assert torch.equal(cond.tensors[name], torch.stack([rules.encoded(x)[name] for x in ("a cat", "a dog")]))
        assert torch.equal(cond.unconditional[name], torch.stack([rules.encoded(x)[name] for x in ("blurry", "")]))
    assert torch.equal(cond.tensors["crop"], cond.unconditional["crop"])


def test_words_behind_the_mask_are_not_seen(load: Callable[..., SwittiPolicy]) -> None:
    policy = load("default")
    cond = policy.encode_prompts(prompts("default"))
    tokens = taught(policy, "default")
    before = all_logits(policy, cond.tensors, tokens)
    text = cond.tensors["text"].clone()
    text[~cond.tensors["mask"]] = 100.0
    assert torch.equal(all_logits(policy, cond.tensors | {"text": text}, tokens), before)
    text[cond.tensors["mask"]] *= -1
    assert not torch.allclose(all_logits(policy, cond.tensors | {"text": text}, tokens), before)


def test_a_prompt_without_a_text_encoder_says_what_to_pass(files: Files) -> None:
    policy = SwittiPolicy.from_pretrained(*files, num_heads=4)
    with pytest.raises(ValueError, match=r"'a cat' has to be encoded, .* pass text_encoder .* ClipPair .* EncodedTexts"):
        policy.encode_prompts([Prompt("a cat")])


def test_another_size_is_refused(load: Callable[..., SwittiPolicy]) -> None:
    with pytest.raises(ValueError, match=r"images of \(96, 96\) pixels only, got \(512, 512\)"):
        load("default").encode_prompts([Prompt("a cat", size=(512, 512))])


def test_a_text_encoder_of_another_family_is_refused(files: Files) -> None:
    class Words(nn.Module):
        def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
            return {name: torch.stack([rules.encoded(text)[name] for text in texts]) for name in ("text", "mask")}

    policy = SwittiPolicy.from_pretrained(*files, Words(), num_heads=4)
    with pytest.raises(
        ValueError, match="Switti reads text, pooled, mask of a text, but the text encoder gives text, mask; use ClipPair"
    ):
        policy.encode_prompts([Prompt("a cat")])


def test_features_from_a_file_stand_in_for_clip(files: Files, load: Callable[..., SwittiPolicy]) -> None:
    texts = EncodedTexts({text: rules.encoded(text) for text in ("a cat", "")})
    policy = SwittiPolicy.from_pretrained(*files, texts, num_heads=4)
    found, wanted = (p.encode_prompts([Prompt("a cat")]) for p in (policy, load("default")))
    for name, x in wanted.tensors.items():
        assert torch.equal(found.tensors[name], x)
        assert torch.equal(found.unconditional[name], wanted.unconditional[name])
