"""An adapter is merged in fp32 and cast once; what the cast takes from it is measured and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_module, tiny_policy
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.commands.export import export_policy
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lettering import LetteringPolicy
from varrl_lightning.policies.lora import add_lora, cast_loss, merged_tensors

LAYER = "blocks.0.qkv"
QUICK = ["--model.reward", "tiny.LeftBright", "--model.mask_source", "full", "--model.m", "2"]


def adapted(base: torch.dtype = torch.bfloat16, spread: float = 1e-3) -> VARPolicy:
    """After some training: B is normal with this standard deviation."""
    policy = LetteringPolicy.from_pretrained()
    policy.transformer.to(base)
    torch.manual_seed(0)
    add_lora(policy, rank=4)
    for name, parameter in policy.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    return policy


def exact(policy: VARPolicy, layer: str = LAYER) -> tuple[Tensor, Tensor]:
    """W and W + alpha / r B A in fp64, by hand."""
    held = {name: x.detach().double() for name, x in policy.transformer.state_dict().items()}
    weight = held[f"{layer}.base_layer.weight"]
    return weight, weight + 32 / 4 * held[f"{layer}.lora_B.default.weight"] @ held[f"{layer}.lora_A.default.weight"]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16])
def test_the_sum_is_in_fp32_whatever_the_base_is(base: torch.dtype) -> None:
    policy = adapted(base)
    weight, wanted = exact(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as within a Trainer of mixed precision
        merged = merged_tensors(policy)
    assert merged[f"{LAYER}.weight"].dtype == torch.float32
    assert (merged[f"{LAYER}.weight"] - wanted).abs().max() < 1e-6 * (wanted - weight).abs().max() + 1e-7 * weight.abs().max()
    assert merged["letter.weight"].dtype == base, "what is not adapted stays as it is"
    assert policy.transformer.get_submodule(LAYER).base_layer.weight.dtype == base  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_cast_once(dtype: torch.dtype) -> None:
    policy = adapted()
    merged = merged_tensors(policy, dtype)
    assert {x.dtype for x in merged.values() if x.is_floating_point()} == {dtype}
    assert torch.equal(merged[f"{LAYER}.weight"], merged_tensors(policy)[f"{LAYER}.weight"].to(dtype))


@pytest.mark.parametrize("asked", [None, torch.float32])
def test_an_exported_adapter_of_a_bf16_base_keeps_its_update(asked: torch.dtype | None, tmp_path: Path) -> None:
    policy = adapted(spread=1e-4)
    weight, wanted = exact(policy)
    written = load_file(export_policy(policy, tmp_path / "out.safetensors", asked))
    error = (written[f"{LAYER}.weight"] - wanted).norm() / (wanted - weight).norm()
    assert error < 1e-3, "of a bf16 sum it is .9"
    assert {x.dtype for x in written.values()} == {torch.float32}


def test_without_an_adapter_the_dtype_of_the_training_is_kept(tmp_path: Path) -> None:
    policy = tiny_policy()
    policy.transformer.bfloat16()
    written = load_file(export_policy(policy, tmp_path / "out.safetensors"))
    assert {x.dtype for x in written.values()} == {torch.bfloat16}


@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1e-2])
def test_what_a_cast_takes_from_the_update(spread: float) -> None:
    """Against the definition, layer by layer in fp64."""
    policy = adapted(spread=spread)
    layers = [name.removesuffix(".lora_A.default.weight") for name in policy.transformer.state_dict() if "lora_A" in name]
    lost, moved, same, count = 0.0, 0.0, 0.0, 0
    for layer in layers:
        weight, wanted = exact(policy, layer)
        rounded = wanted.float().bfloat16()
        lost += float((rounded - wanted).pow(2).sum())
        moved += float((wanted - weight).pow(2).sum())
        same, count = same + float((rounded == weight).sum()), count + weight.numel()
    loss = cast_loss(policy, torch.bfloat16)
    assert loss is not None
    assert loss.error == pytest.approx((lost / moved) ** 0.5, rel=1e-3)
    assert loss.unchanged == pytest.approx(same / count, abs=1e-3)
    kept = cast_loss(policy, torch.float32)
    assert kept is not None
    assert kept.error == 0


def test_where_nothing_is_merged_nothing_is_lost() -> None:
    assert cast_loss(tiny_policy(), torch.bfloat16) is None
    assert cast_loss(add_lora(tiny_policy(), rank=2), torch.bfloat16) is None, "B is zero"


def test_a_lossy_export_says_what_it_costs(tmp_path: Path) -> None:
    policy = adapted(spread=1e-4)
    loss = cast_loss(policy, torch.bfloat16)
    assert loss is not None
    wanted = (
        rf"out.safetensors: the cast to bfloat16 costs an error of {loss.error:.2%} of the adapter's update, "
        rf"and {loss.unchanged:.2%} of the adapted weights unchanged; float32 keeps all of it"
    )
    with pytest.warns(UserWarning, match=wanted):
        export_policy(policy, tmp_path / "out.safetensors", torch.bfloat16)


def checkpoint_of(config: str, change: Any) -> None:
    """A checkpoint of a configuration's module whose weights were changed."""
    model, _ = ParsedConfig(["fit", "--config", config, *QUICK]).build()
    with torch.no_grad():
        change(model)
    held: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(held)
    Path("run/checkpoints").mkdir(parents=True)
    torch.save(held, "run/checkpoints/last.ckpt")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as a command does
    return tmp_path


def bf16_policy() -> LetteringPolicy:
    policy = tiny_policy()
    policy.transformer.bfloat16()
    return policy


def write_config(policy: str, ema: str) -> str:
    Path("c.yaml").write_text(
        f"model: {{policy: {policy}, ema_decay: {ema}}}\ndata: {{train: builtin:lettering/train.jsonl}}\n"
        "trainer: {default_root_dir: run}\n"
    )
    return "c.yaml"


def test_the_command_says_it_too_and_knows_last(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = "{class_path: tests.policies.test_merging.bf16_policy}"
    config = write_config(f"{{class_path: varrl_lightning.add_lora, init_args: {{rank: 2, policy: {inner}}}}}", "null")

    def train(model: Any) -> None:
        for name, x in model.policy.transformer.named_parameters():
            if "lora_B" in name:
                x.fill_(1e-4)

    checkpoint_of(config, train)
    export = ["export", "--config", config, *QUICK, "--ckpt_path"]
    assert main([*export, "last", "--output", "w.safetensors", "--dtype", "bfloat16"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("w.safetensors: the cast to bfloat16 costs an error of ")
    assert len(captured.err.splitlines()) == 1
    assert main([*export, "last", "--output", "exact.safetensors"]) == 0
    assert capsys.readouterr().err == ""
    assert load_file("exact.safetensors")[f"{LAYER}.weight"].dtype == torch.float32
    assert main([*export, "best", "--output", "best.safetensors"]) == 1
    assert "--ckpt_path best: there is no run/checkpoints/best.ckpt; found there: last.ckpt" in capsys.readouterr().err
    assert not Path("best.safetensors").exists()


def test_the_average_of_bf16_weights_is_exported_in_the_digits_that_it_has(here: Path) -> None:
    config = write_config("{class_path: tests.policies.test_merging.bf16_policy}", ".5")
    shift = 1e-5  # far below bf16's last digit of most weights

    def train(model: Any) -> None:
        for x in model.average.parameters():
            x.add_(shift)

    checkpoint_of(config, train)
    export = ["export", "--config", config, *QUICK, "--ckpt_path", "last", "--weights", "average"]
    assert main([*export, "--output", "average.safetensors"]) == 0
    before, after = bf16_policy().transformer.state_dict(), load_file("average.safetensors")
    assert all(torch.equal(after[name], x.float() + shift) for name, x in before.items())


def test_a_module_of_python_is_exported_likewise(tmp_path: Path) -> None:
    module = tiny_module(adapted(spread=1e-4), m=4)
    weight, wanted = exact(module.policy)
    written = load_file(export_policy(module.policy, tmp_path / "out.safetensors"))
    assert (written[f"{LAYER}.weight"] - wanted).norm() < 1e-3 * (wanted - weight).norm()
