"""The encoders compute what transformers computes, and `EncodedTexts` what the encoders do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh import Fresh
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_encoders import write_clip, write_t5
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPModel, T5ForConditionalGeneration

from varrl_lightning.text_encoders import ClipPair, EncodedTexts, T5Text, TextEncoder

TEXTS = ["the cat", "", "a ｃａｔ sat on the mat", "x " * 600]
CLIP_WIDTHS = (16, 24)


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def clip_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pads = ("<|endoftext|>", "!")  # of CLIP-L, and of some releases of CLIP-bigG
    return [
        write_clip(tmp_path_factory.mktemp(f"clip{i}"), width, seed=i, pad=pad, merged=i == 0)
        for i, (width, pad) in enumerate(zip(CLIP_WIDTHS, pads, strict=True))
    ]


@pytest.fixture(scope="module", params=["t5", "clip"])
def encoder(request: pytest.FixtureRequest, t5_folder: Path, clip_folders: list[Path]) -> TextEncoder:
    return T5Text.from_pretrained(t5_folder) if request.param == "t5" else ClipPair.from_pretrained(*clip_folders)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        torch.testing.assert_close(found[name], x, **(tolerance or {"rtol": 0, "atol": 0}))


# --- T5 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2), ("float16", 1e-2)])
@torch.no_grad()
def test_t5_features_are_those_of_texts_padded_to_512_tokens(t5_folder: Path, dtype: str, tolerance: float) -> None:
    found = T5Text.from_pretrained(t5_folder, dtype=dtype)(TEXTS)
    tokenizer = Tokenizer.from_file(str(t5_folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(length=512, pad_id=0)
    encodings = tokenizer.encode_batch(TEXTS)
    ids = torch.tensor([e.ids for e in encodings])
    mask = torch.tensor([e.attention_mask for e in encodings])
    model = T5ForConditionalGeneration.from_pretrained(t5_folder).eval()
    wanted = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    assert found.keys() == {"text", "mask"}
    assert found["text"].dtype == torch.float32
    assert torch.equal(found["mask"], mask.bool())  # the last text is longer than 512 tokens
    assert found["mask"].sum(dim=1).tolist()[:2] == [3, 1]
    torch.testing.assert_close(found["text"][mask.bool()], wanted[mask.bool()], rtol=tolerance, atol=tolerance)
    assert not found["text"][~mask.bool()].any()


def test_t5_pads_to_the_longest_text_of_the_batch(t5_folder: Path) -> None:
    encoder = T5Text.from_pretrained(t5_folder)
    both, one = encoder(["the cat", "the"]), encoder(["the"])
    assert both["text"].shape == (2, 3, 16)
    assert one["text"].shape == (1, 2, 16)
    torch.testing.assert_close(both["text"][1:, :2], one["text"])


def test_t5_cuts_texts_to_max_tokens(t5_folder: Path) -> None:
    assert T5Text.from_pretrained(t5_folder, max_tokens=5)(["x " * 600])["mask"].tolist() == [[True] * 5]
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        T5Text.from_pretrained(t5_folder, max_tokens=0)


def test_the_published_tokenizer_is_read_as_it_is(t5_folder: Path) -> None:
    """Its own normaliser reads wide letters as letters; a tokenizer built anew from the vocabulary does not know them."""
    encoder = T5Text.from_pretrained(t5_folder)
    assert_same(encoder(["ｃａｔ"]), encoder(["cat"]))


# --- CLIP -----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_clip_features_are_those_of_both_models(clip_folders: list[Path]) -> None:
    found = ClipPair.from_pretrained(*clip_folders)(TEXTS)
    wanted, masks = [], []
    for folder, pad in zip(clip_folders, (515, 0), strict=True):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(77)
        tokenizer.enable_padding(length=77, pad_id=pad)
        encodings = tokenizer.encode_batch(TEXTS)
        masks.append(torch.tensor([e.attention_mask for e in encodings]))
        ids = torch.tensor([e.ids for e in encodings])
        wanted.append(CLIPModel.from_pretrained(folder).text_model(input_ids=ids, attention_mask=masks[-1]))
    assert found["text"].shape == (len(TEXTS), 77, sum(CLIP_WIDTHS))
    torch.testing.assert_close(found["text"], torch.cat([w.last_hidden_state for w in wanted], dim=-1))
    torch.testing.assert_close(found["pooled"], wanted[1].pooler_output)
    assert torch.equal(found["mask"], masks[1].bool())
    assert found["mask"].sum(dim=1).tolist() == [8, 2, 23, 77]  # the second tokenizer's, which reads a cat letter by letter


# --- what holds for all ---------------------------------------------------------------------------------------------------


def test_an_encoder_is_frozen_and_stays_in_evaluation_mode(encoder: TextEncoder) -> None:
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(x.requires_grad for x in encoder(["the cat"]).values())


def test_what_is_encoded_does_not_depend_on_autocast(encoder: TextEncoder) -> None:
    plain = encoder(["the cat"])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(encoder(["the cat"]), plain)


def test_one_string_or_no_text_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="takes a list of texts, got the string 'the cat'"):
        encoder("the cat")
    with pytest.raises(ValueError, match="at least one text, got none"):
        encoder([])


def test_an_encoder_can_be_copied(encoder: TextEncoder) -> None:
    assert_same(copy.deepcopy(encoder)(["the cat"]), encoder(["the cat"]))


@pytest.mark.parametrize("load", [T5Text.from_pretrained, lambda path: ClipPair.from_pretrained(path, path)])
def test_missing_folders_are_not_looked_for_on_the_hub(load: Callable[[str], TextEncoder], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load(str(tmp_path / "nothing"))


@pytest.mark.parametrize("load", [T5Text.from_pretrained, lambda path: ClipPair.from_pretrained(path, path)])
def test_a_hub_id_offline(load: Callable[[str], TextEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"could not be reached.*`hf download some/encoder --local-dir FOLDER`"):
        load("some/encoder")


def test_a_downloaded_hub_id_is_read_offline(t5_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--encoder"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).symlink_to(t5_folder)
    assert_same(T5Text.from_pretrained("some/encoder")(["the cat"]), T5Text.from_pretrained(t5_folder)(["the cat"]))


def test_another_kind_of_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds no T5EncoderModel that transformers can read .*expected a folder with config\.json"
    ):
        T5Text.from_pretrained(tmp_path)


def test_missing_weights_are_not_filled_with_random_ones(tmp_path: Path) -> None:
    folder = write_t5(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if not name.startswith("encoder.block.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"no complete T5EncoderModel: it has no encoder\.block\.1\.layer\.0"):
        T5Text.from_pretrained(folder)


def test_importing_the_encoders_does_not_import_transformers(fresh: Fresh) -> None:
    code = "import sys, varrl_lightning.text_encoders; sys.exit('transformers' in sys.modules)"
    assert fresh(code).returncode == 0


# --- encoded beforehand ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*cuts off 1 of 4 texts; no word to be written is lost")
def test_looking_up_equals_encoding(encoder: TextEncoder, tmp_path: Path) -> None:
    EncodedTexts.save(encoder, [*TEXTS, "the cat"], tmp_path / "texts.safetensors")
    looked_up = EncodedTexts(tmp_path / "texts.safetensors")
    for batch in (["the cat", "", "the cat"], TEXTS[::-1], TEXTS[2:3]):
        assert_same(looked_up(batch), encoder(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*cuts off 1 of 4 texts; no word to be written is lost")
def test_a_file_of_encoded_texts_can_be_half_the_size(encoder: TextEncoder, tmp_path: Path) -> None:
    EncodedTexts.save(encoder, TEXTS, tmp_path / "full.safetensors")
    EncodedTexts.save(encoder, TEXTS, tmp_path / "half.safetensors", dtype="bfloat16")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.65 * (tmp_path / "full.safetensors").stat().st_size
    full, half = EncodedTexts(tmp_path / "full.safetensors")(TEXTS), EncodedTexts(tmp_path / "half.safetensors")(TEXTS)
    assert_same(half, full, rtol=1e-2, atol=1e-2)
    assert half["text"].dtype == torch.float32


def test_a_mapping_is_looked_up_too() -> None:
    long, short = torch.rand(3, 4), torch.rand(1, 4)
    encoded = EncodedTexts(
        {
            "long": {"text": long, "mask": torch.ones(3, dtype=torch.bool), "pooled": torch.tensor([1.0, 2.0])},
            "short": {"text": short, "mask": torch.ones(1, dtype=torch.bool), "pooled": torch.tensor([3.0, 4.0])},
        }
    )
    found = encoded(["short", "long"])
    assert found["mask"].tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(found["text"][1], long)
    assert torch.equal(found["text"][0], torch.cat((short, torch.zeros(2, 4))))
    assert found["pooled"].tolist() == [[3, 4], [1, 2]]


def test_results_are_on_the_device_of_the_lookup() -> None:
    encoded = EncodedTexts({"a": {"text": torch.rand(3, 4), "mask": torch.ones(3, dtype=torch.bool)}}).to("meta")
    assert encoded.device.type == "meta"
    assert all(x.device.type == "meta" for x in encoded.encode(["a"]).values())


def test_an_unknown_text_is_named(t5_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.safetensors"
    EncodedTexts.save(T5Text.from_pretrained(t5_folder), ["the cat sat", "x"], path)
    with pytest.raises(
        ValueError, match=r"'the cat set' is not among the 2 of .*texts\.safetensors\. Did you mean 'the cat sat'\? .*save"
    ):
        EncodedTexts(path)(["x", "the cat set"])


def test_another_file_is_no_file_of_encoded_texts(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "plain.safetensors")
    save_file({"a.b": torch.zeros(1)}, tmp_path / "named.safetensors", metadata={"texts": json.dumps(["x"])})
    save_file({"7.text": torch.zeros(1)}, tmp_path / "beyond.safetensors", metadata={"texts": json.dumps(["x"])})
    (tmp_path / "cut.safetensors").write_bytes(b"")
    for name in ("plain", "named", "beyond", "cut"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors was not written by EncodedTexts\.save"):
            EncodedTexts(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file of encoded texts"):
        EncodedTexts(tmp_path / "none.safetensors")


def test_all_texts_must_have_the_same_tensors() -> None:
    row = {"text": torch.zeros(1, 2), "mask": torch.ones(1, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"must hold the same tensors for each of its texts.*\('mask', 'text'\), \('text',\)"):
        EncodedTexts({"a": row, "b": {"text": row["text"]}})
    with pytest.raises(ValueError, match="at least one"):
        EncodedTexts({})
