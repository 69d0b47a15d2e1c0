"""Checkpoints of the families' own trainers: the wanted state dict is found, said in one line, or the choices are listed."""

from __future__ import annotations

import argparse
import re
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.weights.stored import TENSORS, same
from varrl_lightning.weights.loading import read_tensors

OTHER = {"encoder.weight": torch.ones(2, 2), "codes": torch.ones(3)}
MARKS = ("a.weight", "c")
MOMENTS = {"state": {name: {"exp_avg": x, "step": torch.tensor(3.0)} for name, x in TENSORS.items()}, "param_groups": [{"lr": 0.1}]}
"""An optimizer's, by names of weights, as FSDP writes it."""
INNER_MOMENTS = {"exp_avg": TENSORS, "exp_avg_sq": TENSORS}


def written(content: Any, folder: Path, name: str = "x.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == "", "commands print JSON there"
    return captured.err.splitlines()


VAR = {
    "epoch": 1,
    "iter": 2,
    "trainer": {"config": {"patch_nums": (1, 2)}, "var_wo_ddp": TENSORS, "vae_local": OTHER},
    "args": {"lr": 0.1},
}
INFINITY = {
    "args": OrderedDict(model="2b", bed=None),
    "epoch": 3,
    "trainer": {"config": {}, "vae_local": OTHER, "gpt_fsdp": TENSORS, "gpt_fsdp_opt": MOMENTS},
    "milestones": [(1.0, 2.0)],
}


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (VAR, "trainer/var_wo_ddp (epoch 1, iter 2)"),
        (VAR | {"trainer": VAR["trainer"] | {"var_opt": {"optimizer": MOMENTS}}}, "trainer/var_wo_ddp (epoch 1, iter 2)"),  # type: ignore[operator]
        (INFINITY, "trainer/gpt_fsdp (epoch 3)"),
        ({"gpt_fsdp": TENSORS, "global_step": 7}, "gpt_fsdp (global_step 7)"),
        (
            {"trainer": {"gpt_wo_ddp": TENSORS, "gpt_opt": {"scaler": {"scale": torch.ones(1)}, "optimizer": INNER_MOMENTS}}},
            "trainer/gpt_wo_ddp",
        ),
        ({"model_ema": TENSORS, "vae_ema": OTHER}, "model_ema"),
        (
            {"state_dict": TENSORS, "optimizer_states": [MOMENTS], "lr_schedulers": [], "epoch": 0, "global_step": 5},
            "state_dict (epoch 0, global_step 5)",
        ),
        (
            {"module": TENSORS, "buffer_names": [], "param_shapes": [{"a.weight": torch.Size([2, 3])}], "global_steps": 9},
            "module (global_steps 9)",
        ),
        ({"trainer": {"student": {"net": TENSORS, "iter": 4}}}, "trainer/student/net (iter 4)"),
        ({"weights": TENSORS, "rng_state": torch.zeros(5, dtype=torch.uint8), "metrics": {"acc": torch.tensor(1.0)}}, None),
    ],
)
def test_the_wanted_state_dict_is_found_and_said(
    content: Any, taken: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(content, tmp_path)
    assert same(read_tensors(path, marks=MARKS))
    assert said(capsys) == [f"{path}: took the tensors of {taken or 'weights'}"]


def test_what_the_caller_wants_decides_between_policy_and_tokenizer(tmp_path: Path) -> None:
    path = written(INFINITY, tmp_path)
    assert same(read_tensors(path, marks=MARKS))
    assert same(read_tensors(path, marks=("encoder.weight",)), OTHER)


@pytest.mark.parametrize("marks", [(), MARKS])
def test_the_only_state_dict_is_taken_without_marks_too(marks: tuple[str, ...], tmp_path: Path) -> None:
    assert same(read_tensors(written({"epoch": 3, "trainer": {"anything": TENSORS, "opt": MOMENTS}}, tmp_path), marks=marks))


def test_several_that_could_be_meant_are_refused_with_the_choices(tmp_path: Path) -> None:
    averaged = {name: x + 1 for name, x in TENSORS.items()}
    inner = INFINITY["trainer"] | {"gpt_ema_fsdp": averaged}  # type: ignore[operator]
    path = written(INFINITY | {"trainer": inner}, tmp_path)
    both = rf"{path}::trainer/gpt_fsdp, {path}::trainer/gpt_ema_fsdp"
    message = rf"{path} holds several state dicts that could be meant; choose one of {both}$"
    with pytest.raises(ValueError, match=message):
        read_tensors(path, marks=MARKS)
    assert same(read_tensors(f"{path}::trainer/gpt_ema_fsdp", marks=MARKS), averaged)
    assert same(read_tensors(f"{path}::/trainer/gpt_fsdp/", marks=MARKS))
    assert same(read_tensors(f"{path}::trainer/vae_local"), OTHER), "whatever it is: it was asked for"


def test_a_key_may_end_above_the_state_dict(tmp_path: Path) -> None:
    path = written({"a": VAR["trainer"], "b": {"var_wo_ddp": OTHER | TENSORS}}, tmp_path)
    assert same(read_tensors(f"{path}::a", marks=MARKS))
    with pytest.raises(ValueError, match=rf"several state dicts below a; choose one of {path}::a/var_wo_ddp, {path}::a/vae_local$"):
        read_tensors(f"{path}::a")


@pytest.mark.parametrize("key", ["trainer/gpt", "gpt_fsdp", "trainer/gpt_fsdp_opt", "epoch"])
def test_a_key_that_is_not_there(key: str, tmp_path: Path) -> None:
    path = written(INFINITY, tmp_path)
    with pytest.raises(ValueError, match=rf"has no state dict {key}; it has {path}::trainer/vae_local, {path}::trainer/gpt_fsdp$"):
        read_tensors(f"{path}::{key}", marks=MARKS)


def test_one_state_dict_of_several_models_is_refused_with_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = {f"var.{name}": x for name, x in TENSORS.items()} | {f"vae.{name}": x for name, x in OTHER.items()}
    path = written({"state_dict": both}, tmp_path)
    with pytest.raises(ValueError, match=rf"beside others such as vae\.encoder\.weight; choose one of {path}::state_dict/var$"):
        read_tensors(path, marks=MARKS)
    assert same(read_tensors(f"{path}::state_dict/var", marks=MARKS))
    assert said(capsys) == [f"{path}: took the tensors of state_dict/var"]
    twice = both | {f"ema.{name}": x for name, x in TENSORS.items()}
    with pytest.raises(ValueError, match=re.escape("2.pth::ema") + ", .*" + re.escape("2.pth::var") + "$"):
        read_tensors(written(twice, tmp_path, "2.pth"), marks=MARKS)


def test_tensors_beside_an_inner_state_dict_are_not_dropped_silently(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"several state dicts that could be meant; choose one of .*x\.pth, .*x\.pth::ema$"):
        read_tensors(written(TENSORS | {"ema": TENSORS}, tmp_path), marks=MARKS)
    with pytest.raises(ValueError, match=r"holds more than named tensors: epoch \(int\); all its names: a.weight, b, c, epoch$"):
        read_tensors(written(TENSORS | {"epoch": 3}, tmp_path), marks=MARKS)
    with pytest.raises(ValueError, match=r"under 'model', holds more than named tensors: config \(dict\)"):
        read_tensors(written({"model": TENSORS | {"config": {}}}, tmp_path), marks=MARKS)


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"model": {}}, {"optimizer": MOMENTS}, {"trainer": {"opt": {"exp_avg": TENSORS}}}]
)
def test_a_file_without_any_model(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds more than named tensors"):
        read_tensors(written(content, tmp_path), marks=MARKS)


def test_a_checkpoint_of_ones_own_run_is_to_be_exported(tmp_path: Path) -> None:
    path = written(
        {"state_dict": {f"policy.transformer.{n}": x for n, x in TENSORS.items()}, "varrl": {"seed": 0}}, tmp_path, "last.ckpt"
    )
    with pytest.raises(ValueError, match=rf"checkpoint of a fit run.*varrl export --config CONFIG --ckpt_path {path} --output"):
        read_tensors(path, marks=MARKS)


def test_arguments_that_a_trainer_kept_are_read_as_values(tmp_path: Path) -> None:
    args = argparse.Namespace(
        lr=1e-3, data=Path("/data"), inner=types.SimpleNamespace(a=[1]), best=np.float64(0.5), seen=np.int64(3)
    )
    for name, zipped in (("new.pth", True), ("old.pth", False)):
        torch.save({"model": TENSORS, "args": args}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert same(read_tensors(tmp_path / name, marks=MARKS))


class Calls:
    """What a harmful pickle would hold."""

    def __reduce__(self) -> Any:
        return print, ("a pickle ran code",)


@pytest.mark.parametrize("inside", [Calls(), argparse.Namespace(x=Calls()), {"epoch": [Calls()]}])
def test_no_code_runs(inside: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written({"trainer": {"var_wo_ddp": TENSORS}, "args": inside}, tmp_path)
    with pytest.raises(ValueError, match=r"would call (builtins\.|__builtin__\.)?print when read.*refused"):
        read_tensors(path, marks=MARKS)
    assert said(capsys) == []


def test_a_folder_of_a_trainer_is_read_without_what_lies_beside_the_weights(tmp_path: Path) -> None:
    """Switti's: the weights of its last step, and a file that says which step that was."""
    torch.save(TENSORS, tmp_path / "model_state_dict.pt")
    for beside in ("metadata.pt", "optimizer.bin", "scheduler.bin", "rng_state_0.pth", "training_args.bin"):
        torch.save({"iter": 3, "args": {}}, tmp_path / beside)
    assert same(read_tensors(tmp_path, marks=MARKS))
    torch.save(TENSORS, tmp_path / "model_1000_state_dict.pt")
    with pytest.raises(
        ValueError, match=r"has 2 weights files, model_1000_state_dict\.pt, model_state_dict\.pt; give the file name"
    ):
        read_tensors(tmp_path, marks=MARKS)


def test_a_file_that_is_read_for_two_models_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written({"model": TENSORS}, tmp_path)
    read_tensors(path, marks=MARKS)
    read_tensors(path, marks=MARKS)
    assert len(said(capsys)) == 1


def wrapped(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: x for name, x in TENSORS.items()}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "_forward_module.",
    "model.",
    "module._orig_mod.",
    "_forward_module.model.",
    "model.module._orig_mod.",
    "_fsdp_wrapped_module.",
]


@pytest.mark.parametrize("marks", [(), MARKS])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapper_around_all_names_is_taken_off(
    prefix: str, marks: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(wrapped(prefix), tmp_path)
    assert same(read_tensors(path, marks=marks))
    (line,) = said(capsys)
    assert line.startswith(f"{path}: took the tensors, names without ")
    assert all(f"{part}." in line for part in prefix.split(".") if part)


def test_wrappers_and_inner_dicts_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written({"trainer": {"gpt_fsdp": wrapped("module."), "vae_local": OTHER}, "epoch": 2}, tmp_path)
    assert same(read_tensors(path, marks=MARKS))
    assert said(capsys) == [f"{path}: took the tensors of trainer/gpt_fsdp (epoch 2), names without module."]


def test_a_wrapper_inside_of_names_and_around_some_alone(tmp_path: Path) -> None:
    assert same(
        read_tensors(written({"a._orig_mod.weight": TENSORS["a.weight"], "b": TENSORS["b"], "_orig_mod.c": TENSORS["c"]}, tmp_path))
    )


def test_any_prefix_of_all_names_is_a_wrappers_where_the_layout_is_known(tmp_path: Path) -> None:
    path = written({"state_dict": wrapped("net.var.")}, tmp_path)
    assert same(read_tensors(path, marks=MARKS))
    assert read_tensors(path).keys() == wrapped("net.var.").keys(), "it might be the model's own name"


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 1))
    path = written({"model_ema": averaged.state_dict()}, tmp_path)
    assert read_tensors(path, marks=("weight",)).keys() == read_tensors(path).keys() == {"weight", "bias"}


@pytest.mark.parametrize("marks", [(), MARKS])
def test_a_prefix_of_some_names_alone_is_the_models_own(marks: tuple[str, ...], tmp_path: Path) -> None:
    tensors = {"model.x": torch.ones(1), "module.y": torch.ones(1)}
    assert read_tensors(written(tensors, tmp_path), marks=marks).keys() == tensors.keys()


def test_a_model_whose_own_names_have_the_prefix_keeps_them(tmp_path: Path) -> None:
    """TokenFlow's and other Llamas: `model.layers...` beside `lm_head`, or alone."""
    names = {"model.embed_tokens.weight": torch.ones(2, 2), "model.norm.weight": torch.ones(2)}
    path = written(names, tmp_path)
    assert read_tensors(path, marks=("model.embed_tokens.weight",)).keys() == names.keys()
    path = written({f"module.{name}": x for name, x in names.items()}, tmp_path)
    assert read_tensors(path, marks=("model.embed_tokens.weight",)).keys() == names.keys()


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: there are several tensors b, with and without a wrapper's _orig_mod\."):
        read_tensors(written(TENSORS | {"_orig_mod.b": torch.ones(1)}, tmp_path))
