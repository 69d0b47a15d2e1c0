"""VAR against what the public code computed with the same weights, and what only ours has to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rules import TRANSFORMER, abridged, layout, picture, weights, window
from torch import Tensor

from tests.families import DATA, Files, load_var, once, read, relative, write
from tests.families import VAR_PROMPTS as PROMPTS
from varrl_lightning.policies.var import IMAGENET, ImageNetVARPolicy
from varrl_lightning.schedule import VAR_256, VAR_512
from varrl_lightning.types import Prompt, Sampling, Score

VARIANTS = sorted(path.stem for path in DATA.glob("var_*.pt"))
LOGITS = 1e-5
"""Of the largest logit."""


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, weights_folder: Path) -> tuple[dict[str, Any], ImageNetVARPolicy]:
    return read(request.param), load_var(weights_folder, request.param.removeprefix("var_"))


@pytest.fixture
def files(weights_folder: Path) -> Files:
    return once(weights_folder, "var_l2norm", write)


@pytest.fixture
def own_files(tmp_path: Path) -> Files:
    """Files that a test may change."""
    return write(tmp_path, read("var_l2norm"))


def logits_of(policy: ImageNetVARPolicy, inputs: dict[str, Tensor], tokens: list[Tensor], stop: int) -> Tensor:
    features = policy.span_features(inputs, tokens, 0, stop, policy.schedule())
    return torch.cat([policy.logits(x) for x in features], dim=1)


def test_all_variants_are_there() -> None:
    assert len(VARIANTS) == 7


def test_teacher_forced_logits_and_log_probs(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    data, policy = case
    teacher, cond = data["teacher"], policy.encode_prompts(PROMPTS)
    tokens = data["sampling"][teacher["case"]]["tokens"]
    with torch.no_grad():
        assert relative(logits_of(policy, cond.tensors, tokens, len(tokens)), teacher["cond"]) < LOGITS
        assert relative(logits_of(policy, cond.unconditional, tokens, len(tokens)), teacher["uncond"]) < LOGITS
        scored = policy(tokens, cond, 0, len(tokens))
    assert relative(torch.cat(scored.log_prob, dim=1), teacher["log_prob"]) < LOGITS


def test_truncated_passes(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    """Scales [0, m) alone give what the public code's own truncated pass gives."""
    data, policy = case
    tokens, cond = data["sampling"][data["teacher"]["case"]]["tokens"], policy.encode_prompts(PROMPTS)
    for m, wanted in data["teacher"]["prefix"].items():
        with torch.no_grad():
            assert relative(logits_of(policy, cond.tensors, tokens[:m], m), wanted) < LOGITS


def test_sampling_draws_the_same_tokens_and_image(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    data, policy = case
    cond = policy.encode_prompts(PROMPTS)
    for drawn in data["sampling"]:
        sampling = Sampling(cfg=drawn["cfg"], top_k=drawn["top_k"], top_p=drawn["top_p"] or 1.0)
        state = policy.begin(cond, sampling, torch.Generator().manual_seed(drawn["seed"]))
        state = policy.sample(state, len(policy.schedule()))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(state.tokens, drawn["tokens"], strict=True))
        torch.testing.assert_close(window(policy.decode_latent(state.latent)), drawn["image"], atol=1e-4, rtol=0)


def test_guided_logits(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    data, policy = case
    cond, schedule = policy.encode_prompts(PROMPTS), policy.schedule()
    for drawn in data["sampling"]:
        score = Score("guided", Sampling(cfg=drawn["cfg"]))
        with torch.no_grad():
            halves = policy.span_halves(drawn["tokens"], cond, 0, len(schedule), score)
            for scale, wanted in drawn["guided"].items():
                assert relative(policy._score_logits(halves[scale], scale, schedule, score), wanted) < 2 * LOGITS


@pytest.mark.parametrize("guided", [False, True])
def test_gradients(case: tuple[dict[str, Any], ImageNetVARPolicy], guided: bool) -> None:
    data, policy = case
    drawn = data["sampling"][data["teacher"]["case"]]
    score = Score("guided", Sampling(cfg=drawn["cfg"])) if guided else Score()
    policy.zero_grad()
    scored = policy(drawn["tokens"], policy.encode_prompts(PROMPTS), 0, len(policy.schedule()), score=score)
    torch.cat(scored.log_prob, dim=1).mean().backward()
    wanted = data["teacher"]["guided_gradients" if guided else "gradients"]
    assert {name for name, _ in policy.transformer.named_parameters()} == set(wanted)
    for name, parameter in policy.transformer.named_parameters():
        assert parameter.grad is not None
        found = abridged(parameter.grad)
        assert found["norm"] == pytest.approx(wanted[name]["norm"], rel=1e-4), name
        torch.testing.assert_close(found["entries"], wanted[name]["entries"], atol=1e-4 * wanted[name]["norm"], rtol=1e-4, msg=name)


def test_tokenizer_encodes_and_decodes_alike(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    data, policy = case
    schedule, wanted = policy.schedule(), data["tokenizer"]
    tokens = policy.tokenizer.encode(picture(2, schedule.image_size[0]), schedule)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tokens, wanted["tokens"], strict=True))
    for depth, image in enumerate(wanted["decoded"], start=1):
        torch.testing.assert_close(window(policy.decode(tokens[:depth], schedule)), image, atol=1e-4, rtol=0)


def test_export_has_the_published_names_and_values(case: tuple[dict[str, Any], ImageNetVARPolicy]) -> None:
    data, policy = case
    exported = policy.published(policy.transformer.state_dict())
    wanted = weights(data["layouts"]["transformer"], TRANSFORMER)
    assert exported.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(exported[name], tensor, msg=name)
    assert layout(exported)["computed"].keys() == data["layouts"]["transformer"]["computed"].keys()


def test_sizes_of_the_published_models_are_read(own_files: Files) -> None:
    """Without the stored levels the number of positions tells 256 from 512 pixels, and anything else must be said."""
    _, tokenizer = own_files
    tensors = torch.load(own_files[0], weights_only=True)
    levels = tensors.pop("lvl_1L")
    for known in (VAR_256, VAR_512):
        tensors["pos_1LC"] = torch.zeros(1, known.offsets[-1], 64)
        tensors["lvl_embed.weight"] = torch.zeros(10, 64)
        torch.save(tensors, own_files[0])
        assert ImageNetVARPolicy.from_pretrained(own_files[0], tokenizer).schedule() == known
    tensors["pos_1LC"] = torch.zeros(1, levels.numel(), 64)
    torch.save(tensors, own_files[0])
    with pytest.raises(ValueError, match=r"66 positions, which fits no published VAR; give `sides`"):
        ImageNetVARPolicy.from_pretrained(own_files[0], tokenizer)


def test_conditions_are_not_dropped(files: Files) -> None:
    """The public forward pass drops conditions at random even in evaluation, which moved logits by up to 4."""
    policy = ImageNetVARPolicy.from_pretrained(*files)
    cond = policy.encode_prompts(PROMPTS)
    tokens = policy.sample(policy.begin(cond, Sampling(), torch.tensor([1, 2])), 5).tokens
    policy.train()
    with torch.no_grad():
        passes = [logits_of(policy, cond.tensors, tokens, 5) for _ in range(20)]
    assert all(torch.equal(passes[0], other) for other in passes[1:])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("x", label=10), r"label must be in \[0, 10\), got 10"),
        (Prompt("x", label=-1), r"label must be in \[0, 10\), got -1"),
        (Prompt("goldfisch"), r"got 'goldfisch'. Did you mean 'goldfish'"),
        (Prompt("qqqq"), r"give a `label` in \[0, 10\), or a class name as the text, got 'qqqq'$"),
        (Prompt("hen", size=(512, 512)), r"pictures of \(96, 96\) pixels only, got \(512, 512\)"),
    ],
)
def test_prompts_it_cannot_draw(files: Files, prompt: Prompt, message: str) -> None:
    policy = ImageNetVARPolicy.from_pretrained(*files)
    with pytest.raises(ValueError, match=message):
        policy.encode_prompts([prompt])


def test_a_class_is_named_or_numbered(files: Files) -> None:
    policy = ImageNetVARPolicy.from_pretrained(*files)
    cond = policy.encode_prompts([Prompt("Goldfish "), Prompt("anything", label=1)])
    assert cond.tensors["label"].tolist() == [1, 1]
    assert cond.unconditional["label"].tolist() == [10, 10]
    policy.class_names[3:5] = ["Cardigan", "cardigan"]
    assert policy.encode_prompts([Prompt("cardigan"), Prompt("Cardigan")]).tensors["label"].tolist() == [4, 3]
    with pytest.raises(ValueError, match=r"got 'CARDIGAN'. That is the name of 3 \('Cardigan'\) and 4 \('cardigan'\)"):
        policy.encode_prompts([Prompt("CARDIGAN")])
    names = IMAGENET.read_text().splitlines()
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


def test_wrong_files_are_named(own_files: Files) -> None:
    transformer, tokenizer = own_files
    with pytest.raises(ValueError, match=r"is no transformer of VAR's layout: it has no head.weight"):
        ImageNetVARPolicy.from_pretrained(tokenizer, tokenizer)
    with pytest.raises(ValueError, match=r"is no VQ-VAE of VAR's layout: it has no quantize.embedding.weight"):
        ImageNetVARPolicy.from_pretrained(transformer, transformer)
    with pytest.raises(ValueError, match=r"num_heads is 3, but .* has 4 heads"):
        ImageNetVARPolicy.from_pretrained(transformer, tokenizer, num_heads=3)
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'fp32'"):
        ImageNetVARPolicy.from_pretrained(transformer, tokenizer, dtype="fp32")


def test_a_tokenizer_of_other_sizes_is_refused(own_files: Files) -> None:
    tensors = torch.load(own_files[1], weights_only=True)
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:60].clone()
    torch.save(tensors, own_files[1])
    with pytest.raises(ValueError, match="trained on 64 codes of 8 channels, but the tokenizer has 60 of 8"):
        ImageNetVARPolicy.from_pretrained(*own_files)


@pytest.mark.parametrize("fork_at", [0, 2, 4])
@pytest.mark.parametrize("cfg", [None, 3.0])
def test_drawn_and_taught_log_probs_agree_after_a_fork(
    case: tuple[dict[str, Any], ImageNetVARPolicy], fork_at: int, cfg: float | None
) -> None:
    _, policy = case
    sampling = Sampling(cfg=cfg, top_k=40, temperature=0.9)
    cond, scales = policy.encode_prompts(PROMPTS), len(policy.schedule())
    state = policy.sample(policy.begin(cond, sampling, torch.tensor([5, 6])), fork_at).fork(3)
    state = policy.sample(state, scales)
    with torch.no_grad():
        scored = policy(state.tokens, cond.repeat(3), 0, scales, score=Score("sampler", sampling))
    for drawn, taught in zip(state.log_probs, scored.log_prob, strict=True):
        torch.testing.assert_close(drawn, taught, atol=1e-5, rtol=1e-5)
    decoded = policy.decode(state.tokens, policy.schedule())
    torch.testing.assert_close(decoded, policy.decode_latent(state.latent), atol=1e-5, rtol=0)


def test_keys_and_values_are_kept_in_bf16_under_autocast(files: Files) -> None:
    policy = ImageNetVARPolicy.from_pretrained(*files)
    with torch.autocast("cpu", torch.bfloat16):
        state = policy.sample(policy.begin(policy.encode_prompts(PROMPTS), Sampling(), torch.tensor([5, 6])), 2)
    assert {x.dtype for pair in state.cache.layers for x in pair} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["weights", "autocast"])
def test_bf16(files: Files, form: str) -> None:
    """Drawn and taught log-probabilities differ by rounding, and both from fp32 by bf16's three digits."""
    exact = ImageNetVARPolicy.from_pretrained(*files)
    policy = ImageNetVARPolicy.from_pretrained(*files, dtype="bfloat16" if form == "weights" else "float32")
    cond, scales = policy.encode_prompts(PROMPTS), len(policy.schedule())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=form == "autocast"):
        state = policy.sample(policy.begin(cond, Sampling(), torch.tensor([5, 6])), scales)
        taught = torch.cat(policy(state.tokens, cond, 0, scales).log_prob, dim=1)
        assert state.latent.dtype == torch.float32
    assert (torch.cat(state.log_probs, dim=1) - taught).abs().max() < 0.02
    with torch.no_grad():
        wanted = torch.cat(exact(state.tokens, cond, 0, scales).log_prob, dim=1)
    assert 1e-5 < (taught - wanted).abs().max() < 0.15


def test_checkpointing_changes_no_gradient(files: Files) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = ImageNetVARPolicy.from_pretrained(*files, gradient_checkpointing=checkpointing)
        cond = policy.encode_prompts(PROMPTS)
        tokens = policy.sample(policy.begin(cond, Sampling(), torch.tensor([1, 2])), 5).tokens
        torch.cat(policy(tokens, cond, 1, 4).log_prob, dim=1).mean().backward()
        gradients.append({name: p.grad for name, p in policy.transformer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-7, rtol=1e-5, msg=name)


@pytest.mark.parametrize("of", ["transformer", "tokenizer"])
@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "misshaped"])
def test_a_file_that_does_not_fit_is_refused(own_files: Files, of: str, change: str) -> None:
    path = own_files[0] if of == "transformer" else own_files[1]
    name = "blocks.1.attn.proj.weight" if of == "transformer" else "decoder.mid.block_1.conv1.weight"
    tensors = torch.load(path, weights_only=True)
    tensor = tensors.pop(name)
    if change == "extra":
        tensors |= {name: tensor, "one.more": torch.zeros(2)}
    elif change == "renamed":
        tensors["moved." + name] = tensor
    elif change == "misshaped":
        tensors[name] = tensor[:-1].clone()
    torch.save(tensors, path)
    expected = {
        "missing": rf"missing {name} ",
        "extra": r"unexpected one.more \[2\]",
        "renamed": rf"(?s)missing {name} .*unexpected moved.{name}",
        "misshaped": rf"misshaped {name}: \[\d+, .* in the file, \[\d+, .* in the model",
    }
    with pytest.raises(ValueError, match=expected[change]):
        ImageNetVARPolicy.from_pretrained(*own_files)
