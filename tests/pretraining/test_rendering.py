"""Pictures of signs: letters in their cells, colours as named, ink that takes the same from every channel."""

import colorsys
import random

import numpy as np
import pytest
import torch

from varrl_lightning.policies.lettering_sign import COLOURS, FIRST_COLUMN, HEIGHT, LINES_OF, MATERIALS, WIDTH, Sign
from varrl_lightning.pretraining.rendering import LETTER_PITCH, LINE_HEIGHT, render_sign, render_signs

SIGNS = [
    Sign(("FOX",)),
    Sign(("OPEN", "LATE"), "red", "wooden"),
    Sign(("QUIZ", "WAGON", "MILD"), None, "brick"),
    Sign(("KAYAK",), "blue"),
]


def test_shapes_and_ranges() -> None:
    for pictures in render_signs(SIGNS, 0):
        assert pictures.shape == (4, 3, HEIGHT, WIDTH) == (4, 3, 48, 60)
        assert pictures.dtype == torch.float32
        assert 0 <= pictures.min() < 0.45
        assert 0.8 < pictures.max() <= 1


def test_pictures_are_seeded() -> None:
    for first, same, other in zip(render_signs(SIGNS, 3), render_signs(SIGNS, 3), render_signs(SIGNS, 4), strict=True):
        assert torch.equal(first, same)
        assert (first - other).abs().max() > 0.1


@pytest.mark.parametrize("sign", SIGNS, ids=lambda sign: "-".join(sign.words))
def test_each_letter_stays_in_its_cell(sign: Sign) -> None:
    """Ink on the plain picture lies in the cells of the letters, and every one of these has some."""
    for seed in range(20):
        plain, _ = render_sign(sign, random.Random(seed))
        ink = plain.max(axis=(0, 1)) - plain  # the ground is one colour, the brightest
        cells = ink.max(axis=2).reshape(HEIGHT // LINE_HEIGHT, LINE_HEIGHT, WIDTH // LETTER_PITCH, LETTER_PITCH).max(axis=(1, 3))
        written = np.zeros_like(cells, dtype=bool)
        for word, line in zip(sign.words, LINES_OF[len(sign.words)], strict=True):
            written[line, FIRST_COLUMN[len(word)] : FIRST_COLUMN[len(word)] + len(word)] = True
        assert (cells[written] > 0.4).all()
        assert (cells[~written] < 1e-6).all()


def test_ink_lowers_all_channels_alike() -> None:
    """Where nothing is clamped; ink is at most 60% of white, so that no colour loses its letters."""
    plain, _ = render_sign(Sign(("HELLO",), "yellow"), random.Random(1))
    taken = plain.max(axis=(0, 1)) - plain
    inside = plain.min(axis=2) > 0
    np.testing.assert_allclose(taken[inside], taken[inside][:, :1].repeat(3, axis=1), atol=1e-6)
    assert 0.5 <= taken.max() <= 0.6


@pytest.mark.parametrize("colour", [name for name in COLOURS if name != "white"])
def test_the_hue_drawn_is_the_one_that_is_named(colour: str) -> None:
    """The ground of both pictures; .02 is what the renderer varies a hue by, .01 what the grain adds to the whole one's mean."""
    for seed in range(6):
        for picture, bound in zip(render_sign(Sign(("FOX",), colour), random.Random(seed)), (0.021, 0.03), strict=True):
            hue, saturation, _ = colorsys.rgb_to_hsv(*picture[32:].mean(axis=(0, 1)))  # the line under the word
            assert abs((hue - COLOURS[colour][0] + 0.5) % 1 - 0.5) < bound
            assert saturation > 0.15


def test_white_is_hardly_a_colour() -> None:
    plain, _ = render_sign(Sign(("FOX",), "white"), random.Random(0))
    assert colorsys.rgb_to_hsv(*plain[40, 30])[1] < 0.05


@pytest.mark.parametrize("material", MATERIALS)
def test_material_is_on_the_whole_picture_only(material: str) -> None:
    plain, whole = render_sign(Sign(("FOX",), "blue", material), random.Random(0))
    assert np.ptp(plain[32:].reshape(-1, 3), axis=0).max() == 0
    assert whole[32:].reshape(-1, 3).std(axis=0).max() > 0.01


def test_what_is_not_said_varies() -> None:
    """A sign whose colour is open is drawn in several hues; one that is named is not."""

    def hues(colour: str | None) -> set[int]:
        plain, _ = render_signs([Sign(("FOX",), colour)] * 24, 0)
        return {round(6 * colorsys.rgb_to_hsv(*picture[:, 40, 30].tolist())[0]) for picture in plain}

    assert len(hues(None)) >= 4
    assert len(hues("green")) == 1
