"""An adapter in PEFT's own folder: PEFT loads ours, `add_lora` loads PEFT's, and what does not fit is refused with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import PROMPTS, tiny_module, tiny_policy
from torch import Tensor, nn

from tests.families import Made, disturbed, infinity, switti, tokenflow, var
from varrl_lightning.__main__ import main
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import adapter_tensors, add_lora, has_adapter, save_adapter
from varrl_lightning.policies.peft_folder import read_adapter

UNMARKED = "does not say on which weights its adapter was trained"


def scored(policy: VARPolicy, tokens: list[Tensor], cond: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat(policy(tokens, cond, 0, len(cond.schedule)).log_prob, dim=1)


def drawn(policy: VARPolicy, cond: Any) -> list[Tensor]:
    return policy.sample(policy.begin(cond, policy.default_sampling, torch.arange(len(cond))), len(cond.schedule)).tokens


def tiny(folder: Path) -> Made:
    policy = tiny_policy()
    return policy, policy.encode_prompts(PROMPTS[:2])


def plain_tiny() -> VARPolicy:
    return tiny_policy()


@pytest.mark.parametrize("make", [tiny, var, infinity, switti, tokenflow])
def test_peft_loads_what_was_written_and_so_does_add_lora(
    make: Callable[[Path], Made], weights_folder: Path, tmp_path: Path
) -> None:
    base, cond = make(weights_folder)
    trained = disturbed(make(weights_folder)[0])
    tokens = drawn(base, cond)
    wanted = scored(trained, tokens, cond)
    folder = save_adapter(trained, tmp_path / "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = add_lora(make(weights_folder)[0], adapter=folder)
    assert torch.equal(scored(again, tokens, cond), wanted)
    before = scored(base, tokens, cond)
    loaded = PeftModel.from_pretrained(base.transformer, str(folder))  # puts the layers into the module in place
    assert not loaded.training
    assert torch.equal(scored(base, tokens, cond), wanted)
    assert not torch.equal(before, wanted)


def peft_folder(
    folder: Path, change: Callable[[nn.Module], object] = lambda module: None, **options: Any
) -> tuple[Path, VARPolicy]:
    """A folder that PEFT itself writes, and the policy whose transformer it was trained on."""
    policy = plain_tiny()
    change(policy.transformer)
    torch.manual_seed(0)
    config = LoraConfig(**({"r": 3, "lora_alpha": 6, "target_modules": ["qkv", "out"], "init_lora_weights": False} | options))
    model = get_peft_model(policy.transformer, config)
    model.save_pretrained(str(folder))
    return folder, policy


@pytest.mark.parametrize(
    "targets", [["qkv", "out"], r".*\.(qkv|out)", ["blocks.0.qkv", "blocks.1.qkv", "blocks.0.out", "blocks.1.out"]]
)
def test_a_folder_that_peft_wrote(targets: Any, tmp_path: Path) -> None:
    folder, theirs = peft_folder(tmp_path, target_modules=targets, lora_dropout=0.1)
    theirs.eval()
    policy = plain_tiny()
    with pytest.warns(UserWarning, match=UNMARKED):
        add_lora(policy, adapter=str(folder))
    layers = {name.rpartition(".lora_")[0] for name in adapter_tensors(policy)}
    assert layers == {f"blocks.{i}.{name}" for i in (0, 1) for name in ("qkv", "out")}
    cond = policy.encode_prompts(PROMPTS[:2])
    tokens = drawn(plain_tiny(), cond)
    assert torch.equal(scored(policy, tokens, cond), scored(theirs, tokens, cond))


def ours(folder: Path) -> Path:
    return save_adapter(disturbed(plain_tiny()), folder / "adapter")  # rank 2, alpha 4, all linear layers


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, r"rank is 4, but the adapter in .*adapter has rank 2; leave rank out"),
        ({"alpha": 32.0}, r"alpha is 32.0, but the adapter in .*adapter has alpha 4; leave alpha out"),
        (
            {"targets": ["qkv"]},
            r"has other targets than \['qkv'\]: blocks\.\*\.mlp\.\*, blocks\.\*\.out, exits\.\*, head, latent, place",
        ),
        ({"dropout": 0.1}, "dropout must be 0"),
    ],
)
def test_other_options_than_the_folders_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    policy = plain_tiny()
    with pytest.raises(ValueError, match=message):
        add_lora(policy, adapter=ours(tmp_path), **options)
    assert not has_adapter(policy)
    assert all(p.requires_grad for p in policy.transformer.parameters())
    add_lora(policy, rank=2, alpha=4.0, targets=["*"], adapter=tmp_path / "adapter")


def test_another_base_is_refused(tmp_path: Path) -> None:
    folder, other = ours(tmp_path), plain_tiny()
    with torch.no_grad():
        other.transformer.head.weight[0, 0] += 0.5
    with pytest.raises(
        ValueError, match=r"was trained on other weights than those of this TinyTransformer \(\w{16} against \w{16}\)"
    ):
        add_lora(other, adapter=folder)
    assert not has_adapter(other)


@pytest.mark.parametrize(("then", "now"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_the_same_base_in_another_dtype_is_the_same_base(then: torch.dtype, now: torch.dtype, tmp_path: Path) -> None:
    policy = plain_tiny()
    policy.transformer.bfloat16().to(then)
    folder, again = save_adapter(disturbed(policy), tmp_path / "adapter"), plain_tiny()
    again.transformer.bfloat16().to(now)
    assert has_adapter(add_lora(again, adapter=folder))


def test_a_base_of_other_sizes_is_refused_with_the_tensors(tmp_path: Path) -> None:
    from tests.tiny import TinyPolicy, TinyTransformer

    with pytest.raises(
        ValueError, match=r"does not fit TinyTransformer at rank 2:\n  misshaped blocks\.0\.mlp\.0\.lora_A\.weight: \[2, 16\]"
    ):
        add_lora(TinyPolicy(TinyTransformer(width=32)), adapter=ours(tmp_path))
    with pytest.raises(
        ValueError, match=r"is for another base: blocks\.\*\.mlp\.\*, .* is no linear layer of TinyTransformer, which has"
    ):
        add_lora(TinyPolicy(TinyTransformer(depth=1)), adapter=tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_rslora": True}, "use_rslora = True"),
        ({"use_dora": True}, "use_dora = True"),
        ({"rank_pattern": {"out": 2}}, r"rank_pattern = \{'out': 2\}"),
        ({"alpha_pattern": {"out": 2}}, r"alpha_pattern = \{'out': 2\}"),
        ({"modules_to_save": ["head"]}, r"modules_to_save = \['head'\]"),
        ({"bias": "lora_only"}, "bias = 'lora_only'"),
        ({"target_modules": ["letter", "qkv"]}, r"holds more than an adapter of linear layers: letter\.lora_embedding_"),
        ({"init_lora_weights": "olora"}, "init_lora_weights = 'olora'"),
    ],
)
def test_more_than_a_plain_adapter_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = peft_folder(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        add_lora(plain_tiny(), adapter=folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", {"peft_type": "IA3", "r": 2, "lora_alpha": 4}, "an adapter of the kind 'IA3'; only LORA"),
        ("adapter_config.json", {"peft_type": "LORA", "r": 0, "lora_alpha": 4}, "r must be at least 1"),
        ("adapter_config.json", {"peft_type": "LORA", "r": 3, "lora_alpha": 4}, "does not fit TinyTransformer at rank 3"),
        ("adapter_config.json", [], "is no configuration of PEFT's"),
        ("adapter_config.json", None, "has no file adapter_config.json; it has adapter_model.safetensors"),
        ("adapter_model.safetensors", None, "has no file adapter_model.safetensors; it has adapter_config.json"),
    ],
)
def test_a_broken_folder(file: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = ours(tmp_path)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(json.dumps(content))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        add_lora(plain_tiny(), adapter=folder)


def test_half_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = ours(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors["base_model.model.head.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"missing head\.lora_B\.weight"):
        add_lora(plain_tiny(), adapter=folder)


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    policy = disturbed(plain_tiny())
    (tmp_path / "there").mkdir()
    save_adapter(policy, tmp_path / "there")
    with pytest.raises(ValueError, match="there exists; give another name"):
        save_adapter(policy, tmp_path / "there")
    with pytest.raises(ValueError, match="the policy has no adapter to write"):
        save_adapter(plain_tiny(), tmp_path / "none")


def test_the_settings_of_what_was_loaded_are_kept(tmp_path: Path) -> None:
    policy = add_lora(plain_tiny(), adapter=ours(tmp_path))
    assert tiny_module(copy.deepcopy(policy), kl_coef=0.01).reference is not None
    again = save_adapter(policy, tmp_path / "again")
    assert (again / "adapter_config.json").read_text() == (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert has_adapter(add_lora(plain_tiny(), adapter=again)), "it knows its base: no warning"
    for name, x in adapter_tensors(policy).items():
        assert torch.equal(x, read_adapter(again).tensors[name])


def test_from_a_configuration_to_a_folder_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    start = ours(tmp_path)
    Path("c.yaml").write_text(
        "model:\n  policy:\n    class_path: varrl_lightning.add_lora\n"
        f"    init_args: {{policy: {{class_path: tiny.tiny_policy}}, adapter: {start}}}\n"
        "  reward: tiny.LeftBright\n  mask_source: full\n  m: 2\n  group_size: 2\n"
        "data: {train: builtin:lettering/train.jsonl}\n"
    )
    export = ["export", "--config", "c.yaml", "--layout"]
    assert main([*export, "peft", "--output", "out"]) == 0
    assert "out/adapter_model.safetensors: " in capsys.readouterr().out
    held = load_file("out/adapter_model.safetensors")
    assert all(torch.equal(x, held[name]) for name, x in load_file(start / "adapter_model.safetensors").items())
    assert main([*export, "peft", "--output", "half", "--dtype", "bfloat16"]) == 0
    assert {x.dtype for x in load_file("half/adapter_model.safetensors").values()} == {torch.bfloat16}
    assert main([*export, "peft", "--output", "out"]) == 1
    assert "out exists; give another name" in capsys.readouterr().err
    assert main([*export, "other", "--output", "out"]) == 2
