"""Infinity's tokenizer against what the public code computed with the same weights, and its rules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.make_infinity import SEED, state
from parity.seeded import seeded
from torch import Tensor

from varrl_lightning.schedule import Schedule, square
from varrl_lightning.tokenizers.bsq import BSQTokenizer, plain_names

DATA = Path(__file__).parent.parent / "parity" / "data"


def load(variant: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    data: dict[str, Any] = torch.load(DATA / f"infinity_{variant}.pt", weights_only=True)
    return data, state(data["vae_shapes"])


def build(folder: Path, content: dict[str, Any]) -> BSQTokenizer:
    torch.save(content, folder / "vae.pth")
    return BSQTokenizer.from_pretrained(folder / "vae.pth")


@pytest.fixture(params=["published_2b", "published_8b", "portrait", "landscape"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], BSQTokenizer, Schedule]:
    data, tensors = load(request.param)
    return data, build(tmp_path, {"vae": tensors}), Schedule(tuple(tuple(grid) for grid in data["grids"]))


@pytest.fixture
def tokenizer(tmp_path: Path) -> BSQTokenizer:
    return build(tmp_path, {"vae": load("published_8b")[1]})


def latent_of(tokenizer: BSQTokenizer, tokens: list[Tensor], schedule: Schedule) -> Tensor:
    latent = tokenizer.begin(len(tokens[0]), schedule)
    for t, drawn in enumerate(tokens):
        latent = tokenizer.accumulate(latent, drawn.long(), t, schedule)
    return latent


def test_latent_and_picture(case: tuple[dict[str, Any], BSQTokenizer, Schedule]) -> None:
    data, tokenizer, schedule = case
    latent = latent_of(tokenizer, data["tokens"], schedule)
    torch.testing.assert_close(latent, data["latent"], rtol=0, atol=1e-5)
    image = tokenizer.decode_latent(latent)
    assert image.shape == (2, 3, *schedule.image_size)
    torch.testing.assert_close(image[:, :, 8:40, 16:48], data["crop"], rtol=0, atol=1e-4)


def test_encoding_gives_the_same_bits(case: tuple[dict[str, Any], BSQTokenizer, Schedule]) -> None:
    data, tokenizer, schedule = case
    image = (seeded("image", (2, 3, *schedule.image_size), SEED).clamp(-1, 1) + 1) / 2
    tokens = tokenizer.encode(image, schedule)
    assert [x.shape[1:] for x in tokens] == [(n, tokenizer.channels * tokenizer.zoom(schedule) ** 2) for n in schedule.lengths]
    for found, wanted in zip(tokens, data["encoded"], strict=True):
        assert torch.equal(found, wanted.long())
    assert 0.1 < torch.cat(tokens, dim=1).float().mean() < 0.9


def test_both_forms_of_names(tmp_path: Path) -> None:
    tensors = load("published_2b")[1]
    wrapped, schedule = build(tmp_path, {"vae": tensors}), square((1, 2, 4))
    short = {re.sub(r"(conv\w*|nin_shortcut)\.conv\.", r"\1.", name): x for name, x in tensors.items()}
    short = {re.sub(r"(norm\w*)\.norm\.", r"\1.", name): x for name, x in short.items()}
    assert "encoder.down.0.downsample.conv.weight" in short
    assert "encoder.down.0.block.0.norm1.weight" in short
    other = build(tmp_path, short)
    latent = seeded("latent", (1, 8, 4, 4))
    assert torch.equal(other.decode_latent(latent), wrapped.decode_latent(latent))
    image = torch.rand(1, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(other.encode(image, schedule), wrapped.encode(image, schedule), strict=True))
    with pytest.raises(ValueError, match="by another name, the same tensor"):
        plain_names(tensors | short)


def test_loading_is_strict(tmp_path: Path) -> None:
    tensors = load("published_2b")[1]
    name = "decoder.up.2.block.1.conv2.conv.weight"
    for changed, message in (
        ({k: x for k, x in tensors.items() if k != name}, r"missing decoder\.up\.2\.block\.1\.conv2\.weight"),
        (tensors | {"quantizer.project_in.weight": torch.zeros(8, 8)}, r"unexpected quantizer\.project_in\.weight"),
        (tensors | {name: torch.zeros(3)}, r"misshaped decoder\.up\.2\.block\.1\.conv2\.weight"),
        ({"weight": torch.zeros(2)}, r"it has no encoder\.conv_in\.weight, decoder\.conv_in\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            build(tmp_path, {"vae": changed})


def test_sizes_are_read(tmp_path: Path) -> None:
    for variant, channels, stride in (("published_2b", 8, 16), ("published_8b", 4, 8)):
        tokenizer = build(tmp_path, {"vae": load(variant)[1]})
        assert (tokenizer.channels, tokenizer.stride) == (channels, stride)
        assert not any(p.requires_grad for p in tokenizer.parameters())


def test_codes_have_length_one(tokenizer: BSQTokenizer) -> None:
    bits = torch.randint(0, 2, (3, 4, 16))
    latent = tokenizer.accumulate(tokenizer.begin(3, square((2,))), bits, 0, square((2,)))
    torch.testing.assert_close(latent.norm(dim=1), torch.ones(3, 4, 4))
    assert set(latent.unique().tolist()) == {-0.5, 0.5}


def test_a_token_holds_the_bits_of_its_places(tokenizer: BSQTokenizer) -> None:
    """Bit 4 c + 2 i + j of a token is channel c of the place (i, j) inside it, in the latent and in what is seen of it."""
    schedule = square((1, 2))
    bits = torch.zeros(1, 4, 16, dtype=torch.long)
    bits[0, 2, 4 * 3 + 2 * 1 + 0] = 1  # token (1, 0), channel 3, place (1, 0)
    latent = tokenizer.accumulate(tokenizer.begin(1, schedule), bits, 1, schedule)
    assert (latent > 0).nonzero().tolist() == [[0, 3, 3, 0]]
    assert torch.equal(tokenizer.next_input(latent, 1, schedule) > 0, bits == 1)


def test_latents_stay_fp32_under_autocast(tokenizer: BSQTokenizer) -> None:
    schedule = square((1, 2, 3))
    tokens = [torch.randint(0, 2, (1, n, 16)) for n in schedule.lengths]
    wanted = latent_of(tokenizer, tokens, schedule)
    with torch.autocast("cpu", torch.bfloat16):
        found = latent_of(tokenizer, tokens, schedule)
        seen, image = tokenizer.next_input(found, 1, schedule), tokenizer.decode_latent(found)
    assert torch.equal(found, wanted)
    assert torch.equal(seen, tokenizer.next_input(wanted, 1, schedule))
    assert torch.equal(image, tokenizer.decode_latent(wanted))


def test_decoding_any_depth_is_differentiable(tokenizer: BSQTokenizer) -> None:
    schedule = square((1, 2, 4))
    latent = latent_of(tokenizer, [torch.randint(0, 2, (1, n, 16)) for n in schedule.lengths[:2]], schedule).requires_grad_()
    image = tokenizer.decode_latent(latent)
    assert image.shape == (1, 3, 64, 64)
    assert 0 <= image.min() < image.max() <= 1
    image.sum().backward()
    assert latent.grad is not None
    assert latent.grad.any()


def test_other_strides_and_sizes_are_refused(tokenizer: BSQTokenizer) -> None:
    with pytest.raises(ValueError, match=r"multiple of 8x8 pixels, got stride \(12, 12\)"):
        tokenizer.begin(1, square((1, 2), stride=12))
    with pytest.raises(ValueError, match=r"\(32, 32\) pixels, got \(32, 48\)"):
        tokenizer.encode(torch.zeros(1, 3, 32, 48), square((1, 2)))
