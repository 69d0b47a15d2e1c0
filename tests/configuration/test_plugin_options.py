"""Options that change a part of a reward over a configuration. Costs about four seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from varrl_lightning.__main__ import main
from varrl_lightning.configuration.plugin_options import PluginOption, changed_spec, split_plugin_options
from varrl_lightning.errors import ConfigError

OCR = {"class_path": "ocr", "init_args": {"detect": False, "lam": 1.0}}


def after(spec: Any, *options: str, plugin: str = "model.reward") -> Any:
    """The spec after options such as `ocr.weight=2`."""
    _, changes = split_plugin_options([f"--{plugin}.{option}" for option in options])
    for change in changes:
        spec = changed_spec(spec, change)
    return spec


@pytest.mark.parametrize(
    ("spec", "option", "changed"),
    [
        ("ocr", "init_args.lam=2", {"class_path": "ocr", "init_args": {"lam": 2}}),
        (OCR, "init_args.lam=2", {"class_path": "ocr", "init_args": {"detect": False, "lam": 2}}),
        (
            {"class_path": "ocr"},
            "init_args.engine.class_path=mine.Engine",
            {"class_path": "ocr", "init_args": {"engine": {"class_path": "mine.Engine"}}},
        ),
        (OCR, "class_path=brightness", "brightness"),
        ({"ocr": 1.0}, "ocr=2", {"ocr": 2}),
        ({"ocr": 1.0}, "brightness=.5", {"ocr": 1.0, "brightness": 0.5}),
        ("ocr", "brightness=.5", {"ocr": 1.0, "brightness": 0.5}),
        ("mine.Ink", "ocr=.5", {"Ink": {"reward": "mine.Ink", "weight": 1.0}, "ocr": 0.5}),
        (OCR, "brightness=.5", {"ocr": {"reward": OCR, "weight": 1.0}, "brightness": 0.5}),
        ({"text": {"reward": OCR, "weight": 1.0}}, "text=0", {"text": {"reward": OCR, "weight": 0}}),
        ({"text": {"reward": "ocr"}}, "text.weight=3", {"text": {"reward": "ocr", "weight": 3}}),
        ({"ocr": 1.0}, "ocr.init_args.lam=2", {"ocr": {"reward": {"class_path": "ocr", "init_args": {"lam": 2}}, "weight": 1.0}}),
        (
            {"text": {"reward": OCR, "weight": 0.5}},
            "text.reward.init_args.lam=2",
            {"text": {"reward": {"class_path": "ocr", "init_args": {"detect": False, "lam": 2}}, "weight": 0.5}},
        ),
    ],
)  # fmt: skip
def test_an_option_changes_a_part_of_a_reward(spec: Any, option: str, changed: Any) -> None:
    before = repr(spec)
    assert after(spec, option) == changed
    assert repr(spec) == before


@pytest.mark.parametrize(
    ("spec", "option", "changed"),
    [
        (OCR, "init_args.lam=2", {"class_path": "ocr", "init_args": {"detect": False, "lam": 2}}),
        ("ocr", "ocr.init_args.lam=2", {"ocr": {"class_path": "ocr", "init_args": {"lam": 2}}}),
        ("ocr", "tesseract=tesseract", {"ocr": "ocr", "tesseract": "tesseract"}),
        (None, "mine=ocr", {"mine": "ocr"}),
        (
            ["tesseract", OCR],
            "ocr.init_args.lam=2",
            {"tesseract": "tesseract", "ocr": {"class_path": "ocr", "init_args": {"detect": False, "lam": 2}}},
        ),
        ({"mine": "ocr", "b": "c"}, "mine.init_args.lam=2", {"mine": {"class_path": "ocr", "init_args": {"lam": 2}}, "b": "c"}),
        ({"mine": "ocr"}, "mine.class_path=tesseract", {"mine": "tesseract"}),
    ],
)
def test_an_option_changes_a_part_of_the_rewards_of_evaluations(spec: Any, option: str, changed: Any) -> None:
    assert after(spec, option, plugin="model.evaluate_with") == changed


def test_options_are_applied_in_order() -> None:
    assert after("ocr", "brightness=.5", "ocr.init_args.lam=2", "brightness=.25") == {
        "ocr": {"reward": {"class_path": "ocr", "init_args": {"lam": 2}}, "weight": 1.0},
        "brightness": 0.25,
    }


@pytest.mark.parametrize(
    ("spec", "plugin", "option", "said"),
    [
        ({"ocr": 1.0, "hpsv3": 2.0}, "model.reward", "init_args.lam=2", "does not say of which reward: there are ocr, hpsv3"),
        ("full", "model.mask_source", "boxes=2", "below model.mask_source there are class_path and init_args"),
        (None, "model.evaluate_with", "init_args.lam=2", "there is no model.evaluate_with that could take an argument"),
        ("auto", "model.evaluate_with", "init_args.lam=2", "is auto, which names no reward. Give a whole one"),
        ("auto", "model.evaluate_with", "ocr=ocr", "is auto, which names no reward. Give a whole one"),
        (
            ["ocr", "tesseract"],
            "model.evaluate_with",
            "init_args.lam=2",
            "of which reward: there are ocr, tesseract. .*NAME.init_args",
        ),
        ({"a": "ocr", "b": "ocr"}, "model.evaluate_with", "init_args.lam=2", "does not say of which reward: there are a, b"),
        ("ocr", "model.evaluate_with", "orc.init_args.lam=2", "has no reward named 'orc', only 'ocr'"),
        (["ocr"], "model.evaluate_with", "ocr.lam=2", "below model.evaluate_with.ocr there are class_path and init_args"),
        (["ocr", "ocr"], "model.evaluate_with", "ocr.init_args.lam=2", "more than one reward named 'ocr'"),
        ({"ocr": 1.0}, "model.reward", "ocr.wieght=2", "takes reward, weight and init_args"),
        (OCR, "model.reward", "init_args.lam.deeper=2", "'deeper' cannot be set in 1.0"),
    ],
)
def test_an_option_that_means_nothing_is_refused(spec: Any, plugin: str, option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        after(spec, option, plugin=plugin)


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--model.reward.ocr"], "needs a value"), (["--model.reward.ocr={"], "not a value in YAML")]
)
def test_an_option_without_a_value_is_refused(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        split_plugin_options(arguments)


def test_other_arguments_stay_as_they_are() -> None:
    given = ["fit", "--model.reward", "ocr", "--model.mask_source.init_args.pad", "2", "--model.reward.help", "--data.batch_size=3"]
    rest, options = split_plugin_options(given)
    assert rest == ["fit", "--model.reward=null", "--model.reward", "ocr", "--model.reward.help", "--data.batch_size=3"]
    assert options == [PluginOption("model.mask_source", ("init_args", "pad"), 2)]


def test_the_command_line_changes_the_reward_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.reward.init_args.lam", "2", "--model.reward.brightness", ".5", "--print_config"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quickstart.yaml", *options])
    reward = yaml.safe_load(capsys.readouterr().out)["model"]["reward"]
    assert reward["ocr"]["reward"]["init_args"]["lam"] == 2
    assert reward["ocr"]["reward"]["init_args"]["detect"] is False
    assert reward["brightness"] == 0.5


def test_the_command_line_gives_several_rewards_of_evaluations(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.evaluate_with", "[tesseract, {class_path: ocr, init_args: {lam: 1.0}}]"]
    for more, lam in ((), 1.0), (("--model.evaluate_with.ocr.init_args.lam", "2.0"), 2.0):
        with pytest.raises(SystemExit):
            main(["fit", "--config", "quickstart.yaml", *options, *more, "--print_config"])
        ocr = {"class_path": "ocr", "init_args": {"lam": lam}}
        shown = yaml.safe_load(capsys.readouterr().out)["model"]["evaluate_with"]
        assert shown == ({"tesseract": "tesseract", "ocr": ocr} if more else ["tesseract", ocr])


def test_a_wrong_value_is_refused_as_in_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "quickstart.yaml", "--model.reward.init_args.lam", "high"]) == 2
    assert "lam" in capsys.readouterr().err


def test_a_whole_reward_takes_the_place_of_the_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", "quickstart.yaml", "--model.reward", "{class_path: ocr, init_args: {lam: 2.0}}", "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out)["model"]["reward"] == {"class_path": "ocr", "init_args": {"lam": 2.0}}


def test_a_later_configuration_gives_the_whole_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("model: {reward: {class_path: ocr, init_args: {lam: 2.0}}}")
    for files in (["--config", "quickstart.yaml", "--config", str(later)], ["-c", "quickstart.yaml", f"--config={later}"]):
        with pytest.raises(SystemExit):
            main(["fit", *files, "--print_config"])
        model = yaml.safe_load(capsys.readouterr().out)["model"]
        assert model["reward"] == {"class_path": "ocr", "init_args": {"lam": 2.0}}
        assert model["mask_source"] == "boxes"
