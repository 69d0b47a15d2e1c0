"""The doctor finds a VAE that is not the policy's, by what the policy expects of a picture that it should know."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import families
from tests.tiny import PROMPTS, TinyPolicy, tiny_policy, untrained_lettering
from varrl_lightning.__main__ import main
from varrl_lightning.commands.doctor import examine
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_tokens import ADVICE, predict, tokens_are_predicted
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.known_picture import CAT, SIGN, KnownPicture
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lettering_sign import Sign
from varrl_lightning.policies.state import Cond
from varrl_lightning.pretraining.rendering import render_signs
from varrl_lightning.tokenizers.bsq import BSQTokenizer
from varrl_lightning.tokenizers.tokenflow_vq import TokenFlowVQ
from varrl_lightning.tokenizers.vqvae import VQVAE
from varrl_lightning.types import Prompt


@pytest.fixture(scope="module")
def embedded() -> LetteringPolicy:
    return LetteringPolicy.from_pretrained()


def permuted(seed: int = 0) -> LetteringPolicy:
    """The embedded model with its codes in another order: pictures are reconstructed as before."""
    policy = LetteringPolicy.from_pretrained()
    order = torch.randperm(policy.vocab_size, generator=torch.Generator().manual_seed(seed))
    for codes in policy.tokenizer.codes:
        codes.data = codes.data[order]
    return policy


def tokens(policy: VARPolicy, trained: bool = True, picture: KnownPicture | None = None) -> Finding:
    return tokens_are_predicted(policy, picture or policy.known_picture, PROMPTS[:1], trained)


# --- the embedded model -------------------------------------------------------------------------------------------------------


def test_the_embedded_model_is_far_above_chance(embedded: LetteringPolicy) -> None:
    """The numbers are those of the policy's own forward pass."""
    finding = tokens(embedded)
    assert finding.passed
    assert not finding.advice
    schedule = embedded.schedule()
    drawn = embedded.encode(SIGN.pixels(schedule.image_size), schedule)
    scored = embedded(drawn, embedded.encode_prompts([SIGN.prompt]), 0, len(schedule)).log_prob
    mean = torch.cat(scored, dim=1).mean().item()
    assert mean > -math.log(512) + 1.3
    assert f"mean log-prob per token of sign.png: {mean:.3f} (chance {-math.log(512):.3f}, " in finding.figure


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_permuted_codebook_is_a_fault_although_it_reconstructs_perfectly(embedded: LetteringPolicy, seed: int) -> None:
    policy = permuted(seed)
    schedule = policy.schedule()
    image = SIGN.pixels(schedule.image_size)
    ours, theirs = policy.encode(image, schedule), embedded.encode(image, schedule)
    assert torch.equal(policy.decode(ours, schedule), embedded.decode(theirs, schedule))
    assert not torch.equal(ours[-1], theirs[-1])
    for trained in (True, False):
        finding = tokens(policy, trained)
        assert not finding.passed
        assert finding.advice.startswith("The policy does not predict this tokenizer's tokens: wrong VAE, or untrained weights.")


def test_untrained_weights_are_a_fault_where_a_file_holds_them_and_a_warning_where_they_are_made(embedded: LetteringPolicy) -> None:
    policy = LetteringPolicy(untrained_lettering().transformer, embedded.tokenizer)
    assert not tokens(policy, trained=True).passed
    finding = tokens(policy, trained=False)
    assert finding.passed
    assert finding.advice == ADVICE.format(picture="sign.png")


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_policy_that_was_never_trained_is_a_warning(seed: int) -> None:
    finding = tokens(tiny_policy(seed), trained=False)
    assert finding.passed
    assert finding.advice


# --- the command --------------------------------------------------------------------------------------------------------------


def _written(folder: Path, **init_args: str) -> list[str]:
    """The arguments of a command with the embedded model, and a reward that costs nothing."""
    policy = {"class_path": "varrl_lightning.LetteringPolicy.from_pretrained", "init_args": init_args}
    model = {"policy": policy, "reward": "tiny.LeftBright", "mask_source": "full", "m": 4, "group_size": 2}
    data = {"train": "builtin:lettering/train.jsonl", "batch_size": 2}
    (folder / "x.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    return ["--config", str(folder / "x.yaml")]


def _finding(arguments: list[str], picture: KnownPicture | None = None) -> Finding:
    return next(found for found in examine(ParsedConfig(["fit", *arguments]), picture) if found.check == "tokens")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    yield
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


def test_the_doctor_finds_a_file_with_a_permuted_codebook(tmp_path: Path) -> None:
    assert _finding(_written(tmp_path)).passed
    save_file(permuted().tokenizer.state_dict(), tmp_path / "other.safetensors")
    finding = _finding(_written(tmp_path, tokenizer=str(tmp_path / "other.safetensors")))
    assert (finding.check, finding.passed) == ("tokens", False)
    assert "wrong VAE" in finding.advice


def test_a_picture_and_its_caption_may_be_given(embedded: LetteringPolicy, tmp_path: Path) -> None:
    from PIL import Image

    _, whole = render_signs([Sign(("CAFE",), "blue", "metal")], 5)
    path = tmp_path / "mine.png"
    Image.fromarray((whole[0].permute(1, 2, 0) * 255).byte().numpy()).resize((600, 480)).save(path)
    mine = KnownPicture(path, Prompt('a blue metal sign that says "CAFE"'))
    assert "of mine.png:" in tokens(embedded, picture=mine).figure
    assert tokens(embedded, picture=mine).passed
    assert not tokens(permuted(), picture=mine).passed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--caption", "a cat"], "give --picture and --caption together"),
        (["--picture", "nowhere.png", "--caption", "a cat"], "nowhere.png"),
        (["--picture", __file__, "--caption", "a cat"], "cannot identify image file"),
    ],
)
def test_half_a_picture_and_no_picture_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *_written(tmp_path), *options]) == 2
    assert said in capsys.readouterr().err


# --- every family -------------------------------------------------------------------------------------------------------------


def permute_codes(tokenizer: nn.Module) -> None:
    """Another order of the codebook, or of the channels whose signs are the bits; the tokenizer stays intact."""

    def moved(parameter: nn.Parameter, order: Tensor, dim: int = 0) -> None:
        parameter.data = parameter.data.index_select(dim, order)

    if isinstance(tokenizer, BSQTokenizer):
        order = torch.arange(tokenizer.channels).roll(1)
        for part in (tokenizer.encoder.conv_out.weight, tokenizer.encoder.conv_out.bias):
            moved(part, order)
        moved(tokenizer.decoder.conv_in.weight, order, 1)
    else:
        assert isinstance(tokenizer, (VQVAE, TokenFlowVQ))
        order = torch.randperm(tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))
        for name, book in tokenizer.quantize.named_modules():
            if name.startswith("embedding"):
                moved(book.weight, order)  # type: ignore[arg-type]


def teach(policy: VARPolicy, drawn: list[Tensor], cond: Cond) -> None:
    """Train the policy until it expects these tokens somewhat: .3 of ln V above chance, of the many bits .07."""
    rate, share = (2e-3, 0.7) if policy.bits is None else (1e-3, 0.93)
    trained = [p.requires_grad_() for p in policy.transformer.parameters()]
    optimizer = torch.optim.Adam(trained, lr=rate)
    for _ in range(100):
        optimizer.zero_grad()
        scores = policy(drawn, cond, 0, len(cond.schedule)).log_prob
        loss = -torch.cat(scores, dim=1).mean() / (policy.bits or 1)
        if loss < share * math.log(policy.vocab_size):
            return
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    raise AssertionError(f"still {loss.item()}")


FAMILIES: dict[str, Callable[[Path], families.Made]] = {
    "var": families.var,
    "switti": families.switti,
    "infinity": families.infinity,
    "tokenflow": families.tokenflow,
    "llm_prefix": families.llm_prefix,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_knows_a_picture_does_not_know_it_through_another_vae(family: str, weights_folder: Path) -> None:
    policy, cond = FAMILIES[family](weights_folder)
    cond = cond.rows(slice(0, 1))
    image = CAT.pixels(cond.schedule.image_size)
    drawn = policy.encode(image, cond.schedule)
    assert not predict(policy, drawn, cond).known
    teach(policy, drawn, cond)
    found = predict(policy, drawn, cond)
    assert found.known
    assert -found.uniform < found.log_prob.mean() < 0
    decoded = policy.decode(drawn, cond.schedule)
    permute_codes(policy.tokenizer)
    other = policy.encode(image, cond.schedule)
    torch.testing.assert_close(policy.decode(other, cond.schedule), decoded, atol=1e-5, rtol=0)
    assert not predict(policy, other, cond).known


def test_a_caption_that_a_policy_cannot_read_is_replaced_by_a_prompt_of_the_run(weights_folder: Path) -> None:
    policy = families.load_llm_prefix()
    finding = tokens_are_predicted(policy, CAT, families.LLM_PROMPTS, trained=True)
    assert not finding.passed
    assert "cat.jpg under the prompt 'a cow', since the policy cannot read its caption" in finding.figure
    policy, _ = families.var(weights_folder)  # of fewer classes
    assert "cat.jpg under the prompt 'a'" in tokens_are_predicted(policy, CAT, families.VAR_PROMPTS, trained=True).figure


def test_a_policy_without_an_encoder_is_said_not_to_be_checked() -> None:
    class OneWay(nn.Module):
        vocab_size = 64

    policy = tiny_policy()
    blind = VARPolicy.__new__(type("Blind", (TinyPolicy,), {"encode": VARPolicy.encode}))
    blind.__dict__.update(policy.__dict__)
    with blind.using_frozen_parts({"tokenizer": OneWay()}):
        finding = tokens(blind)
    assert finding.passed
    assert "not checked" in finding.figure
    assert "Define `encode(images, schedule)`" in finding.advice


# --- the pictures -------------------------------------------------------------------------------------------------------------


def test_the_pictures_are_small_and_what_their_captions_say() -> None:
    assert all(picture.path.stat().st_size < 100_000 for picture in (CAT, SIGN))
    _, whole = render_signs([Sign(("OPEN", "LATE"), "red", "wooden")], 0)
    torch.testing.assert_close(SIGN.pixels((48, 60)), whole, atol=0.5 / 255 + 1e-6, rtol=0)
    classes = (Path(families.__file__).parents[1] / "varrl_lightning/assets/imagenet/classes.txt").read_text().splitlines()
    assert CAT.prompt.label is not None
    assert classes[CAT.prompt.label] == "tabby"


def test_a_picture_is_cut_to_the_shape_around_its_middle(tmp_path: Path) -> None:
    from PIL import Image

    image = torch.zeros(20, 60, 3, dtype=torch.uint8)
    image[:, 20:40] = 255
    Image.fromarray(image.numpy()).save(tmp_path / "x.png")
    pixels = KnownPicture(tmp_path / "x.png", Prompt("x")).pixels((40, 40))
    assert pixels.shape == (1, 3, 40, 40)
    assert pixels[:, :, :, 2:38].min() > 0.96  # a filter rings at the edges
