"""The multi-scale tokenizer: one latent update for everybody, legible pictures after m scales and after all."""

import pytest
import torch

from varrl_lightning.policies.lettering import LETTERING, RANKS, LetteringPolicy
from varrl_lightning.rendering import render_words
from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.fitting import fit_codes, k_means
from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ

WORDS = ["TERSE", "FOX", "QUIZ", "WAGON", "MILD", "KAYAK"]


@pytest.fixture(scope="module")
def tokenizer() -> MultiScaleVQ:
    return LetteringPolicy.from_pretrained().tokenizer


def test_pictures_are_seeded() -> None:
    torch.testing.assert_close(render_words(WORDS, 3), render_words(WORDS, 3), rtol=0, atol=0)
    assert (render_words(WORDS, 3) - render_words(WORDS, 4)).abs().max() > 0.1


def test_embed_puts_each_tile_where_its_token_is() -> None:
    """Token (1, 2) of the 2x8 grid changes rows 12-23 and columns 16-23 only, by its own tile."""
    vq = MultiScaleVQ(LETTERING, vocab_size=5, ranks=RANKS)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    other = tokens.clone()
    other[0, 1 * 8 + 2] = 3
    change = (vq.embed(other, 3) - vq.embed(tokens, 3))[0, 0]
    tile = (vq.codes[3][3] - vq.codes[3][0]) @ vq.patterns[3]
    torch.testing.assert_close(change[12:24, 16:24], tile.view(12, 8))
    change[12:24, 16:24] = 0
    assert not change.any()


def test_codes_are_found_again() -> None:
    """Encoding a picture that is a sum of few, separated tiles finds those tiles; brute force over all codes agrees."""
    vq = MultiScaleVQ(Schedule(((1, 2), (2, 4)), (4, 4)), vocab_size=6, ranks=(32, 16))
    for codes, patterns in zip(vq.codes, vq.patterns, strict=True):
        torch.nn.init.orthogonal_(patterns)
        codes.data *= 1.0
    images = torch.rand(3, 3, 8, 16)
    left = images.mean(dim=1, keepdim=True) - vq.grey
    for t, tokens in enumerate(vq.encode(images)):
        tiles = vq.tiles_of(left, t)
        candidates = vq.codes[t] @ vq.patterns[t]
        torch.testing.assert_close(tokens, torch.cdist(tiles, candidates[None]).argmin(dim=-1))
        left = left - vq.embed(tokens, t)


def test_next_input_shows_the_latent_of_each_cell() -> None:
    """On the grid whose tiles are 8x4 the input is the latent itself; coarser grids see averages of it."""
    vq = MultiScaleVQ(LETTERING, vocab_size=5, ranks=RANKS)
    latent = torch.randn(2, 1, 24, 64)
    cells = vq.next_input(latent, 4)
    torch.testing.assert_close(cells[:, 16 + 5].view(2, 8, 4), latent[:, 0, 8:16, 20:24])
    whole = vq.next_input(latent, 0).view(2, 8, 4)
    torch.testing.assert_close(whole, latent[:, 0].view(2, 8, 3, 4, 16).mean(dim=(2, 4)))


def test_the_latent_update_ignores_autocast(tokenizer: MultiScaleVQ) -> None:
    tokens = tokenizer.encode(render_words(WORDS, 0))
    plain = tokenizer.accumulate(tokenizer.begin(len(WORDS)), tokens[0], 0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tokenizer.accumulate(tokenizer.begin(len(WORDS)), tokens[0], 0)
        shown, restored = tokenizer.next_input(cast, 1), tokenizer.restore(cast)
    assert cast.dtype == shown.dtype == restored.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_reconstructions_are_close_at_m_and_closer_when_whole(tokenizer: MultiScaleVQ) -> None:
    images = render_words(WORDS * 8, 11)
    latent, errors = tokenizer.begin(len(images)), []
    for t, tokens in enumerate(tokenizer.encode(images)):
        latent = tokenizer.accumulate(latent, tokens, t)
        errors.append((tokenizer.decode_latent(latent) - images).pow(2).mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.09
    assert errors[5] < 0.06


def test_decoding_is_differentiable(tokenizer: MultiScaleVQ) -> None:
    latent = torch.zeros(1, 1, 24, 64, requires_grad=True)
    image = tokenizer.decode_latent(latent)
    image.sum().backward()
    assert image.shape == (1, 3, 24, 64)
    assert latent.grad is not None
    assert latent.grad.abs().min() > 0


def test_fitting_lowers_the_error_scale_by_scale() -> None:
    vq = MultiScaleVQ(LETTERING, vocab_size=16, ranks=RANKS)
    images = render_words(WORDS * 10, 0)
    errors = fit_codes(vq, images, torch.Generator().manual_seed(0), samples=500, iterations=5)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < vq.target(images).pow(2).mean()
    for patterns in vq.patterns:
        torch.testing.assert_close(patterns @ patterns.T, torch.eye(len(patterns)), atol=1e-4, rtol=0)


def test_k_means_finds_separated_clusters() -> None:
    generator = torch.Generator().manual_seed(1)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = middles.repeat(50, 1) + 0.01 * torch.randn(150, 2, generator=generator)
    found = k_means(points, 3, generator, 20)
    assert torch.cdist(middles, found).min(dim=1).values.max() < 0.1


def test_k_means_needs_enough_points() -> None:
    with pytest.raises(ValueError, match=r"512 centres need at least as many points, got 10"):
        k_means(torch.randn(10, 2), 512, torch.Generator(), 1)


def test_wrong_grids_and_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="every grid must divide the 24x64 picture"):
        MultiScaleVQ(Schedule(((1, 5), (6, 16)), (4, 4)), ranks=(8, 8))
    with pytest.raises(ValueError, match="one number for each of the 6 scales"):
        MultiScaleVQ(LETTERING, ranks=(8, 8))
