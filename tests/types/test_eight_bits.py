"""Pictures of 8 bits and their files; milliseconds."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from varrl_lightning.types.eight_bits import eight_bit_pixels, image_file


def test_pixels_are_the_nearest_levels_with_colours_last() -> None:
    images = torch.tensor([0.0, 0.5, 1.0, 1.7, -0.2, float("nan"), float("inf"), 0.49 / 255, 0.51 / 255]).view(1, 1, 1, 9)
    images = images.expand(2, 3, 4, 9).clone()
    images[1, 2] = 0.0
    pixels = eight_bit_pixels(images)
    assert pixels.shape == (2, 4, 9, 3)
    assert pixels.dtype == np.uint8
    assert pixels[0, 3, :, 0].tolist() == [0, 128, 255, 255, 0, 0, 255, 0, 1]
    assert not pixels[1, :, :, 2].any()
    assert np.array_equal(eight_bit_pixels(images[0]), pixels[0])


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_files_are_read_again(kind: str) -> None:
    picture = np.linspace(0, 255, 16 * 24 * 3).astype(np.uint8).reshape(16, 24, 3)
    with Image.open(io.BytesIO(image_file(picture, kind))) as file:  # type: ignore[arg-type]
        assert file.format == kind.upper()
        difference = np.abs(np.asarray(file).astype(int) - picture)
    assert difference.max() <= (0 if kind == "png" else 12)
    assert len(image_file(picture, "jpeg", quality=20)) < len(image_file(picture, "jpeg"))
