"""Rewards of the pixels alone. Costs a second."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.pixels import JpegSize, Sharpness
from varrl_lightning.types import Prompt


def noise(n: int, height: int = 24, width: int = 40) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def prompts(n: int) -> list[Prompt]:
    return [Prompt(str(i)) for i in range(n)]


@pytest.mark.parametrize("quality", [10, 95])
def test_the_size_is_that_of_the_file(quality: int) -> None:
    images = noise(3)
    images[1] = 0.5
    sizes = JpegSize(quality)(images, prompts(3))
    for image, size in zip(images, sizes, strict=True):
        file = io.BytesIO()
        pixels = np.round(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        assert float(size) == len(file.getvalue()) / 1024
    assert sizes[1] < sizes[0]
    torch.testing.assert_close(torch.cat([JpegSize(quality)(image[None], prompts(1)) for image in images]), sizes)


@pytest.mark.parametrize("quality", [0, 96])
def test_a_quality_out_of_range_is_refused(quality: int) -> None:
    with pytest.raises(ValueError, match=f"quality must be 1 to 95, as JPEG's, got {quality}"):
        JpegSize(quality)


def test_sharpness_against_numpy() -> None:
    images = noise(2)
    grey = np.tensordot(np.array([0.299, 0.587, 0.114]), images.double().numpy(), axes=(0, 1))
    inner = 4 * grey[:, 1:-1, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    np.testing.assert_allclose(Sharpness()(images, prompts(2)).numpy(), inner.var(axis=(1, 2)), rtol=1e-5)


def test_a_ramp_is_not_sharp_and_noise_has_twenty_times_its_variance() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 24, 40)
    assert float(Sharpness()(ramp, prompts(1))) == pytest.approx(0, abs=1e-10)
    grey = (noise(1, 300, 300)[:, :1] > 0.5).float().expand(-1, 3, -1, -1)
    assert float(Sharpness()(grey, prompts(1))) == pytest.approx(5, rel=0.03)


def test_sharpness_has_a_gradient_and_a_least_size() -> None:
    images = noise(2).requires_grad_()
    (gradient,) = torch.autograd.grad(Sharpness()(images, prompts(2))[0], images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()
    with pytest.raises(ValueError, match=r"at least 3 x 3 pixels, got \(2, 40\)"):
        Sharpness()(noise(1, 2), prompts(1))


def test_a_picture_that_is_not_finite_has_no_score() -> None:
    pictures = noise(2)
    pictures[1, 0, 0, 0] = torch.nan
    for reward in (JpegSize(), Sharpness()):
        assert reward(pictures, prompts(2)).isfinite().tolist() == [True, False]


def test_they_have_names() -> None:
    assert isinstance(build(REWARDS, "jpeg_size"), JpegSize)
    assert isinstance(build(REWARDS, "sharpness"), Sharpness)
