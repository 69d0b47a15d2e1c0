"""Runs that train an adapter: what they save, what they refuse, what they export."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_policy, tiny_trainer
from torch import Tensor

from tests.tiny import saved
from varrl_lightning import VARGRPO, LetteringPolicy, add_lora
from varrl_lightning.__main__ import main
from varrl_lightning.checkpoints.checking import check_checkpoint, load_checkpoint
from varrl_lightning.commands.export import export_policy
from varrl_lightning.errors import CheckpointError
from varrl_lightning.policies.lettering import ASSETS
from varrl_lightning.policies.lora import AdapterOff, adapter_tensors, base_tensors

pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:You're resuming from a checkpoint that ended"
)
QUICK = ["--model.reward", "tiny.LeftBright", "--model.mask_source", "full", "--data.batch_size", "2", "--model.group_size", "2"]


def adapted(seed: int = 0, **options: Any) -> VARGRPO:
    torch.manual_seed(seed)
    return tiny_module(add_lora(tiny_policy(seed), rank=4), kl_coef=0.01, **options)


def fit(module: VARGRPO, steps: int, ckpt_path: Path | None = None) -> VARGRPO:
    tiny_trainer(max_steps=steps).fit(module, tiny_loader(), ckpt_path=ckpt_path)
    return module


def log_probs(policy: Any, tokens: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat(policy(tokens, policy.encode_prompts(PROMPTS[:2]), 0, len(tokens)).log_prob, dim=1)


def drawn(policy: Any) -> list[Tensor]:
    state = policy.begin(policy.encode_prompts(PROMPTS[:2]), policy.default_sampling, torch.tensor([1, 2]))
    return policy.sample(state, len(policy.schedule())).tokens


def test_only_the_adapter_trains_and_is_saved(tmp_path: Path) -> None:
    module = adapted()
    base = {name: x.clone() for name, x in base_tensors(module.policy).items()}
    fit(module, 3)
    assert isinstance(module.reference, AdapterOff)
    assert all(torch.equal(x, base[name]) for name, x in base_tensors(module.policy).items())
    assert any(bool((x != 0).any()) for name, x in adapter_tensors(module.policy).items() if "lora_B" in name)
    held = torch.load(saved(module, tmp_path / "a.ckpt"), weights_only=True)["state_dict"]
    assert held.keys() == module.saved_tensors().keys()
    assert len(held) == len(adapter_tensors(module.policy))
    assert all("lora_" in name for name in held)


def test_an_adapter_on_another_base_is_refused(tmp_path: Path) -> None:
    path = saved(fit(adapted(), 1), tmp_path / "a.ckpt")
    policy = tiny_policy()
    with torch.no_grad():
        policy.transformer.blocks[0].qkv.weight.mul_(1.001)
    other = tiny_module(add_lora(policy, rank=4), kl_coef=0.01)
    with pytest.raises(ValueError, match="the base's weights differ from those that the run began with"):
        fit(other, 2, path)


def test_a_checkpoint_of_version_0_1_is_resumed_with_a_warning_that_its_base_was_not_compared(tmp_path: Path) -> None:
    path = saved(fit(adapted(), 1), tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["varrl"]["frozen_weights"]
    torch.save(checkpoint | {"varrl": checkpoint["varrl"] | {"reference": "0123456789abcdef"}}, path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")  # as Python shows them
        check_checkpoint(path, module := adapted(), module.saved_tensors())
        fit(module, 2, path)
    said = [str(warning.message) for warning in caught if "version 0.1" in str(warning.message)]
    assert len(said) == 1
    assert "its base's weights cannot be compared" in said[0]
    assert module.rollouts_done == 2


def test_half_precision_everywhere_is_not_for_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"precision 'bf16-true' rounds the adapter's weights away"):
        tiny_trainer(max_steps=1, precision="bf16-true").fit(adapted(), tiny_loader())


def test_an_adapter_of_other_settings_is_refused(tmp_path: Path) -> None:
    """Another alpha has the same tensors, and is silently another function."""
    path = saved(fit(adapted(), 1), tmp_path / "a.ckpt")
    other = tiny_module(add_lora(tiny_policy(), rank=4, alpha=4.0), kl_coef=0.01)
    with pytest.raises(ValueError, match=r"an adapter of rank 4 and alpha 32, but the policy has one of rank 4 and alpha 4"):
        fit(other, 2, path)


def test_a_checkpoint_that_lacks_a_part_of_the_adapter_is_refused(tmp_path: Path) -> None:
    path = saved(fit(adapted(), 1), tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"][next(iter(checkpoint["state_dict"]))]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"does not fit the policy's adapter:\n  missing policy.transformer"):
        fit(adapted(), 2, path)


def test_a_checkpoint_with_an_adapter_needs_a_policy_with_one(tmp_path: Path) -> None:
    path = saved(fit(adapted(), 1), tmp_path / "a.ckpt")
    plain = tiny_module()
    with pytest.raises(CheckpointError, match=r"a.ckpt holds an adapter, the policy of this configuration has none"):
        check_checkpoint(path, plain, plain.saved_tensors())
    with pytest.raises(ValueError, match=r"the checkpoint has an adapter of rank 4 and alpha 32, but the policy has none"):
        fit(plain, 2, path)
    path = saved(fit(plain, 1), tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"the checkpoint has no adapter, but the policy has one of rank 4 and alpha 32"):
        fit(adapted(), 2, path)
    with pytest.raises(CheckpointError, match=r"b.ckpt holds no adapter, the policy of this configuration has one"):
        check_checkpoint(path, other := adapted(), other.saved_tensors())


def test_what_is_exported_is_the_adapted_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = tiny_module(add_lora(LetteringPolicy.from_pretrained(), rank=4), kl_coef=0.01)
    for name, x in adapter_tensors(module.policy).items():
        if "lora_B" in name:
            torch.nn.init.normal_(x, std=0.05)
    tokens = drawn(module.policy)
    exported = LetteringPolicy.from_pretrained(export_policy(module.policy, tmp_path / "out.safetensors"))
    difference = (log_probs(exported, tokens) - log_probs(module.policy, tokens)).abs().max()
    assert difference < 1e-5 * 25  # logits are as large as 25
    assert (log_probs(LetteringPolicy.from_pretrained(), tokens) - log_probs(module.policy, tokens)).abs().max() > 0.1


def test_loading_a_checkpoint_for_export_restores_the_adapter(tmp_path: Path) -> None:
    trained = fit(adapted(), 2)
    path = saved(trained, tmp_path / "a.ckpt")
    fresh = adapted()
    load_checkpoint(path, fresh, fresh.saved_tensors())
    for name, x in adapter_tensors(trained.policy).items():
        assert torch.equal(x, adapter_tensors(fresh.policy)[name])


@pytest.mark.parametrize(
    ("name", "message"), [("x.bin", "must end in .safetensors or .pth"), ("there.pth", "exists; give another name")]
)
def test_outputs_that_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.pth").touch()
    with pytest.raises(ValueError, match=message):
        export_policy(tiny_policy(), tmp_path / name)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "lora.yaml"
    few = path.with_name("few.jsonl")
    few.write_text("".join((ASSETS / "validation.jsonl").read_text().splitlines(keepends=True)[:8]))
    path.write_text(
        f"""
        model:
          policy:
            class_path: varrl_lightning.add_lora
            init_args:
              rank: 2
              policy: {{class_path: varrl_lightning.LetteringPolicy.from_pretrained}}
          kl_coef: 0.01
          m: 4
          optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.01}}}}
        data: {{train: builtin:lettering/train.jsonl, validation: {few}}}
        trainer: {{accelerator: cpu, max_steps: 2, limit_val_batches: 1, enable_progress_bar: false}}
        """
    )
    return path


def run(config: Path, folder: str, *more: str) -> Path:
    """Train by the command; return the last checkpoint."""
    assert main(["fit", "--config", str(config), *QUICK, "--trainer.default_root_dir", folder, *more]) == 0
    return Path(folder) / "checkpoints" / "last.ckpt"


def test_a_resumed_run_is_the_uninterrupted_one(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = Path("tiny.yaml")
    text = config.read_text().replace("varrl_lightning.LetteringPolicy.from_pretrained", "tiny.tiny_policy")
    tiny.write_text(text.replace("m: 4", "m: 2"))
    whole = run(tiny, "whole", "--trainer.max_steps", "4")
    half = run(tiny, "half")
    resumed = run(tiny, "half", "--trainer.max_steps", "4", "--ckpt_path", str(half))
    one, other = (torch.load(path, weights_only=True) for path in (whole, resumed))
    assert one["varrl"] == other["varrl"]
    for name, x in one["state_dict"].items():
        assert torch.equal(x, other["state_dict"][name]), name


def test_from_a_configuration_to_an_exported_file(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    last = run(config, "run")
    assert last.stat().st_size < 1_000_000, "the base's 4 MB are not in it"
    assert main(["export", "--config", "run/config.yaml", "--ckpt_path", str(last), "--output", "out/w.safetensors"]) == 0
    assert "out/w.safetensors: " in capsys.readouterr().out
    before, after = (LetteringPolicy.from_pretrained(*path).transformer.state_dict() for path in ([], ["out/w.safetensors"]))
    assert before.keys() == after.keys() == load_file("out/w.safetensors").keys()
    assert not torch.equal(before["blocks.0.qkv.weight"], after["blocks.0.qkv.weight"])
    assert torch.equal(before["letter.weight"], after["letter.weight"])
    assert main(["export", "--config", str(config), "--output", "out/w.safetensors"]) == 1
    assert "exists; give another name" in capsys.readouterr().err
    assert main(["export", "--config", str(config)]) == 2
    assert main(["export", "--config", str(config), "--output", "w.pth", "--dtype", "half"]) == 2
    assert "argument --dtype: invalid choice: 'half' (choose from 'float32', 'bfloat16', 'float16')" in capsys.readouterr().err
