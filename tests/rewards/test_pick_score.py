"""PickScore and the aesthetic predictors, on tiny random weights in the published layouts. Costs six seconds."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from text_encoders.tiny_encoders import write_clip
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from tests.rewards.photos import photos
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.aesthetic import Aesthetic
from varrl_lightning.rewards.clip import clip_pixels
from varrl_lightning.rewards.pick_score import PickScore
from varrl_lightning.types import Prompt

PROMPTS = [Prompt("a cat"), Prompt("the word 'TEA' on a cup"), Prompt("a cat", id="again")]
SIZES = [(24, 24), (13, 31), (7, 5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"), width=16, seed=10, pad="<|endoftext|>", merged=True)


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


def test_pick_score_of_a_batch_is_that_of_single_images(folder: Path) -> None:
    images = photos(3, 24, 24)
    reward = PickScore(folder, images_at_once=2)
    single = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]).values for i in range(3)])
    torch.testing.assert_close(reward(images, PROMPTS).values, single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pickscore", "aesthetic"])
def test_each_has_a_gradient_to_its_own_image(folder: Path, tmp_path: Path, kind: str) -> None:
    reward = PickScore(folder) if kind == "pickscore" else Aesthetic(head(tmp_path, 8), path=folder)
    images = photos(2, 12, 12).requires_grad_()
    values = (getattr(reward, "differentiable", None) or reward)(images, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(values[0], images)
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()


# --- the aesthetic predictors --------------------------------------------------------------------------------------------------


class ImprovedPredictor(nn.Module):
    """The layers of the improved predictor as its source has them: linear, with dropout between, numbered in one sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (width, 32, 16, 8, 4, 1)
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        dropped = [x for layer in linear[:3] for x in (layer, nn.Dropout(0.2))]
        self.layers = nn.Sequential(*dropped, *linear[3:])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def head(tmp_path: Path, width: int, linear: bool = False) -> Path:
    torch.manual_seed(3)
    module = nn.Linear(width, 1) if linear else ImprovedPredictor(width)
    torch.save(module.state_dict(), tmp_path / "head.pth")
    return tmp_path / "head.pth"


@pytest.mark.parametrize("linear", [True, False], ids=["linear", "improved"])
@pytest.mark.parametrize("size", SIZES)
def test_the_rating_is_the_heads_of_features_of_unit_length(
    folder: Path, tmp_path: Path, linear: bool, size: tuple[int, int]
) -> None:
    images, path = photos(3, *size), head(tmp_path, 8, linear)
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
        Aesthetic(head(tmp_path, 12), path=folder)


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


def test_they_have_names(folder: Path, tmp_path: Path) -> None:
    assert isinstance(build(REWARDS, {"class_path": "pickscore", "init_args": {"path": str(folder)}}), PickScore)
    arguments = {"head": str(head(tmp_path, 8)), "path": str(folder)}
    assert isinstance(build(REWARDS, {"class_path": "aesthetic", "init_args": arguments}), Aesthetic)
