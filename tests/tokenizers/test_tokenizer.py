"""The multi-scale tokenizer: one latent update for everybody, legible pictures after m scales and after all."""

import pytest
import torch

from varrl_lightning.policies.lettering import ASSETS, CONTENT, LETTERING, RANKS, LetteringPolicy
from varrl_lightning.policies.lettering_sign import Sign
from varrl_lightning.pretraining.pictures import read_words
from varrl_lightning.pretraining.rendering import LINE_HEIGHT, render_signs
from varrl_lightning.rewards.ocr_engines import RapidOCREngine
from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.fitting import fit_codes, k_means
from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ

SIGNS = [Sign(words) for words in (("TERSE",), ("FOX", "QUIZ"), ("WAGON", "MILD", "KAYAK"))]
T = len(LETTERING)


@pytest.fixture(scope="module")
def tokenizer() -> MultiScaleVQ:
    return LetteringPolicy.from_pretrained().tokenizer


def test_embed_puts_each_tile_where_its_token_is() -> None:
    """Token (1, 2) of the 3x5 grid changes rows 16-31 and columns 24-35 only, by its own coloured tile."""
    vq = MultiScaleVQ(LETTERING, vocab_size=5, ranks=RANKS)
    tokens = torch.zeros(1, 15, dtype=torch.long)
    other = tokens.clone()
    other[0, 1 * 5 + 2] = 3
    change = (vq.embed(other, 2) - vq.embed(tokens, 2))[0]
    tile = (vq.codes[2][3] - vq.codes[2][0]) @ vq.patterns[2]
    torch.testing.assert_close(change[:, 16:32, 24:36], tile.view(3, 16, 12))
    change[:, 16:32, 24:36] = 0
    assert not change.any()


def test_codes_are_found_again() -> None:
    """Encoding a picture that is a sum of few, separated tiles finds those tiles; brute force over all codes agrees."""
    vq = MultiScaleVQ(Schedule(((1, 2), (2, 4)), (4, 4)), vocab_size=6, ranks=(32, 16))
    for codes, patterns in zip(vq.codes, vq.patterns, strict=True):
        torch.nn.init.orthogonal_(patterns)
        codes.data *= 1.0
    images = torch.rand(3, 3, 8, 16)
    left = images - vq.mean
    for t, tokens in enumerate(vq.encode(images)):
        tiles = vq.tiles_of(left, t)
        candidates = vq.codes[t] @ vq.patterns[t]
        torch.testing.assert_close(tokens, torch.cdist(tiles, candidates[None]).argmin(dim=-1))
        left = left - vq.embed(tokens, t)


def test_next_input_shows_the_latent_of_each_cell() -> None:
    """On the grid whose tiles are 8x4 the input is the latent itself; coarser grids see averages of it; at full strength."""
    vq = MultiScaleVQ(LETTERING, vocab_size=5, ranks=RANKS)
    plain, details = torch.randn(2, 2, 3, 48, 60)
    both, latent = torch.cat((plain, details), dim=1), plain + details
    cells = vq.next_input(both, 5)
    torch.testing.assert_close(cells[:, 15 + 5].view(2, 3, 8, 4), latent[:, :, 8:16, 20:24])
    whole = vq.next_input(both, 0).view(2, 3, 8, 4)
    torch.testing.assert_close(whole, latent.view(2, 3, 8, 6, 4, 15).mean(dim=(3, 5)))


def test_the_latent_update_ignores_autocast(tokenizer: MultiScaleVQ) -> None:
    tokens = tokenizer.encode(render_signs(SIGNS, 0)[1])
    plain = tokenizer.accumulate(tokenizer.begin(len(SIGNS)), tokens[0], 0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tokenizer.accumulate(tokenizer.begin(len(SIGNS)), tokens[0], 0)
        shown, restored = tokenizer.next_input(cast, 1), tokenizer.restore(cast)
    assert cast.dtype == shown.dtype == restored.dtype == torch.float32
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


def test_reconstructions_are_close_at_m_and_when_whole(tokenizer: MultiScaleVQ) -> None:
    """Each scale brings the latent nearer to what it codes: the plain picture up to m, then the whole one; painted at half."""
    plain, whole = render_signs(SIGNS * 16, 11)
    latent, errors = tokenizer.begin(len(whole)), []
    for t, tokens in enumerate(tokenizer.encode(whole, plain)):
        wanted = plain if t < CONTENT else whole
        latent = tokenizer.accumulate(latent, tokens, t)
        errors.append((latent[:, :3] + latent[:, 3:] - tokenizer.target(wanted)).pow(2).mean().sqrt().item())
        if t + 1 in (CONTENT, T):
            painted = plain if t < CONTENT else (plain + whole) / 2
            assert (tokenizer.decode_latent(latent) - painted).pow(2).mean().sqrt() < (0.1 if t < CONTENT else 0.06)
    assert errors[:CONTENT] == sorted(errors[:CONTENT], reverse=True)
    assert errors[CONTENT:] == sorted(errors[CONTENT:], reverse=True)


def test_details_are_painted_at_their_strength() -> None:
    """Without `refine`, strength 0 paints the plain picture, 1 the whole one, .5 their mean; no scale before m adds a detail."""
    plain, whole = render_signs(SIGNS, 2)
    painted = {}
    for strength in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        vq = MultiScaleVQ(LETTERING, vocab_size=8, ranks=RANKS, content=CONTENT, strength=strength)
        for parameter in vq.refine[-2].parameters():
            torch.nn.init.zeros_(parameter)
        latent, cut = vq.begin(len(SIGNS)), None
        for t, tokens in enumerate(vq.encode(whole, plain)):
            latent = vq.accumulate(latent, tokens, t)
            if t + 1 == CONTENT:
                cut = vq.restore(latent)
        painted[strength] = vq.restore(latent)
        wanted = {0.0: plain, 0.5: (plain + whole) / 2, 1.0: whole}[strength]
        torch.testing.assert_close(vq.paint(whole, plain), wanted)
    assert cut is not None
    torch.testing.assert_close(painted[0.0], cut, rtol=0, atol=0)
    torch.testing.assert_close(painted[0.5], (painted[0.0] + painted[1.0]) / 2)
    assert (painted[1.0] - cut).abs().max() > 0.1


def test_what_is_written_is_coded_from_the_plain_picture_alone(tokenizer: MultiScaleVQ) -> None:
    plain, whole = render_signs(SIGNS, 2)
    first, other = tokenizer.encode(whole, plain), tokenizer.encode(torch.rand_like(whole), plain)
    for t, (tokens, changed) in enumerate(zip(first, other, strict=True)):
        assert torch.equal(tokens, changed) == (t < CONTENT)
    for tokens, alone in zip(first[:CONTENT], tokenizer.encode(plain), strict=False):
        assert torch.equal(tokens, alone)


def test_details_can_be_drawn_among_the_nearest(tokenizer: MultiScaleVQ) -> None:
    """`near` changes no scale where it is 1; elsewhere it takes one of as many nearest tiles."""
    plain, whole = render_signs(SIGNS, 2)
    torch.manual_seed(0)
    nearest, drawn = tokenizer.encode(whole, plain), tokenizer.encode(whole, plain, (1,) * CONTENT + (8,) * (T - CONTENT))
    for t in range(CONTENT):
        assert torch.equal(nearest[t], drawn[t])
    latent = tokenizer.begin(len(whole))
    for t in range(CONTENT):
        latent = tokenizer.accumulate(latent, nearest[t], t)
    assert not latent[:, 3:].any()
    best = tokenizer.distances(tokenizer.target(whole) - latent[:, :3], CONTENT).topk(8, largest=False).indices
    assert (best == drawn[CONTENT][..., None]).any(dim=-1).all()
    assert 0.5 < (nearest[CONTENT] != drawn[CONTENT]).float().mean() < 1


def test_held_out_words_are_read_at_m_and_when_whole_and_not_before(tokenizer: MultiScaleVQ) -> None:
    """Reconstructions of signs with one test word, read by the embedded OCR engine on the word's line."""
    words = read_words(ASSETS / "test.jsonl")[:100]
    plain, whole = render_signs([Sign((word,)) for word in words], 5)
    latent, engine, read = tokenizer.begin(len(words)), RapidOCREngine(detect=False, max_line_width=96), {}
    for t, tokens in enumerate(tokenizer.encode(whole, plain)):
        latent = tokenizer.accumulate(latent, tokens, t)
        line = tokenizer.decode_latent(latent)[:, :, LINE_HEIGHT : 2 * LINE_HEIGHT]
        if t + 1 in (CONTENT - 2, CONTENT, T):
            found = engine.read(list((line * 255).byte().permute(0, 2, 3, 1).numpy()))
            right = [[w.text for w in seen] == [word] for seen, word in zip(found, words, strict=True)]
            read[t + 1] = sum(right) / len(words)
    assert read[CONTENT - 2] <= 0.03  # one code for each line, of 512: the nearest may happen to spell the word, as TONE
    assert read[CONTENT] >= 0.93
    assert read[T] >= 0.97


def test_decoding_is_differentiable(tokenizer: MultiScaleVQ) -> None:
    latent = torch.zeros(1, 6, 48, 60, requires_grad=True)
    image = tokenizer.decode_latent(latent)
    image.sum().backward()
    assert image.shape == (1, 3, 48, 60)
    assert latent.grad is not None
    assert latent.grad.abs().min() > 0


def test_fitting_lowers_the_error_scale_by_scale() -> None:
    vq = MultiScaleVQ(LETTERING, vocab_size=16, ranks=RANKS)
    plain, whole = render_signs(SIGNS * 20, 0)
    vq.content = CONTENT
    errors = fit_codes(vq, whole, plain, torch.Generator().manual_seed(0), samples=500, iterations=5)
    assert errors[:CONTENT] == sorted(errors[:CONTENT], reverse=True)
    assert errors[CONTENT:] == sorted(errors[CONTENT:], reverse=True)
    assert errors[0] < vq.target(plain).pow(2).mean()
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


def test_wrong_grids_ranks_and_strengths_are_refused() -> None:
    with pytest.raises(ValueError, match="every grid must divide the 48x60 picture"):
        MultiScaleVQ(Schedule(((1, 7), (12, 15)), (4, 4)), ranks=(8, 8))
    with pytest.raises(ValueError, match="one number for each of the 7 scales"):
        MultiScaleVQ(LETTERING, ranks=(8, 8))
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 1.5"):
        MultiScaleVQ(LETTERING, ranks=RANKS, strength=1.5)
