"""TokenFlow's tokenizer against what the public code computed with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rules import TOKENIZER, picture, weights
from torch import Tensor

from varrl_lightning.schedule import Schedule, square
from varrl_lightning.tokenizers.tokenflow_vq import TOKENFLOW_256, TokenFlowVQ

DATA = Path(__file__).parent.parent / "parity" / "data"


@pytest.fixture(scope="module", params=["plain", "grouped"])
def data(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(DATA / f"tokenflow_{request.param}.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def tokenizer(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TokenFlowVQ:
    path = tmp_path_factory.mktemp("weights") / "vq.pt"
    torch.save({"model": weights(data["layouts"]["tokenizer"], TOKENIZER)}, path)
    return TokenFlowVQ.from_pretrained(path)


@pytest.fixture
def schedule(data: dict[str, Any]) -> Schedule:
    return square(data["config"]["sides"], stride=2)


def latent_of(tokenizer: TokenFlowVQ, tokens: list[Tensor], schedule: Schedule) -> Tensor:
    latent = tokenizer.begin(len(tokens[0]), schedule)
    for t, drawn in enumerate(tokens):
        latent = tokenizer.accumulate(latent, drawn, t, schedule)
    return latent


def test_encoding_finds_the_same_tokens(data: dict[str, Any], tokenizer: TokenFlowVQ, schedule: Schedule) -> None:
    tokens = tokenizer.encode(picture(2, schedule.image_size[0]), schedule)
    assert [t.shape for t in tokens] == [(2, n) for n in schedule.lengths]
    torch.testing.assert_close(torch.cat(tokens, dim=1), data["tokenizer"]["codes"], atol=0, rtol=0)


def test_decoding_after_every_scale(data: dict[str, Any], tokenizer: TokenFlowVQ, schedule: Schedule) -> None:
    tokens = list(data["tokenizer"]["codes"].split(schedule.lengths, dim=1))
    for m, wanted in enumerate(data["tokenizer"]["decoded"], start=1):
        image = tokenizer.decode_latent(latent_of(tokenizer, tokens[:m], schedule))
        torch.testing.assert_close(image, wanted.clamp(0, 1), atol=1e-4, rtol=0)
    assert 0.1 < image.std() < 0.4


def test_inputs_of_a_prefix_do_not_depend_on_the_scales_after_it(
    data: dict[str, Any], tokenizer: TokenFlowVQ, schedule: Schedule
) -> None:
    tokens = list(data["tokenizer"]["codes"].split(schedule.lengths, dim=1))
    longer = Schedule((*schedule.grids, (7, 7)), schedule.stride)
    for t in range(1, len(schedule)):
        short, long = (tokenizer.next_input(latent_of(tokenizer, tokens[:t], s), t, s) for s in (schedule, longer))
        assert short.shape == (2, schedule.lengths[t], tokenizer.channels)
        torch.testing.assert_close(short, long, atol=0, rtol=0)


def test_grids_need_not_be_square(tokenizer: TokenFlowVQ) -> None:
    wide = Schedule(((1, 1), (2, 3), (3, 5)), (2, 2))
    tokens = [torch.randint(tokenizer.vocab_size, (2, n)) for n in wide.lengths]
    latent = latent_of(tokenizer, tokens[:2], wide)
    assert tokenizer.next_input(latent, 2, wide).shape == (2, 15, tokenizer.channels)
    assert tokenizer.decode_latent(latent_of(tokenizer, tokens, wide)).shape == (2, 3, 6, 10)


def test_the_latent_is_float32_under_autocast(tokenizer: TokenFlowVQ, schedule: Schedule) -> None:
    tokens = [torch.randint(tokenizer.vocab_size, (2, n)) for n in schedule.lengths]
    with torch.autocast("cpu", torch.bfloat16):
        inside = latent_of(tokenizer, tokens, schedule)
        image = tokenizer.decode_latent(inside)
    torch.testing.assert_close(inside, latent_of(tokenizer, tokens, schedule), atol=0, rtol=0)
    torch.testing.assert_close(image, tokenizer.decode_latent(inside), atol=0, rtol=0)


def test_an_image_has_a_gradient(tokenizer: TokenFlowVQ, schedule: Schedule) -> None:
    tokens = [torch.randint(tokenizer.vocab_size, (1, n)) for n in schedule.lengths]
    latent = latent_of(tokenizer, tokens, schedule).requires_grad_()
    tokenizer.decode_latent(latent).mean().backward()
    assert latent.grad is not None
    assert latent.grad[:, : tokenizer.channels].abs().max() == 0  # the progressive half makes inputs, and no image
    assert latent.grad[:, tokenizer.channels :].abs().max() > 0


def test_published_sizes_are_the_defaults() -> None:
    """Shapes of `tokenflow_clipb_32k_enhanced.pt` by the public constructors."""
    with torch.device("meta"):
        state = {name: tuple(x.shape) for name, x in TokenFlowVQ().state_dict().items()}
    assert state["quantize.embedding_vqkd.weight"] == (32768, 32)
    assert state["quantize.embedding_vqgan.weight"] == (32768, 8)
    assert state["decoder.conv_blocks.0.res.4.conv2.weight"] == (1024, 1024, 3, 3)
    assert state["decoder.conv_blocks.4.res.4.conv1.weight"] == (256, 256, 3, 3)
    assert "decoder.conv_blocks.4.upsample.conv.weight" not in state
    assert state["encoder.conv_blocks.4.attn.1.q.weight"] == (512, 512, 1, 1)
    assert state["encoder_vqkd.positional_embedding"] == (197, 768)
    assert TOKENFLOW_256.offsets[-1] == 817
    assert TOKENFLOW_256.image_size == (256, 256)


def test_another_teacher_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    tensors = weights(data["layouts"]["tokenizer"], TOKENIZER)
    del tensors["encoder_vqkd.conv1.weight"]
    torch.save(tensors, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match=r"no TokenFlow tokenizer with a CLIP teacher .*: it has no encoder_vqkd.conv1.weight"):
        TokenFlowVQ.from_pretrained(tmp_path / "vq.pt")


def test_loading_is_strict(data: dict[str, Any], tmp_path: Path) -> None:
    tensors = weights(data["layouts"]["tokenizer"], TOKENIZER)
    del tensors["decoder.norm_out.bias"]
    torch.save({"state_dict": tensors | {"odd": torch.zeros(2)}}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match=r"(?s)missing decoder.norm_out.bias.*unexpected odd"):
        TokenFlowVQ.from_pretrained(tmp_path / "vq.pt")
