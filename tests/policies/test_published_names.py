"""Published names that contradict each other are said by name, before anything is loaded; other names say nothing."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.families import Texts, innermost, load_infinity
from varrl_lightning.configuration.files import shipped_configs
from varrl_lightning.policies.infinity import InfinityPolicy
from varrl_lightning.policies.published_names import PUBLISHED, TOKENIZERS, known_schedule, recognised, warn_of_contradictions
from varrl_lightning.policies.switti import SwittiPolicy
from varrl_lightning.policies.tokenflow import TokenFlowPolicy
from varrl_lightning.policies.var import ImageNetVARPolicy
from varrl_lightning.schedule import NEXTFLOW_1024, VAR_256, VAR_512

POLICIES: dict[str, Any] = {p.__name__: p for p in (ImageNetVARPolicy, SwittiPolicy, InfinityPolicy, TokenFlowPolicy)}
VAE_2B, VAE_8B, VAE_VAR = "infinity_vae_d32reg.pth", "infinity_vae_d56_f8_14_patchify.pth", "vae_ch160v4096z32.pth"


def said(family: str, path: Any, tokenizer: Any, **settings: Any) -> str:
    """The warning, or nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_contradictions(family, path, tokenizer, **settings)
    return "\n".join(str(w.message) for w in caught)


CONTRADICTIONS = [
    ("InfinityPolicy", "infinity_2b_reg.pth", VAE_2B, {"pixels": "0.25M"}, ["pixels is 0.25M", "trained with 1M"]),
    ("InfinityPolicy", "infinity_2b_reg.pth", VAE_2B, {"pixels": "0.06M"}, ["pixels is 0.06M"]),
    (
        "InfinityPolicy",
        "infinity_2b_reg.pth",
        "infinity_vae_d32.pth",
        {"pixels": "1M"},
        ["infinity_vae_d32,", "infinity_vae_d32reg"],
    ),
    ("InfinityPolicy", "infinity_2b.pth", VAE_2B, {"pixels": "1M"}, ["the tokenizer is infinity_vae_d32reg"]),
    ("InfinityPolicy", "infinity_2b_reg.pth", "infinity_vae_d16.pth", {"pixels": "1M"}, ["infinity_vae_d16"]),
    ("InfinityPolicy", "infinity_2b_reg.pth", "infinity_vae_d24.pth", {"pixels": "1M"}, ["infinity_vae_d24"]),
    ("InfinityPolicy", "infinity_2b_reg.pth", VAE_8B, {"pixels": "1M"}, ["infinity_vae_d56_f8_14_patchify"]),
    ("InfinityPolicy", "infinity_8b_weights", "infinity_vae_d64.pth", {"pixels": "1M"}, ["infinity_vae_d64"]),
    ("InfinityPolicy", "infinity_8b_weights", VAE_8B, {"pixels": "0.25M"}, ["trained with 1M"]),
    ("InfinityPolicy", "infinity_8b_512x512_weights", VAE_8B, {"pixels": "1M"}, ["pixels is 1M", "trained with 0.25M"]),
    ("InfinityPolicy", "infinity_125M_256x256.pth", VAE_2B, {"pixels": "1M"}, ["0.06M", "infinity_vae_d16"]),
    ("InfinityPolicy", "infinity_2b_reg.pth", VAE_2B, {"rope_normalisation": 1}, ["rope_normalisation is 1"]),
    ("ImageNetVARPolicy", "var_d16.pth", VAE_VAR, {"sides": [s for s, _ in VAR_512.grids]}, ["sides is 1, 2, 3, 4, 6, 9"]),
    ("ImageNetVARPolicy", "var_d36.pth", VAE_VAR, {"sides": tuple(s for s, _ in VAR_256.grids)}, ["13, 16"]),
    ("ImageNetVARPolicy", "var_d30.pth", "yresearch/VQVAE-Switti", {}, ["VQVAE-Switti", "vae_ch160v4096z32"]),
    ("SwittiPolicy", "yresearch/Switti", f"FoundationVision/var/{VAE_VAR}", {}, ["vae_ch160v4096z32"]),
    ("SwittiPolicy", "yresearch/Switti-1024", "yresearch/VQVAE-Switti", {"autoregressive": True}, ["autoregressive is True"]),
    ("SwittiPolicy", "yresearch/Switti-AR", "yresearch/VQVAE-Switti", {"autoregressive": False}, ["autoregressive is False"]),
    (
        "SwittiPolicy",
        "yresearch/Switti",
        "yresearch/VQVAE-Switti",
        {"sides": PUBLISHED["SwittiPolicy"][2].settings["sides"]},
        ["64"],
    ),
    ("TokenFlowPolicy", "ByteFlow-AI/TokenFlow-t2i", "ByteFlow-AI/TokenFlow/tokenflow_siglip_32k.pt", {}, ["tokenflow_siglip_32k"]),
    ("TokenFlowPolicy", "ByteFlow-AI/TokenFlow-t2i", "x.pt", {"schedule": VAR_256}, ["schedule is 1, 2, 3, 4, 5"]),
]


@pytest.mark.parametrize(("family", "path", "tokenizer", "settings", "words"), CONTRADICTIONS)
def test_what_contradicts_is_said_by_name(
    family: str, path: str, tokenizer: str, settings: dict[str, Any], words: list[str]
) -> None:
    message = said(family, path, tokenizer, **settings)
    assert all(word in message for word in words)
    assert f"by their name, {path} are the weights" in message


@pytest.mark.parametrize(
    "path",
    [
        "INFINITY_2B_REG.PTH",
        "FoundationVision/Infinity/infinity_2b_reg.pth",
        "/data/Infinity-2B-reg.safetensors",
        Path("weights/infinity_2b_reg_bf16.safetensors"),
        "weights/infinity_2b_reg/model.safetensors",
        "infinity_2b_reg/pytorch_model.bin.index.json",
        "/root/.cache/huggingface/hub/models--FoundationVision--infinity_2b_reg/snapshots/" + "0a" * 20,
    ],
)
def test_a_name_is_known_in_any_case_and_by_its_folder(path: str | Path) -> None:
    found = recognised("InfinityPolicy", path)
    assert found is not None
    assert found.name == "infinity_2b_reg"
    assert "trained with 1M" in said("InfinityPolicy", path, "Infinity_VAE_d32_reg.pth", pixels="0.25M")
    assert not said("InfinityPolicy", path, "Infinity_VAE_d32_reg.pth", pixels="1M")


@pytest.mark.parametrize(
    "path", ["mine.pth", "infinity_2b_reg_signs_512.pth", "infinity_2b_reg/step_100.pth", "Infinity", "model.safetensors"]
)
def test_other_names_say_nothing(path: str) -> None:
    assert recognised("InfinityPolicy", path) is None
    assert not said("InfinityPolicy", path, "infinity_vae_d16.pth", pixels="0.06M")


def test_an_object_and_an_unknown_tokenizer_say_nothing() -> None:
    for tokenizer in (torch.nn.Identity(), "vae.pth", "infinity_2b_reg/vae.pth"):
        assert not said("InfinityPolicy", "infinity_2b_reg.pth", tokenizer, pixels="1M")


@pytest.mark.parametrize("family", PUBLISHED)
def test_what_was_published_together_says_nothing(family: str) -> None:
    names = [published.name for published in PUBLISHED[family]]
    assert [getattr(recognised(family, f"x/{name}.pth"), "name", None) for name in names] == names
    for published in PUBLISHED[family]:
        assert not said(family, f"{published.name}.pth", published.tokenizer, **published.settings)
        assert not said(family, published.name, f"a/{published.tokenizer}.pth", **dict.fromkeys(published.settings))
    assert {published.tokenizer for published in PUBLISHED[family]} <= TOKENIZERS


def test_the_one_file_of_a_folder_is_asked(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "infinity_2b_reg.pth")
    assert recognised("InfinityPolicy", tmp_path) == recognised("InfinityPolicy", "infinity_2b_reg.pth")
    torch.save({}, tmp_path / "other.pth")
    assert recognised("InfinityPolicy", tmp_path) is None


@pytest.mark.parametrize(
    ("family", "path", "tokenizer", "settings"),
    [
        ("ImageNetVARPolicy", "var_d16.pth", "VQVAE-Switti.pth", {}),
        ("SwittiPolicy", "Switti.pth", VAE_VAR, {}),
        ("InfinityPolicy", "infinity_2b_reg.pth", "infinity_vae_d32.pth", {}),
        ("InfinityPolicy", "infinity_8b_512x512.pth", VAE_8B, {}),
        ("TokenFlowPolicy", "TokenFlow-t2i.pth", "tokenflow_siglip_32k.pt", {}),
    ],
)
def test_every_family_warns_before_it_reads_a_file(
    tmp_path: Path, family: str, path: str, tokenizer: str, settings: dict[str, Any]
) -> None:
    with pytest.warns(UserWarning, match="by their name"), pytest.raises(FileNotFoundError, match="no such file"):
        POLICIES[family].from_pretrained(tmp_path / path, tmp_path / tokenizer, **settings)


def test_weights_with_the_wrong_vae_of_the_same_shapes_load_with_a_warning(weights_folder: Path, tmp_path: Path) -> None:
    """What nothing else would show: all shapes fit."""
    load_infinity(weights_folder, "published_2b", pixels="0.06M")
    for name, published in (("transformer", "infinity_2b_reg"), ("tokenizer", "infinity_vae_d32")):
        shutil.copy(weights_folder / "infinity_published_2b" / f"{name}.pth", tmp_path / f"{published}.pth")
    with pytest.warns(
        UserWarning,
        match=r"pixels is 0\.06M, .* 1M; the tokenizer is infinity_vae_d32, and theirs is infinity_vae_d32reg",
    ):
        InfinityPolicy.from_pretrained(tmp_path / "infinity_2b_reg.pth", tmp_path / "infinity_vae_d32.pth", Texts(), pixels="0.06M")


@pytest.mark.parametrize("recipe", sorted(shipped_configs()))
def test_no_shipped_configuration_contradicts_itself(recipe: str) -> None:
    model = yaml.safe_load(shipped_configs()[recipe].read_text()).get("model", {})
    policy = model.get("policy", {}) if isinstance(model, dict) else {}
    family = str(policy)
    for name in PUBLISHED:
        if name in family:
            arguments = innermost(policy)
            assert recognised(name, arguments["path"]) is not None
            assert not said(name, **arguments)


def test_the_readme_does_not_contradict_itself() -> None:
    example = (
        (Path(__file__).parents[2] / "README.md").read_text().split("policy = InfinityPolicy.from_pretrained(")[1].split("\n)")[0]
    )
    path, tokenizer = (line.split('"')[1] for line in example.splitlines()[1:3])
    pixels = example.split('pixels="')[1].split('"')[0]
    assert not said("InfinityPolicy", path, tokenizer, pixels=pixels)


@pytest.mark.parametrize(
    ("family", "arguments", "sizes"),
    [
        ("InfinityPolicy", {"path": "infinity_2b_reg.pth", "pixels": "1M"}, (13, 1024)),
        ("InfinityPolicy", {"path": "infinity_8b_512x512_weights", "pixels": "0.25M"}, (10, 512)),
        ("ImageNetVARPolicy", {"path": "FoundationVision/var/var_d16.pth"}, (10, 256)),
        ("ImageNetVARPolicy", {"path": "var_d36.pth", "sides": None}, (10, 512)),
        ("ImageNetVARPolicy", {"path": "var_d16.pth", "sides": [1, 2, 3]}, (3, 48)),
        ("SwittiPolicy", {"path": "yresearch/Switti-1024-AR"}, (14, 1024)),
        ("TokenFlowPolicy", {"path": "ByteFlow-AI/TokenFlow-t2i"}, (9, 256)),
        ("LLMPrefixPolicy", {"path": "mine", "schedule": NEXTFLOW_1024}, (18, 1024)),
        ("LLMPrefixPolicy", {"path": "mine", "schedule": [1, 2, 3]}, None),
        ("ImageNetVARPolicy", {"path": "mine.pth"}, None),
        ("LetteringPolicy", {}, None),
    ],
)
def test_the_schedule_that_a_name_shows(family: str, arguments: dict[str, Any], sizes: tuple[int, int] | None) -> None:
    schedule = known_schedule(family, arguments)
    assert (schedule and (len(schedule), schedule.image_size[0])) == sizes
