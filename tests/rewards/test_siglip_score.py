"""SigLIPScore against transformers' own SiglipModel and image processor, on tiny random weights. Costs six seconds.

Transformers is where SigLIP's weights are published for torch, so its forward pass of one pair is the reference, and Pillow's
resampling; texts are compared with ids written out by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Siglip2Config, Siglip2Model, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.rewards.photos import photos
from tests.rewards.tiny_models import LETTERS, write_plain_clip, write_siglip
from tests.rewards.tiny_models import SIGLIP_END as END
from tests.rewards.tiny_models import SIGLIP_LENGTH as LENGTH
from tests.rewards.tiny_models import SIGLIP_SIDE as SIDE
from varrl_lightning.rewards.clip import normalised, resized
from varrl_lightning.rewards.siglip_score import SigLIPScore
from varrl_lightning.types import Prompt

HALF = [0.5, 0.5, 0.5]
SIZES = [(16, 16), (40, 40), (20, 51), (51, 20), (7, 9)]
PROMPTS = [Prompt("a cat"), Prompt("the cat, a Cup!"), Prompt("cat cat")]
A, CAT, THE = 4, 30, 31


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="module")
def reward(folder: Path) -> SigLIPScore:
    return SigLIPScore(folder)


def whole_model(folder: Path, image: Tensor, ids: list[int]) -> float:
    """The logit of transformers' own model for one pair, of the pixels that the reward prepares."""
    model = SiglipModel.from_pretrained(folder).eval()
    pixels = normalised(resized(image[None], (SIDE, SIDE)), HALF, HALF)
    with torch.no_grad():
        filled = torch.tensor([ids + [END] * (LENGTH - len(ids))])
        return float(model(input_ids=filled, pixel_values=pixels).logits_per_image)


IDS = [
    [2, A, CAT, END],  # "▁", "a", "▁cat"
    [THE, CAT, 2, A, 2, *(4 + LETTERS.index(x) for x in "cup"), END],
    [CAT, CAT, END],
]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_probability_of_the_whole_model(folder: Path, reward: SigLIPScore, size: tuple[int, int]) -> None:
    images = photos(3, *size)
    scores = reward(images, PROMPTS)
    logits = torch.tensor([whole_model(folder, image, ids) for image, ids in zip(images, IDS, strict=True)])
    torch.testing.assert_close(scores.components["logit"], logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.values, 1 / (1 + torch.exp(-logits)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.components["logit"], 8 * scores.components["cosine"] - 3, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(SigLIPScore(folder, value="logit")(images, PROMPTS).values, scores.components["logit"])


@pytest.mark.parametrize(("number", "mode"), [(3, "bicubic"), (2, "bilinear")])
@pytest.mark.parametrize("size", SIZES)
def test_the_pixels_are_the_image_processors(tmp_path: Path, number: int, mode: str, size: tuple[int, int]) -> None:
    """A square whatever the shape; Pillow rounds some values (of tall pictures in another order) to the next of 256."""
    (image,) = photos(1, *size)
    array = (image.permute(1, 2, 0) * 255).round().byte().numpy()
    processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=number)
    expected = processor(array, return_tensors="pt", input_data_format="channels_last").pixel_values
    found = normalised(resized(image[None], (SIDE, SIDE), mode), HALF, HALF)
    steps = (found - expected).abs() * 0.5 * 255
    assert steps.max() < 1.01
    assert (steps > 0.5).float().mean() <= (0.3 if size[0] > size[1] else 0.07)


def test_the_folder_says_how_images_are_prepared(tmp_path: Path) -> None:
    said = write_siglip(tmp_path, resample=2, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    images = photos(1, 30, 40)
    found = SigLIPScore(said).image_features(images)
    pixels = normalised(resized(images, (SIDE, SIDE), "bilinear"), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    features = SiglipModel.from_pretrained(said).eval().get_image_features(pixels).pooler_output.detach()
    torch.testing.assert_close(found, features / features.norm(dim=-1, keepdim=True), rtol=1e-5, atol=1e-5)
    (said / "preprocessor_config.json").write_text('{"resample": 0}')
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: resample must be 2 \(bilinear\) or 3 \(bicubic\), got 0"):
        SigLIPScore(said)


def test_siglip_2_keeps_punctuation(tmp_path: Path) -> None:
    second = SigLIPScore(write_siglip(tmp_path, "GemmaTokenizer"))
    (image,) = photos(1, 16, 16)
    ids = [THE, CAT, 3, 2, A, 2, *(4 + LETTERS.index(x) for x in "cup"), 0, END]
    logit = second(image[None], PROMPTS[1:2]).components["logit"]
    torch.testing.assert_close(logit, torch.tensor([whole_model(tmp_path, image, ids)]), rtol=1e-5, atol=1e-5)


def test_the_differentiable_score_is_the_logit(reward: SigLIPScore) -> None:
    images = photos(2, 30, 20)
    torch.testing.assert_close(reward.differentiable(images, PROMPTS[:2]), reward(images, PROMPTS[:2]).components["logit"])


def test_prompts_that_are_cut_are_said_as_they_are_read(reward: SigLIPScore) -> None:
    fits = Prompt("cat " * (LENGTH - 1) + "!" * 20)
    reward.check_prompts([*PROMPTS, fits])
    long = Prompt("cat " * (LENGTH - 2) + '"Zoo" "cat"', id="long", words=("Zoo",))
    with pytest.warns(UserWarning, match=r"SigLIPScore \(12 tokens\) cuts off 1 of 2 texts, .*'long' loses 'zoo'"):
        reward.check_prompts([long, fits])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"value": "odds"}, ValueError, "value must be probability or logit, got 'odds'"),
        ({"path": "./nowhere"}, FileNotFoundError, r"no such file or folder: \./nowhere"),
        ({"path": "empty"}, ValueError, "empty holds no SiglipModel that transformers can read"),
        ({"path": "config.json"}, FileNotFoundError, r"no such file or folder: config\.json"),
        ({"path": "clip"}, ValueError, "clip holds no SiglipModel that transformers can read"),
        ({"path": "flexible"}, ValueError, "flexible holds no SiglipModel that transformers can read"),
        ({"path": "cut"}, ValueError, r"cut is no complete SiglipModel: it has no text_model\.head\.bias"),
    ],
)
def test_wrong_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(folder)
    name = arguments.get("path")
    if name == "empty":
        (folder / name).mkdir()
    elif name == "clip":
        write_plain_clip(folder / name)
    elif name == "flexible":
        write_siglip(folder / name)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        Siglip2Model(Siglip2Config(text_config=sizes | {"vocab_size": 33}, vision_config=sizes)).save_pretrained(folder / name)
    elif name == "cut":
        model = SiglipModel.from_pretrained(write_siglip(folder / name))
        state = {key: x for key, x in model.state_dict().items() if key != "text_model.head.bias"}
        model.save_pretrained(folder / name, state_dict=state)
    with pytest.raises(error, match=message):
        SigLIPScore(**({"path": folder} | arguments))


def test_without_a_connection_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`hf download google/siglip-so400m-patch14-384 --local-dir FOLDER`"):
        SigLIPScore()
