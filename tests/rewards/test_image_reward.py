"""ImageReward against what its authors' code computed on tiny random weights of the published layout. Costs five seconds.

`tests/parity/make_image_reward.py` ran that code, and says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rules import TRANSFORMER, weights
from torch import Tensor

from tests.rewards.tiny_models import write_bert, write_image_reward, write_plain_clip
from varrl_lightning.rewards.clip import MEAN, STD, clip_pixels
from varrl_lightning.rewards.image_reward import ImageReward
from varrl_lightning.types import Prompt

DATA: dict[str, Any] = torch.load(Path(__file__).parents[1] / "parity" / "data" / "image_reward.pt")
IMAGES: list[Tensor] = [image[None] / 255 for image in DATA["images"]]
PROMPTS = [Prompt(text) for text in DATA["prompts"]]
SIDE = 32
TALL = 3
"""Number of the picture that Pillow 13 resamples along columns first."""
QUERY = "blip.text_encoder.encoder.layer.1.crossattention.self.query.bias"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_reward(tmp_path_factory.mktemp("imagereward"))


def make(folder: Path, file: str = "ImageReward.pt", **options: Any) -> ImageReward:
    return ImageReward(folder / file, **({"tokenizer": folder / "tokenizer"} | options))


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return make(folder)


def changed(tmp_path: Path, remove: str = "", **added: Tensor) -> Path:
    state = {name: x for name, x in weights(DATA["layout"], TRANSFORMER).items() if name != remove}
    torch.save(state | added, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_the_tokens_are_those_of_the_authors(reward: ImageReward) -> None:
    texts = [prompt.text for prompt in PROMPTS]
    assert reward.tokenizer(texts, padding="max_length", truncation=True, max_length=35).input_ids == DATA["ids"]
    assert DATA["ids"][1].count(15) == 1  # [ENC], after the vocabulary and [DEC]
    assert len(DATA["vocabulary"]) == 14


@pytest.mark.parametrize("row", range(len(IMAGES)))
def test_the_pixels_are_pillows(row: int) -> None:
    """Square, of the model's size, wide, tall and small; Pillow's fixed point rounds some values to the next of 256."""
    steps = (clip_pixels(IMAGES[row], SIDE)[0] - DATA["pixels"][row]).abs() * 255 * torch.tensor(STD)[:, None, None]
    assert steps.max() < (2.01 if row == TALL else 1.01)
    assert (steps > 0.5).float().mean() <= (0.3 if row == TALL else 0.02)


@pytest.mark.parametrize("row", range(len(IMAGES)))
def test_the_score_is_the_authors(reward: ImageReward, row: int) -> None:
    """Of the pixels that they prepared to 1e-5; of the picture as nearly as single steps of 256 allow."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    prepared = (DATA["pixels"][row] * std + mean)[None]
    assert prepared.shape[-2:] == (SIDE, SIDE)  # so that nothing is resampled
    torch.testing.assert_close(reward(prepared.expand(3, -1, -1, -1), PROMPTS), DATA["scores"][row], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reward(IMAGES[row].expand(3, -1, -1, -1), PROMPTS), DATA["scores"][row], rtol=0, atol=0.02)


def test_prompts_that_are_cut_are_said(reward: ImageReward) -> None:
    reward.check_prompts(PROMPTS[:2])
    with pytest.warns(UserWarning, match=r"ImageReward \(35 tokens\) cuts off 1 of 3 texts"):
        reward.check_prompts(PROMPTS)


def test_what_plays_no_part_may_be_missing(tmp_path: Path, folder: Path, reward: ImageReward) -> None:
    file = changed(tmp_path, "blip.text_encoder.embeddings.position_ids")
    found = ImageReward(file, tokenizer=folder / "tokenizer")(IMAGES[0], PROMPTS[:1])
    torch.testing.assert_close(found, reward(IMAGES[0], PROMPTS[:1]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("remove", "added", "said"),
    [
        (QUERY, {}, f"missing {QUERY}. Give the file"),
        ("mlp.layers.7.bias", {}, r"missing mlp\.layers\.7\.bias\. "),
        ("", {"blip.itm_head.weight": torch.zeros(2)}, r"unexpected blip\.itm_head\.weight\. "),
        ("", {"blip.visual_encoder.blocks.3.norm1.bias": torch.zeros(192)}, r"unexpected blip\.visual_encoder\.blocks\.3\.norm1"),
        ("", {"blip.visual_encoder.norm.bias": torch.zeros(7)}, r"misshaped post_layernorm\.bias: \[7\] in the file, \[192\] in"),
        ("", {"blip.visual_encoder.pos_embed": torch.zeros(1, 4, 192)}, "has 4 positions of images; expected a square and one"),
        ("", {"mlp.layers.0.weight": torch.zeros(1024, 99)}, r"does not lead from 128 .* mlp\.layers\.0\.weight \[1024, 99\]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, remove: str, added: dict[str, Tensor], said: str
) -> None:
    file = changed(tmp_path, remove, **added)
    with pytest.raises(ValueError, match=rf"(?s)changed\.pt.*{said}"):
        ImageReward(file, tokenizer=folder / "tokenizer")


def test_another_head_or_model_is_no_such_file(folder: Path, tmp_path: Path) -> None:
    write_plain_clip(tmp_path / "clip")
    with pytest.raises(ValueError, match=r"is no file of ImageReward: missing .*; unexpected .*and \d+ more\. Give the file"):
        ImageReward(tmp_path / "clip" / "model.safetensors", tokenizer=folder / "tokenizer")
    with pytest.raises(ValueError, match=r"clip does not begin with \[PAD\], as BERT's does: give that of uncased BERT"):
        make(folder, tokenizer=tmp_path / "clip")
    other = write_bert(tmp_path / "other", [*DATA["vocabulary"], "more"])
    with pytest.raises(ValueError, match=r"other has 17 tokens with BLIP's own two, and .*ImageReward\.pt has embeddings of 16"):
        make(folder, tokenizer=other)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"tokenizer": "./nowhere"}, FileNotFoundError, r"no such file or folder: \./nowhere"),
        ({"file": "nowhere.pt"}, FileNotFoundError, r"no such file or folder: .*nowhere\.pt"),
        ({"file": "empty"}, FileNotFoundError, r"empty has no weights file"),
        ({"tokenizer": "empty"}, ValueError, r"empty holds no tokenizer that transformers can read"),
    ],
)
def test_wrong_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message):
        make(folder, **arguments)


def test_without_a_connection_it_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`hf download google-bert/bert-base-uncased --local-dir FOLDER`"):
        ImageReward()
    with pytest.raises(FileNotFoundError, match=r"`hf download THUDM/ImageReward ImageReward\.pt --local-dir FOLDER`"):
        ImageReward(tokenizer=folder / "tokenizer")
