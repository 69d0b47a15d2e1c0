"""Names of version 0.1 are answered with those of today, or mapped where a checkpoint has them."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import tiny_module

from varrl_lightning import VARGRPO
from varrl_lightning.__main__ import main
from varrl_lightning.configuration.renamed import ARGUMENTS, MODULES, renamed_arguments, renamed_path, said_of
from varrl_lightning.errors import SpecError
from varrl_lightning.grpo.credit import MaskOptions
from varrl_lightning.training.guards import Guards


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("prompt_sets", "text_prompts")])
def test_an_import_of_an_old_module_says_the_new_one(name: str) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=rf"varrl_lightning\.{name} of version 0\.1 is now varrl_lightning\.{MODULES[name]}$"
    ):
        importlib.import_module(f"varrl_lightning.{name}")


@pytest.mark.parametrize("path", sorted(set(MODULES.values())))
def test_every_new_module_is_there(path: str) -> None:
    assert importlib.util.find_spec(f"varrl_lightning.{path}") is not None


@pytest.mark.parametrize("name", ["text_prompts", "prompt_sets"])
def test_python_m_of_the_prompt_tools_keeps_working(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"varrl_lightning.{name}", run_name="__main__")
    assert stopped.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_other_names_are_left_alone() -> None:
    assert renamed_path("varrl_lightning.rewards.ocr.OCRReward") == "varrl_lightning.rewards.ocr.OCRReward"
    assert renamed_path("mine.lora.add_lora") == "mine.lora.add_lora"
    assert renamed_path("varrl_lightning.lora.add_lora") == "varrl_lightning.policies.lora.add_lora"
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'varrl_lightning\.nothing'"):
        importlib.import_module("varrl_lightning.nothing")


@pytest.mark.parametrize(("old", "new"), ARGUMENTS.items())
def test_an_old_option_is_answered_with_the_new_one(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "quickstart.yaml", f"--model.{old}=1"]) == 2
    version = "0.2" if old == "judge" else "0.1"
    assert f"model.{old} of version {version} is now model.{new}" in capsys.readouterr().err


def test_the_old_name_of_a_plugin_is_answered_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--model.judge", "tesseract"], ["--model.judge=null"], ["--model.judge.init_args.lang", "deu"]):
        assert main(["fit", "--config", "quickstart.yaml", *option]) == 2
        assert "model.judge of version 0.2 is now model.evaluate_with" in capsys.readouterr().err
    judge = {"class_path": "tesseract", "init_args": {"lang": "deu"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"judge": judge}}))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "has names of an earlier version" in said
    assert 'model.judge: {"class_path": "tesseract", "init_args": {"lang": "deu"}} -> model.evaluate_with: {"class_path"' in said


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_old_argument_in_python_is_answered_with_the_new_one(name: str) -> None:
    class Own(VARGRPO):
        def __init__(self, judge: str, **rest: Any) -> None:
            super().__init__(**rest)
            self.own = judge

    with pytest.raises(SpecError, match=f"^{said_of(name)}$"):
        tiny_module(**{name: None})
    arguments: dict[str, Any] = {"policy": {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "m": 2}
    assert Own(judge="mine", evaluate_with=[], **arguments).own == "mine", "a module's own argument may have the name"


def test_an_old_configuration_is_answered_with_all_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = {"class_path": "varrl_lightning.lora.add_lora", "init_args": {"rank": 4}}
    tree: dict[str, Any] = {"model": {"policy": policy, "mask_dilation": 8, "kl_mask": "masked", "m": 4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "config.yaml has names of an earlier version" in said
    for line in (
        "model.mask_dilation: 8 -> model.mask.dilation: 8",
        "model.kl_mask: masked -> model.kl.masked: true",
        "class_path: varrl_lightning.lora.add_lora -> varrl_lightning.policies.lora.add_lora",
    ):
        assert line in said


def test_arguments_of_a_checkpoint_are_mapped() -> None:
    old = {"m": 4, "mask_dilation": 8, "kl_mask": "masked", "max_bad_steps": 3, "normaliser": "none"}
    new = {"m": 4, "mask": {"dilation": 8}, "kl": {"masked": True}, "guards": {"max_bad_steps": 3}, "normalise": {"tokens": "none"}}
    assert renamed_arguments(old) == new
    assert renamed_arguments(new) == new


def test_a_checkpoint_of_0_1_is_loaded(tmp_path: Path) -> None:
    """Written by today's code, with the arguments as version 0.1 named them."""
    policy = {"class_path": "tiny.tiny_policy"}
    module = VARGRPO(policy, reward="tiny.LeftBright", mask_source="full", m=2, group_size=4)  # type: ignore[arg-type]
    arguments = {"policy": policy, "reward": "tiny.LeftBright", "mask_source": "full", "m": 2, "group_size": 4}
    arguments |= {"mask_dilation": 8, "mask_outside": 0.5, "max_bad_steps": 3, "agree_every_n_steps": 7, "kl_mask": "unmasked"}
    checkpoint: dict[str, Any] = {
        "state_dict": module.state_dict(),
        "hyper_parameters": arguments,
        "pytorch-lightning_version": "2.6.6",
    }
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    loaded = VARGRPO.load_from_checkpoint(tmp_path / "old.ckpt")
    assert loaded.grpo.credit.mask == MaskOptions(dilation=8, outside=0.5)
    assert loaded.guards == Guards(max_bad_steps=3, check_ranks_every_n_steps=7)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("judge", "names"),
    [("auto", []), (None, []), ("tiny.LeftBright", ["LeftBright"]), ({"class_path": "tiny.LeftBright"}, ["LeftBright"])],
)
def test_a_checkpoint_of_0_2_has_its_judge_under_todays_name(tmp_path: Path, judge: Any, names: list[str]) -> None:
    policy = {"class_path": "tiny.tiny_policy"}
    module = VARGRPO(policy, reward="tiny.LeftBright", mask_source="full", m=2, group_size=4)  # type: ignore[arg-type]
    arguments = {name: value for name, value in module.hparams.items() if name != "evaluate_with"} | {"judge": judge}
    state = {"state_dict": module.state_dict(), "hyper_parameters": arguments, "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(state)
    torch.save(state, tmp_path / "old.ckpt")
    assert list(VARGRPO.load_from_checkpoint(tmp_path / "old.ckpt").judges) == names
    with pytest.raises(SpecError, match=r"judge of version 0\.2 is now evaluate_with"):
        VARGRPO.load_from_checkpoint(tmp_path / "old.ckpt", judge=None)


def test_the_judge_of_a_checkpoint_that_was_an_object_has_to_be_given_again(tmp_path: Path) -> None:
    module = tiny_module({"class_path": "tiny.tiny_policy"}, reward="tiny.LeftBright", evaluate_with=[lambda images, prompts: None])
    arguments = {**module.hparams, "judge": module.hparams["evaluate_with"]}
    del arguments["evaluate_with"]
    state = {"state_dict": module.state_dict(), "hyper_parameters": arguments, "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(state)
    torch.save(state, tmp_path / "old.ckpt")
    with pytest.raises(SpecError, match=r"does not hold .*evaluate_with \(a .*<lambda>\).*evaluate_with=\.\.\."):
        VARGRPO.load_from_checkpoint(tmp_path / "old.ckpt")


def test_todays_checkpoint_is_passed_on_as_it_is(tmp_path: Path) -> None:
    from varrl_lightning.checkpoints.hparams import readable_checkpoint

    torch.save({"hyper_parameters": dict(tiny_module().hparams)}, tmp_path / "new.ckpt")
    assert readable_checkpoint(tmp_path / "new.ckpt") == tmp_path / "new.ckpt"
    assert readable_checkpoint("s3://bucket/x.ckpt") == "s3://bucket/x.ckpt"


def test_arguments_given_beside_a_checkpoint_must_exist(tmp_path: Path) -> None:
    """Lightning leaves out what the module does not take, in silence."""
    torch.save({"state_dict": {}, "hyper_parameters": {}}, tmp_path / "x.ckpt")
    with pytest.raises(SpecError, match=r"mask_dilation of version 0\.1 is now mask\.dilation"):
        VARGRPO.load_from_checkpoint(tmp_path / "x.ckpt", mask_dilation=8)
    with pytest.raises(SpecError, match=r"VARGRPO has no 'alhpa'\. Did you mean 'alpha'"):
        VARGRPO.load_from_checkpoint(tmp_path / "x.ckpt", alhpa=0.5)


@pytest.mark.parametrize(("name", "kind"), [("mask", "MaskOptions"), ("kl", "KLOptions"), ("guards", "Guards")])
def test_a_group_is_a_mapping_or_its_dataclass(name: str, kind: str) -> None:
    with pytest.raises(SpecError, match=f"{name} must be a {kind} or a mapping of its fields, got 3"):
        tiny_module(**{name: 3})
