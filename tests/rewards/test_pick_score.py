"""PickScore and the aesthetic predictors, on tiny random weights in the published layouts. Costs six seconds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from tests.rewards.photos import photos
from tests.rewards.tiny_models import ImprovedPredictor, write_head, write_plain_clip
from varrl_lightning.rewards.aesthetic import Aesthetic
from varrl_lightning.rewards.clip import clip_pixels
from varrl_lightning.rewards.pick_score import PickScore
from varrl_lightning.types import Prompt

PROMPTS = [Prompt("a cat"), Prompt("the word 'TEA' on a cup"), Prompt("a cat", id="again")]
SIZES = [(24, 24), (13, 31), (7, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_clip(tmp_path_factory.mktemp("clip"))


def whole_model(folder: Path, image: Tensor, text: str) -> tuple[float, np.ndarray]:
    """The logit of transformers' own CLIPModel, and the image's features, one image at a time.

    Of the pixels that `clip_pixels` makes: test_clip_score compares these with Pillow's, which may be rounded to the next of 256.
    """
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer([text], truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        out = model(**tokens, pixel_values=clip_pixels(image[None], 8))
    return float(out.logits_per_image), out.image_embeds[0].double().numpy()


# --- PickScore -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_pick_score_is_the_logit_of_the_whole_model(folder: Path, size: tuple[int, int]) -> None:
    images = photos(3, *size)
    scores = PickScore(folder)(images, PROMPTS)
    expected = [whole_model(folder, image, prompt.text)[0] for image, prompt in zip(images, PROMPTS, strict=True)]
    scale = math.exp(float(CLIPModel.from_pretrained(folder).logit_scale.detach()))
    np.testing.assert_allclose(scores.values.numpy(), expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(scores.values, scale * scores.components["cosine"])


# --- the aesthetic predictors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "improved"])
@pytest.mark.parametrize("size", SIZES)
def test_the_rating_is_the_heads_of_features_of_unit_length(
    folder: Path, tmp_path: Path, linear: bool, size: tuple[int, int]
) -> None:
    images, path = photos(3, *size), write_head(tmp_path, 8, linear)
    torch.manual_seed(3)
    predictor = (nn.Linear(8, 1) if linear else ImprovedPredictor(8)).eval().double()
    features = np.stack([whole_model(folder, image, "x")[1] for image in images])
    unit = torch.tensor(features / np.linalg.norm(features, axis=1, keepdims=True))
    reward = Aesthetic(path, path=folder, images_at_once=2)
    found = reward(images, PROMPTS).detach()
    np.testing.assert_allclose(found.numpy(), predictor(unit)[:, 0].detach().numpy(), rtol=1e-5, atol=1e-5)
    single = torch.cat([reward(images[i : i + 1], PROMPTS[:1]).detach() for i in range(3)])
    torch.testing.assert_close(found, single, rtol=1e-5, atol=1e-5)


def test_a_head_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"takes 12 features, and the CLIP model .* gives 8: give the model"):
        Aesthetic(write_head(tmp_path, 12), path=folder)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"layers.0.weight": (1, 8)}, r"missing layers\.0\.bias, .*Expected weight and bias, or those of layers 0, 2, 4, 6, 7"),
        ({"weight": (1, 8), "bias": (1,), "scale": (1,)}, "unexpected scale"),
        ({"weight": (2, 8), "bias": (2,)}, r"do not follow each other to one number: weight \(2, 8\), bias \(2,\)"),
    ],
)
def test_a_file_that_is_no_head_is_refused(folder: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], said: str) -> None:
    torch.save({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=f"is no aesthetic predictor.*{said}"):
        Aesthetic(tmp_path / "head.pth", path=folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        Aesthetic(tmp_path / "nowhere.pth", path=folder)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        PickScore(tmp_path / "nowhere")
