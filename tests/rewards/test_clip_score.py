"""CLIPScore against Pillow's resampling, numpy's cosine and transformers' own forward pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from tests.rewards.photos import photos, pillow_pixels
from tests.rewards.tiny_models import write_plain_clip
from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.clip import STD, clip_pixels
from varrl_lightning.rewards.clip_score import CLIPScore
from varrl_lightning.types import Prompt

PROMPTS = [Prompt("a cat"), Prompt("the word 'TEA' on a cup"), Prompt("a cat", id="again"), Prompt("cat " * 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def reward(folder: Path) -> CLIPScore:
    return CLIPScore(folder)


def score_by_hand(
    folder: Path, images: torch.Tensor, texts: list[str], prefix: str = "A photo depicts "
) -> tuple[np.ndarray, np.ndarray]:
    """One image and one text at a time through transformers' whole model."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    found, cosines = [], []
    for image, text in zip(images, texts, strict=True):
        tokens = tokenizer([prefix + text], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            out = model(**tokens, pixel_values=pillow_pixels(image, 8)[None])
        a, b = out.image_embeds[0].double().numpy(), out.text_embeds[0].double().numpy()
        cosines.append(float(a @ b / math.sqrt((a @ a) * (b @ b))))
        found.append(2.5 * max(cosines[-1], 0.0))
    return np.array(found), np.array(cosines)


@pytest.mark.parametrize(
    ("size", "share"),
    # Pillow 13 takes the columns of tall images first, as it did not before: one 8-bit step, here and there.
    [((8, 8), 0.0), ((64, 64), 0.01), ((40, 100), 0.01), ((6, 9), 0.01), ((100, 37), 0.25)],
)
def test_pixels_are_pillows(size: tuple[int, int], share: float) -> None:
    images = photos(6, *size)
    expected = torch.stack([pillow_pixels(image, 8) for image in images])
    steps = (clip_pixels(images, 8) - expected).abs() * 255 * torch.tensor(STD)[:, None, None]
    # Pillow's weights are fixed-point numbers: now and then a value rounds the other way.
    assert steps.max() < 1.01
    assert (steps > 0.5).float().mean() <= share


@pytest.mark.parametrize("size", [(32, 32), (40, 100)])
def test_against_transformers_forward_pass(folder: Path, size: tuple[int, int]) -> None:
    reward = CLIPScore(folder, images_at_once=3)
    images = photos(4, *size)
    scores = reward(images, PROMPTS)
    expected, cosines = score_by_hand(folder, images, [p.text for p in PROMPTS])
    assert cosines.min() < 0 < 0.3 < cosines.max()  # both sides of the clamp
    np.testing.assert_allclose(scores.values.numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(scores.components["cosine"].numpy(), cosines, atol=1e-3)
    assert (scores.values.numpy()[cosines < 0] == 0).all()


def test_prefix_and_scale(folder: Path) -> None:
    images = photos(1, 16, 16)
    plain, other = CLIPScore(folder, prefix=""), CLIPScore(folder, prefix="A cat of ", scale=1.0)
    cosine = other.cosine(images, ["tea"])
    torch.testing.assert_close(cosine, plain.cosine(images, ["A cat of tea"]))
    assert not torch.allclose(cosine, plain.cosine(images, ["tea"]))
    torch.testing.assert_close(other(images, [Prompt("tea")]).values, cosine.clamp(min=0))


def test_the_differentiable_score_is_the_same_and_has_the_right_gradient(reward: CLIPScore) -> None:
    images = photos(2, 8, 8).requires_grad_()
    prompts = [Prompt("a cat"), Prompt("tea")]
    score = reward.differentiable(images, prompts)
    torch.testing.assert_close(score.detach().clamp(min=0), reward(images, prompts).values)
    torch.testing.assert_close(score, 2.5 * reward.cosine(images, ["a cat", "tea"]))
    cosine = reward.cosine(images, ["a cat", "tea"])
    (gradient,) = torch.autograd.grad(cosine.sum(), images)
    assert gradient.abs().sum() > 0
    step = 8 / 255  # whole 8-bit steps along the gradient's sign: rounding leaves them alone
    with torch.no_grad():
        base = (images * 255).round() / 255
        there = base + step * gradient.sign()
        inside = (there >= 0) & (there <= 1)
        there = torch.where(inside, there, base)
        change = reward.cosine(there, ["a cat", "tea"]).sum() - reward.cosine(base, ["a cat", "tea"]).sum()
    predicted = (gradient.abs() * inside).sum() * step
    assert float(change) == pytest.approx(float(predicted), rel=0.35)


def test_an_image_that_is_not_finite_has_no_score(reward: CLIPScore) -> None:
    images = photos(3, 16, 16)
    images[1, 0, 0, 0] = torch.nan
    with pytest.warns(UserWarning, match="gave no score to some images"):
        scores = score_images(reward, images, PROMPTS[:3], "clip_score")
    assert scores.usable.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "scale must be > 0 and finite, got 0.0"),
        ({"scale": math.inf}, "scale must be > 0 and finite, got inf"),
    ],
)
def test_wrong_arguments(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPScore(folder, **arguments)


def test_one_text_per_image(reward: CLIPScore) -> None:
    with pytest.raises(ValueError, match="got 2 images and 1 texts; expected one text per image"):
        reward.cosine(photos(2, 8, 8), ["a"])


def test_no_such_folder() -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: ./nowhere"):
        CLIPScore("./nowhere")


def test_without_a_connection_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"hf download openai/clip-vit-large-patch14 --local-dir FOLDER"):
        CLIPScore()


def test_a_folder_with_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no CLIPModel that transformers can read"):
        CLIPScore(tmp_path)
