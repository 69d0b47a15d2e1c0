"""HPSv2 against what its authors' code computed on tiny random weights of the published layout. Costs five seconds.

`tests/parity/make_hpsv2.py` ran that code, and says how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rules import TRANSFORMER, weights
from torch import Tensor

from tests.rewards.tiny_models import write_hpsv2
from varrl_lightning.rewards.clip import MEAN, STD, normalised
from varrl_lightning.rewards.hpsv2 import HPSv2, padded, plain
from varrl_lightning.types import Prompt

DATA: dict[str, Any] = torch.load(Path(__file__).parents[1] / "parity" / "data" / "hpsv2.pt")
IMAGES: list[Tensor] = [image[None] / 255 for image in DATA["images"]]
PROMPTS = [Prompt(text) for text in DATA["prompts"]]
LAYER = "transformer.resblocks.1.mlp.c_fc.bias"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hpsv2(tmp_path_factory.mktemp("hps"))


def make(folder: Path, file: str = "hps.pt", **options: Any) -> HPSv2:
    return HPSv2(folder / file, **({"tokenizer": folder / "tokenizer"} | options))


@pytest.fixture(scope="module")
def reward(folder: Path) -> HPSv2:
    return make(folder)


def changed(folder: Path, tmp_path: Path, remove: str = "", **added: Tensor) -> Path:
    state = {name: x for name, x in weights(DATA["layout"], TRANSFORMER).items() if name != remove}
    torch.save({"state_dict": state | added}, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_the_tokens_are_those_that_the_authors_code_was_given(reward: HPSv2) -> None:
    found = reward.tokenizer([prompt.text for prompt in PROMPTS], truncation=True, max_length=reward.length).input_ids
    assert [list(ids) for ids in found] == DATA["ids"]
    assert reward.length == len(DATA["ids"][2]) == 77


@pytest.mark.parametrize("row", range(len(IMAGES)))
def test_the_pixels_are_the_authors(row: int) -> None:
    """Square, of the model's size, wide, tall and small; fractions of what the model is normalised with."""
    found = normalised(padded(IMAGES[row], 28), MEAN, STD)[0]
    torch.testing.assert_close(found, DATA["pixels"][row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("row", range(len(IMAGES)))
def test_the_score_is_the_authors(reward: HPSv2, row: int) -> None:
    found = reward(IMAGES[row].expand(3, -1, -1, -1), PROMPTS)
    torch.testing.assert_close(found, DATA["scores"][row], rtol=0, atol=1e-5)


def test_quotation_marks_and_entities_are_read_as_plain_ones(reward: HPSv2) -> None:
    assert plain("a sign “OPEN”, ‘it’s’ tea &amp;amp; cake") == "a sign \"OPEN\", 'it's' tea & cake"
    curly = reward(IMAGES[0], [Prompt("the word ‘TEA’ on a cup")])
    torch.testing.assert_close(curly, DATA["scores"][0, 1:2], rtol=0, atol=1e-5)


def test_the_heads_count(folder: Path, reward: HPSv2) -> None:
    """Their number is in no tensor; 80 and 64 channels a head are right for the published model, and for these."""
    given = make(folder, vision_heads=2, text_heads=2)(IMAGES[0], PROMPTS[:1])
    torch.testing.assert_close(given, reward(IMAGES[0], PROMPTS[:1]), rtol=0, atol=0)
    for heads in ({"vision_heads": 4}, {"text_heads": 4}):
        assert abs(float(make(folder, **heads)(IMAGES[0], PROMPTS[:1]) - given)) > 1e-4


def test_prompts_that_are_cut_are_said(reward: HPSv2) -> None:
    reward.check_prompts(PROMPTS[:2])
    with pytest.warns(UserWarning, match=r"HPSv2 \(77 tokens\) cuts off 1 of 3 texts"):
        reward.check_prompts(PROMPTS)


@pytest.mark.parametrize(
    ("remove", "added", "said"),
    [
        (LAYER, {}, f"missing {LAYER}. Give the file"),
        ("visual.proj", {}, r"missing visual\.proj\. "),
        ("", {"visual.attn_pool.query": torch.zeros(2)}, r"unexpected visual\.attn_pool\.query\. "),
        ("", {"transformer.resblocks.3.ln_1.bias": torch.zeros(128)}, r"unexpected transformer\.resblocks\.3\.ln_1\.bias"),
        ("", {"visual.ln_post.bias": torch.zeros(7)}, r"misshaped .*post_layernorm\.bias: \[7\] in the file, \[160\] in the model"),
        ("", {"visual.proj": torch.zeros(160)}, r"these tensors have other shapes: visual\.proj \[160\]"),
        ("", {"visual.positional_embedding": torch.zeros(4, 160)}, "has 4 positions of images; expected a square and one"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, remove: str, added: dict[str, Tensor], said: str
) -> None:
    file = changed(folder, tmp_path, remove, **added)
    with pytest.raises(ValueError, match=rf"(?s)changed\.pt.*{said}"):
        HPSv2(file, tokenizer=folder / "tokenizer")


def test_a_clip_of_transformers_is_no_such_file(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"is no CLIP model in open_clip's layout: missing .*; unexpected .*and \d+ more\. Give"):
        make(folder, "tokenizer/model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"vision_heads": 7}, ValueError, "the width 160 of its vision_model is no multiple of 7 heads; give the number of heads"),
        ({"tokenizer": "./nowhere"}, FileNotFoundError, r"no such file or folder: \./nowhere"),
        ({"file": "nowhere.pt"}, FileNotFoundError, r"no such file or folder: .*nowhere\.pt"),
        ({"file": "empty"}, FileNotFoundError, r"empty has no weights file"),
        ({"tokenizer": "empty"}, ValueError, r"empty holds no tokenizer that transformers can read \(.*\); expected tokenizer"),
    ],
)
def test_wrong_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message):
        make(folder, **arguments)


def test_another_models_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    file = changed(folder, tmp_path, **{"token_embedding.weight": torch.zeros(500, 128)})
    with pytest.raises(ValueError, match=r"tokenizer .* has 516 tokens, and .*changed\.pt has embeddings of 500: give CLIP's"):
        HPSv2(file, tokenizer=folder / "tokenizer")


def test_without_a_connection_it_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"`hf download laion/CLIP-ViT-H-14-laion2B-s32B-b79K --local-dir FOLDER`"):
        HPSv2()
    with pytest.raises(FileNotFoundError, match=r"`hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt --local-dir FOLDER`"):
        HPSv2(tokenizer=folder / "tokenizer")
