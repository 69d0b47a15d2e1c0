"""Similarity to a reference picture, on a tiny random DINOv2. Costs five seconds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model

from tests.rewards.photos import photos
from tests.rewards.tiny_models import DINO_SIDE as SIDE
from tests.rewards.tiny_models import write_dino
from varrl_lightning.rewards.clip import prepared_pixels
from varrl_lightning.rewards.dino_similarity import MEAN, STD, DinoSimilarity
from varrl_lightning.types import Prompt

SIZES = [(40, 40), (33, 51), (20, 17)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_dino(tmp_path_factory.mktemp("dino"))
    (path / "text.png").write_text("no picture")
    return path


def prompts(*references: str) -> list[Prompt]:
    return [Prompt(f"the mug {i}", extra={"reference": name} if name else {}) for i, name in enumerate(references)]


def reward(folder: Path, **options: object) -> DinoSimilarity:
    return DinoSimilarity(folder, folder=folder, side=SIDE, **options)  # type: ignore[arg-type]


def feature(folder: Path, image: Tensor) -> np.ndarray:
    """The class token of transformers' own model, by itself, of the pixels that the reward prepares."""
    model = Dinov2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(prepared_pixels(image[None], 32, SIDE, MEAN, STD))
    return out.last_hidden_state[0, 0].double().numpy()


def picture(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_cosine_of_class_tokens(folder: Path, size: tuple[int, int]) -> None:
    images, names = photos(3, *size), ("0.png", "2.png", "0.png")
    expected = []
    for image, name in zip(images, names, strict=True):
        a, b = feature(folder, image), feature(folder, picture(folder / name))
        expected.append(a @ b / math.sqrt((a @ a) * (b @ b)))
    found = reward(folder, images_at_once=2)(images, prompts(*names)).detach()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    single = torch.cat([reward(folder)(images[i : i + 1], prompts(names[i])).detach() for i in range(3)])
    torch.testing.assert_close(found, single, rtol=1e-5, atol=1e-5)


def test_the_pixels_are_pillows() -> None:
    """Shorter side to 32, centre of 28; a pixel in a hundred may be rounded to the next of 256."""
    (image,) = photos(1, 40, 50)
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    resized = np.asarray(Image.fromarray(array).resize((40, 32), Image.Resampling.BICUBIC), dtype=np.float64)
    expected = (resized[2:30, 6:34] / 255 - np.array(MEAN)) / np.array(STD)
    found = prepared_pixels(image[None], 32, 28, MEAN, STD)[0].permute(1, 2, 0).double().numpy()
    steps = np.abs(found - expected) * np.array(STD) * 255
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.01


def test_the_reference_itself_has_one_and_prompts_without_one_nothing(folder: Path) -> None:
    images = picture(folder / "1.png")[None].expand(2, -1, -1, -1)
    values = reward(folder)(images, prompts("1.png", ""))
    assert float(values[0]) == pytest.approx(1, abs=1e-5)
    assert values.isnan().tolist() == [False, True]
    assert [reward(folder).can_score(prompt) for prompt in prompts("1.png", "")] == [True, False]


def test_what_cannot_be_compared_is_said_before_training(folder: Path) -> None:
    made = reward(folder)
    made.check_prompts(prompts("0.png", ""))
    with pytest.raises(ValueError, match=r"no prompt has the column 'reference' .* own columns are: 'picture'\. Add it"):
        made.check_prompts([Prompt("a", extra={"picture": "0.png"})])
    with pytest.raises(ValueError, match=r"are no pictures: .*nowhere\.png \(.*No such file.*\); .*text\.png \(cannot identify"):
        made.check_prompts(prompts("nowhere.png", "0.png", "text.png"))


def test_references_are_read_as_they_are_seen(folder: Path) -> None:
    upright = Image.open(folder / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to be seen
    upright.rotate(90, expand=True).save(folder / "turned.png", exif=exif)
    clear = Image.new("RGBA", upright.size, (10, 20, 30, 0))
    clear.save(folder / "clear.png")
    Image.new("RGB", upright.size, "white").save(folder / "white.png")
    made = reward(folder)
    images = torch.stack([picture(folder / "0.png"), picture(folder / "white.png")])
    assert made(images, prompts("turned.png", "clear.png")).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_references_that_cannot_be_read_whole_are_named(folder: Path) -> None:
    Image.fromarray(np.full((20, 20), 60000, dtype=np.uint16)).save(folder / "deep.png")
    whole = folder / "whole.jpg"
    Image.open(folder / "0.png").save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    for name, why in (("deep.png", "it has I;16 pixels; save it with 8 bits"), ("cut.jpg", "truncated")):
        with pytest.raises(ValueError, match=f"are no pictures: .*{name}.*{why}"):
            reward(folder).check_prompts(prompts(name))


def test_wrong_arguments_and_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="side must be a multiple of the model's patches of 14 pixels, got 30"):
        DinoSimilarity(folder, side=30)
    with pytest.raises(ValueError, match=r"holds no Dinov2Model that transformers can read .* config\.json and the weights"):
        DinoSimilarity(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        DinoSimilarity(tmp_path / "nowhere")
