"""Typing errors, values out of range and a missing GPU are said before a policy is built, by every command that builds one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fresh import Fresh
from jsonargparse import Namespace, dict_to_namespace
from tiny import TinyPolicy, tiny_policy

import varrl_lightning
from varrl_lightning.__main__ import main
from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.commands.early_checks import check_devices, check_model, check_plugins
from varrl_lightning.commands.fit_config import ParsedConfig
from varrl_lightning.commands.user_errors import BUILD_ERRORS
from varrl_lightning.configuration.files import shipped_configs

COMMANDS = ("fit", "validate", "test", "predict", "doctor")
LOADED: list[str] = []


def weighty_policy() -> TinyPolicy:
    """Stands for gigabytes."""
    LOADED.append("it was loaded")
    return tiny_policy()


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    LOADED.clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    yield
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


# --- every command ------------------------------------------------------------------------------------------------------------


def written(policy: str = "test_early_checks.weighty_policy", **trainer: Any) -> list[str]:
    Path("t.jsonl").write_text("".join(json.dumps({"text": f'"{word}"'}) + "\n" for word in ("STONE", "RIVER")))
    model = {
        "policy": {"class_path": policy},
        "reward": "tiny.LeftBright",
        "mask_source": "full",
        "m": 2,
    }
    data = {"train": "t.jsonl", "validation": "t.jsonl", "test": "t.jsonl", "predict": "t.jsonl", "overlap": "ignore"}
    Path("t.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"} | trainer}))
    return ["--config", "t.yaml"]


def said(command: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that is refused before anything is loaded or written."""
    assert main([command, *arguments]) == 2
    assert not LOADED
    assert not Path("runs").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "doctor"])
def test_a_typing_error_is_said_before_weights_are_loaded(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = said(command, [*written(), "--model.m=256p"], capsys)
    assert "m must be a number of scales or a resolution such as '256px', got '256p'" in error


def test_so_is_one_in_the_score(fresh: Fresh) -> None:
    """In a fresh process, where no type checker runs in front of the package's own check."""
    written(policy="weighty.policy")
    Path("weighty.py").write_text(
        "from varrl_lightning.policies.base import VARPolicy\n\ndef policy() -> VARPolicy:\n    raise SystemExit('it was loaded')\n"
    )
    code = f"""
import os
os.chdir({str(Path.cwd())!r})
from varrl_lightning.__main__ import main
for command in {COMMANDS}:
    print(main([command, "--config=t.yaml", "--model.reward=ocr", "--model.score=smapler"]))
"""
    run = fresh(code, path=Path.cwd())
    assert run.stdout.split() == ["2"] * len(COMMANDS)
    assert run.stderr.count("score must be one of model, sampler, guided, corrected, got 'smapler'") == len(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said_before_weights_are_loaded(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = said(command, written(accelerator="gpu"), capsys)
    assert "the Trainer cannot have accelerator gpu, devices auto" in error
    assert "Set what this machine has: --trainer.accelerator auto" in error


def test_a_plugin_that_is_not_installed_is_said_before_weights_are_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no reward named 'brightnes'" in said("fit", [*written(), "--model.reward=brightnes"], capsys)
    for argument in ("reward", "evaluate_with"):
        within = f"--model.{argument}={{class_path: rank_of, init_args: {{reward: brightnes}}}}"
        assert "no reward named 'brightnes'" in said("fit", [*written(), within], capsys)
        within = f"--model.{argument}={{class_path: rank_of, init_args: {{reward: {{class_path: ocr, init_args: {{lma: 1}}}}}}}}"
        assert "'ocr' has no init_arg 'lma'. Did you mean 'lam'" in said("fit", [*written(), within], capsys)
    listed = "--model.evaluate_with=[tesseract, {class_path: rank_of, init_args: {reward: brightnes}}]"
    assert "no reward named 'brightnes'" in said("fit", [*written(), listed], capsys)
    weights = "--model.evaluate_with={ocr: 1.0}"
    assert "expected a reward for 'ocr'" in said("fit", [*written(), weights], capsys)


def test_the_machine_is_asked_without_a_word(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VarrlCLI, "_run_subcommand", lambda self, name: None)
    VarrlCLI(["fit", *written(logger=False)])
    printed = capfd.readouterr()
    assert (printed.out + printed.err).count("GPU available") <= 1
    assert LOADED


# --- one check after the other ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parsed() -> Namespace:
    """A configuration in which nothing but the policy is given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        config: Namespace = ParsedConfig(["fit", "--model.policy=tiny.tiny_policy", "--model.m=2"]).config.fit
    return config


def changed(part: Namespace, changes: dict[str, Any]) -> Namespace:
    """Other values, by dotted name, as a configuration file has them."""
    part = part.clone()
    for name, value in changes.items():
        part[name] = dict_to_namespace(value) if isinstance(value, dict) and name != "reward" else value
    return part


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 0}, "m must be at least 1, and at most the number of scales, got 0"),
        ({"m": "px"}, "got 'px'"),
        ({"m": "0px"}, "no scale fits resolution 0"),
        ({"score": {"kind": "corrected", "max_weight": 0.5}}, "max_weight must be >= 1"),
        ({"alternation": ["prefx*3", "suffix"]}, "unknown stage 'prefx' in alternation"),
        ({"alternation": ["prefix*x"]}, "a count in alternation"),
        ({"alternation": []}, "at least one stage"),
        ({"clip_low": 2.0}, r"clip_low must be in \[0, 1\]"),
        ({"kl_coef": -1.0}, "kl_coef must be >= 0"),
        ({"kl.estimator": "k4"}, "estimator"),
        ({"mask.dilation": -1}, "mask.dilation must be 0 or more"),
        ({"normalise.tokens": "constant"}, "normalise.constant goes with"),
        ({"guards.max_bad_steps": 0}, "guards.max_bad_steps must be at least 1"),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"group_size": 4, "images_per_prompt": 8}, "which exclude each other: set one of them to null"),
        ({"stages": [Namespace(start=0, stop=4, branches=4)], "images_per_prompt": 8}, "says nothing beside stages"),
        (
            {"stages": [Namespace(start=0, stop=4, branches=4)], "num_continuations": 0},
            "which scores drafts, says nothing beside stages",
        ),
        ({"m": 2.5}, "m must be an integer or a resolution such as '256px', got 2.5"),
        ({"num_continuations": 1.5}, "num_continuations must be an integer, got 1.5"),
        ({"num_continuations": True}, "num_continuations must be an integer, got True"),
        ({"suffix_starts": 1.5}, "suffix_starts must be an integer, got 1.5"),
        ({"updates_per_rollout": 1.5}, "updates_per_rollout must be an integer, got 1.5"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
        ({"eval_seed": None}, "eval_seed must be an integer, got None"),
        ({"group_size": 8.0}, "group_size must be an integer or None, got 8.0"),
        ({"images_per_prompt": 16.0}, "images_per_prompt must be an integer or None, got 16.0"),
        ({"calibrate_every": 1.5}, "calibrate_every must be an integer or None, got 1.5"),
        ({"images_at_once": "auto"}, "images_at_once must be an integer or None, got 'auto'"),
        ({"micro_batch_size": 2.5}, "micro_batch_size must be an integer or auto or None, got 2.5"),
        ({"micro_batch_size": "None"}, "micro_batch_size must be an integer or auto or None, got 'None'"),
        ({"first_scale": "untrained"}, "first_scale must be one of trained, shared, per_branch, got 'untrained'"),
        ({"alternation": "prefix"}, r"alternation must be a list of names of stages, as in \['prefix\*3'\], got 'prefix'"),
        ({"num_continuations": -1}, r"num_continuations \(K\) must be at least 0, which scores drafts, got -1"),
        ({"stages": [Namespace(start=0, stop=2, branches=4, continuations=-1)]}, r"\(K\) must be at least 0"),
        ({"calibrate_every": 10}, "with num_continuations = 2 no draft is trained on"),
        ({"num_continuations": 0, "calibrate_every": 0}, "calibrate_every must be at least 1"),
        ({"num_continuations": 0, "calibrate_every": 9, "alternation": ["all"]}, "has no prefix"),
        ({"calibrate_every": 9, "stages": [Namespace(start=0, stop=2, branches=4)]}, "`stages` spells the cycle out"),
        ({"micro_batch_size": 0}, "micro_batch_size must be at least 1"),
        ({"images_at_once": 0}, "images_at_once must be at least 1"),
        ({"updates_per_rollout": 0}, "updates_per_rollout must be at least 1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be > 0"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\)"),
        ({"eta": 0.0}, "eta must be > 0"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"sampling": {"top_p": 2.0}}, r"top_p must be in \(0, 1\]"),
        ({"sampling": {"top_k": -1}}, "top_k must be 0"),
        ({"stages": [Namespace(start=3, stop=2, branches=4)]}, "a stage needs 0 <= start < stop"),
        ({"stages": []}, "stages must hold at least one stage"),
        ({"reward": "brightnes"}, "no reward named 'brightnes'"),
        ({"reward": {"ocr": 1.0, "brightnes": 0.5}}, "no reward named 'brightnes'"),
        ({"reward": {"a": {"reward": {"class_path": "ocr", "init_args": {"detct": True}}}}}, "has no init_arg 'detct'"),
        ({"mask_source": "boxs"}, "no mask source named 'boxs'"),
        ({"evaluate_with": "tesserac"}, "no reward named 'tesserac'"),
        ({"evaluate_with": ["tesseract", {"class_path": "ocr", "init_args": {"detct": True}}]}, "has no init_arg 'detct'"),
        ({"evaluate_with": {"mine": "tesserac"}}, "no reward named 'tesserac'"),
        (
            {"evaluate_with": ["ocr", "tesseract", {"class_path": "ocr"}]},
            r"more than one reward named 'ocr'.*as in \{ocr: ocr, ocr_2",
        ),
        ({"evaluate_with": {"ocr": 1.0}}, r"expected a reward for 'ocr' \(a name, .*\), got 1.0. .*have no weights: write a list"),
        ({"evaluate_with": {"mine": {"reward": "ocr", "weight": 0.5}}}, "expected a reward for 'mine'.*have no weights"),
        ({"evaluate_with": [["ocr"]]}, r"expected a reward \(a name, .*got \['ocr'\]"),
        ({"evaluate_with": 2}, r"expected a reward \(a name, .*got 2"),
        ({"evaluate_with": ["auto", "ocr"]}, "auto stands alone, and is Tesseract"),
        ({"evaluate_with": {"a/b": "ocr"}}, "the name 'a/b' becomes part of metrics' names"),
    ],
)
def test_what_needs_no_policy_is_checked(parsed: Namespace, changes: dict[str, Any], message: str) -> None:
    model = changed(parsed.model, changes)
    with pytest.raises(BUILD_ERRORS, match=message):
        _ = check_model(model), check_plugins(model)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"m": 900},
        {"m": "1000px"},
        {"stages": [Namespace(start=0, stop=120, branches=4)]},
        {"m": 1, "first_scale": "shared"},
        {"suffix_starts": 3},
        {"sampling": {"cfg": (1.0, 2.0, 3.0)}},
        {"score": {"kind": "sampler", "sampling": {"top_k": 3}}},
        {"evaluate_with": {"class_path": "ocr", "init_args": {"detect": False}}},
        {"evaluate_with": ["ocr", "tiny.LeftBright"]},
        {"evaluate_with": {"mine": {"class_path": "ocr", "init_args": {"detect": False}}, "other": "ocr"}},
        {"evaluate_with": []},
        {"evaluate_with": None},
        {"reward": {"text": {"reward": "ocr", "weight": 2.0}, "tiny.LeftBright": 1}},
    ],
)
def test_what_only_the_policy_decides_is_left_to_it(parsed: Namespace, changes: dict[str, Any]) -> None:
    model = changed(parsed.model, changes)
    check_model(model)
    check_plugins(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"m": 11}, r"m must be within \[1, 10\], the number of scales, got 11"),
        ({"m": "4px"}, "no scale fits resolution 4"),
        ({"sampling": {"cfg": (1.0, 2.0)}}, "one for each of the 10 scales, got 2"),
        ({"stages": [Namespace(start=0, stop=12, branches=4)]}, "ends after the last of 10 scales"),
        ({"suffix_starts": 3}, "starts must divide the 16 branches"),
        ({"m": 1, "first_scale": "shared"}, "a prefix needs m of at least 2, got 1"),
        ({"num_continuations": 0, "alternation": ["suffix"]}, "num_continuations = 0 scores the drafts .* has no prefix"),
        ({"stages": [Namespace(start=3, stop=10, branches=4, continuations=0)]}, "ends with the last scale"),
        ({"images_per_prompt": 7}, "must be a multiple of the 2 images of a branch"),
    ],
)
@pytest.mark.parametrize("adapted", [False, True])
def test_the_scales_of_a_published_name_are_known(parsed: Namespace, changes: dict[str, Any], message: str, adapted: bool) -> None:
    """No file is looked for, not even whether it exists."""
    arguments = {"path": "nowhere/VAR_d16.pth", "tokenizer": "x"}
    policy: dict[str, Any] = {"class_path": "varrl_lightning.ImageNetVARPolicy.from_pretrained", "init_args": arguments}
    if adapted:
        policy = {"class_path": "varrl_lightning.add_lora", "init_args": {"policy": policy, "rank": 4}}
    check_model(changed(parsed.model, {"policy": policy}))
    with pytest.raises(ValueError, match=message):
        check_model(changed(parsed.model, {"policy": policy} | changes))


class WholeImages:
    """A mask source that cannot be built before training, and then refuses drafts."""

    whole_images = True

    def __init__(self) -> None:
        raise AssertionError("it was built")

    def __call__(self, *_: object) -> None: ...


def test_a_mask_source_that_refuses_drafts_is_not_even_built(parsed: Namespace) -> None:
    arguments = {"path": "nowhere/var_d16.pth", "tokenizer": "x"}
    policy = {"class_path": "varrl_lightning.ImageNetVARPolicy.from_pretrained", "init_args": arguments}
    changes = {"policy": policy, "mask_source": "test_early_checks.WholeImages"}
    with pytest.raises(ValueError, match=r"'WholeImages' needs whole images .* 'prefix' has 0 continuations"):
        check_plugins(changed(parsed.model, changes | {"num_continuations": 0}))
    stages = [Namespace(start=0, stop=2, branches=4, continuations=0, name="coarse")]
    with pytest.raises(ValueError, match=r"stage 'coarse' has 0 continuations"):
        check_plugins(changed(parsed.model, {"mask_source": changes["mask_source"], "stages": stages}))
    for fine in (
        {"num_continuations": 1},
        {"num_continuations": 0, "m": 10},
        {"num_continuations": 0, "m": 10, "alternation": ["suffix"]},
    ):
        check_plugins(changed(parsed.model, changes | fine))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "gpuu"}, "accelerator gpuu"),
        ({"devices": -3}, "devices -3"),
        ({"devices": [0, 1]}, r"devices \[0, 1\]"),
        ({"strategy": "ddpp"}, "strategy ddpp"),
        ({"accelerator": "tpu"}, "accelerator tpu"),
    ],
)
def test_devices_that_are_not_there_are_named(parsed: Namespace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BUILD_ERRORS, match=message):
        check_devices(changed(parsed.trainer, {"accelerator": "cpu"} | changes))


@pytest.mark.parametrize("recipe", sorted(name for name in shipped_configs() if not name.startswith(("pretrain_", "comparison"))))
def test_every_shipped_configuration_passes(parsed: Namespace, recipe: str) -> None:
    model = changed(parsed.model, yaml.safe_load(shipped_configs()[recipe].read_text())["model"])
    check_model(model)
    check_plugins(model)


@pytest.mark.parametrize("family", ["ImageNetVARPolicy", "SwittiPolicy", "InfinityPolicy", "TokenFlowPolicy", "LLMPrefixPolicy"])
def test_a_dtype_that_does_not_exist_is_said_before_a_file_is_read(family: str) -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'bfloat'"):
        getattr(varrl_lightning, family).from_pretrained("/nowhere/x.pth", "/nowhere/y.pth", dtype="bfloat")
