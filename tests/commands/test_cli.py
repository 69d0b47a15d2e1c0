"""The command line: what it runs, and how each mistake is said before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_policy

from tests.commands.tiny_config import WriteConfig, named
from varrl_lightning.__main__ import main
from varrl_lightning.commands.cli import VarrlCLI
from varrl_lightning.configuration.explain import explain, plain
from varrl_lightning.configuration.files import find_config, resolve_configs, shipped_configs
from varrl_lightning.errors import ConfigError


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in ("fit", "predict", "doctor"))


def test_an_unknown_command_is_refused_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predct", "--config", "x"]) == 2
    assert "no command 'predct'. Did you mean 'predict'?" in capsys.readouterr().err


def test_a_shipped_config_is_found_from_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = shipped_configs()["quickstart.yaml"]
    for name in ("configs/quickstart.yaml", "quickstart.yaml", "quickstart"):
        assert find_config(name) == shipped
    assert resolve_configs(["fit", "--config=quickstart", "-c", "quickstart", "--model.m", "3"]) == (
        ["fit", f"--config={shipped}", "-c", str(shipped), "--model.m", "3"],
        [shipped, shipped],
    )


def test_a_file_of_the_user_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart.yaml").write_text("")
    assert find_config("quickstart.yaml") == Path("quickstart.yaml")


def test_a_name_that_is_like_none_has_no_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"'nothere.yaml', neither here nor in the package\.\n"):
        find_config("nothere.yaml")


def test_a_config_that_is_nowhere_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'quickstrat.yaml'.*Did you mean 'quickstart.yaml'\?"):
        find_config("quickstrat.yaml")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.alpa", "model has no 'alpa'. Did you mean 'alpha'?\n  It has: alpha, m."),
        ("modle.alpha", "the configuration has no 'modle'. Did you mean 'model'?\n  It has: model, trainer."),
        ("alpha", "the configuration has no 'alpha' at its top level. Did you mean 'model.alpha'?"),
    ],
)
def test_an_unknown_key_is_explained_however_it_was_given(key: str, said: str) -> None:
    known = ["model.alpha", "model.m", "trainer.max_steps"]
    assert explain(f"Subcommand 'fit' does not accept option '{key}'", known) == said
    assert explain(f"unrecognized arguments: --{key}=3", known) == said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Expected a typing.Literal['trained', 'shared']. Got value: train", "Expected one of trained, shared. Got: train."),
        ("Parser key \"x\":\n  Expected a <class 'int'>. Got value: many", 'Parser key "x":\n  Expected int. Got value: many'),
        (
            "Does not validate against any of the Union subtypes\nSubtypes: [a, b]\nErrors:\n  - Problem with class_path 'W':\n"
            "      Requirement 'wandb' not met.\n  - Expected a <class 'bool'>\nGiven value type: <class 'N'>\nGiven value: N(x=1)",
            "- Problem with class_path 'W':\n      Requirement 'wandb' not met.",
        ),
        ("Errors:", "Errors:"),
        ("no such file", "no such file"),
    ],
)
def test_a_value_of_the_wrong_type_is_explained_in_plain_words(message: str, said: str) -> None:
    assert plain(message).startswith(said)
    assert plain(message).removeprefix(said) in ("", " Did you mean 'trained'?")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.grup_size": 4}, "model has no 'grup_size'. Did you mean 'group_size'?"),
        ({"modle.m": 4}, "the configuration has no 'modle'. Did you mean 'model'?"),
        ({"group_size": 4}, "no 'group_size' at its top level. Did you mean 'model.group_size'?"),
        ({"data.trian": "x"}, "data has no 'trian'. Did you mean 'train'?"),
        ({"trainer.max_step": 4}, "trainer has no 'max_step'. Did you mean 'max_steps'?"),
        ({"model.policy.init_args": {"sed": 1}}, "tiny.tiny_policy has no 'sed'. Did you mean 'seed'?"),
        ({"model.policy.class_path": "tiny.tiny_polcy"}, "tiny_polcy"),
        ({"model.optimizer": named("torch.optim.AdamW", lrr=1.0)}, "torch.optim.AdamW has no 'lrr'. Did you mean 'lr'?"),
        ({"model.sampling": {"topk": 2}}, "Sampling has no 'topk'. Did you mean 'top_k'?"),
        ({"model.reward": named("ocr", detct=False)}, "'ocr' has no init_arg 'detct'. Did you mean 'detect'?"),
        ({"model.reward": "brightnes"}, "no reward named 'brightnes'."),
        ({"model.mask_source": "boxs"}, "no mask source named 'boxs'. Did you mean 'boxes'?"),
        ({"model.alpha": "high"}, "model.alpha"),
        ({"model.m": 0}, "m must be at least 1"),
        ({"model.m": 8}, "m must be within [1, 4]"),
        ({"model.group_size": 1}, "group_size must be at least 2"),
        ({"model.eta": 0.0}, "eta must be > 0"),
        ({"model.alpha": float("nan")}, "alpha must be >= 0 and finite"),
        ({"model.sampling": {"top_p": 0.0}}, "top_p must be in (0, 1], got 0.0"),
        ({"model.seed": 7}, "model.seed follows seed_everything"),
        ({"trainer.gradient_clip_val": 0.5}, "use model.max_grad_norm"),
        ({"trainer.accumulate_grad_batches": 4}, "use model.micro_batch_size"),
    ],
)
def test_a_wrong_configuration_is_one_message_and_status_2(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    config = write(changes)
    assert main(["fit", "--config", config]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.grup_size", "4"], "model has no 'grup_size'. Did you mean 'group_size'?"),
        (["--trainer.max_step=4"], "trainer has no 'max_step'. Did you mean 'max_steps'?"),
        (["--model.seed=7"], "seed_everything"),
        (["--model.policy.sed=7"], "tiny.tiny_policy has no 'sed'. Did you mean 'seed'?"),
    ],
)
def test_a_wrong_argument_is_said_alike(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["fit", "--config", write(), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_a_configuration_one_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "Give a configuration: --config configs/quickstart.yaml" in capsys.readouterr().err


def test_yaml_that_is_none_is_refused_with_its_line(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    Path(write()).write_text("model:\n  m: [1\n")
    assert main(["fit", "--config", "t.yaml"]) == 2
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "cannot read the prompt file"),
        ("", "holds no prompt"),
        ('{"text": "\\"STONE\\""}\n{"text": 3}\n', "line 2"),
        ('{"text": "\\"TOOLONG\\""}\n{"text": "\\"STONE\\""}\n', "one to three words of 3-5 letters"),
    ],
)
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_bad_prompt_file_stops_before_anything_is_written(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], name: str, lines: str | None, said: str
) -> None:
    config = write({f"data.{name}": "bad.jsonl", "data.overlap": "ignore"})
    if lines is not None:
        Path("bad.jsonl").write_text(lines)
    assert main(["fit", "--config", config]) == 1
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_prompts_that_the_reward_cannot_score_stop_too(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wordless.jsonl").write_text('{"text": "a tree"}\n{"text": "a house"}\n')
    assert main(["fit", "--config", write({"data.train": "wordless.jsonl", "model.reward": "ocr"})]) == 1
    assert "the OCR reward needs words" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_debug_shows_the_traceback(write: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARRL_DEBUG", "1")
    with pytest.raises(ConfigError, match="eta"):
        main(["fit", "--config", write({"model.eta": 0.0})])


def _checkpoint(**changes: Any) -> dict[str, Any]:
    counters = {"rollouts_done": 2, "updates_done": 2, "bad_steps": 0, "bad_steps_in_a_row": 0, "seed": 0, "reference": None}
    state = {f"policy.{name}": value for name, value in tiny_policy().state_dict().items()}
    return {"state_dict": state, "varrl": counters} | changes


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    checkpoint = _checkpoint()
    head = checkpoint["state_dict"].pop("policy.transformer.head.weight")
    checkpoint["state_dict"]["policy.transformer.tail.weight"] = head
    torch.save(checkpoint, "x.ckpt")
    assert main([command, "--config", write({"data.predict": "few.jsonl"}), "--ckpt_path", "x.ckpt"]) == 1
    error = capsys.readouterr().err
    assert "missing policy.transformer.head.weight" in error
    assert "unexpected policy.transformer.tail.weight" in error
    assert sorted(path.name for path in Path().iterdir()) == ["few.jsonl", "some.jsonl", "t.yaml", "train.jsonl", "x.ckpt"]


@pytest.mark.parametrize("content", [b"PK\x03", b""])
def test_a_file_that_is_no_checkpoint_is_refused(write: WriteConfig, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("x.ckpt").write_bytes(content)
    assert main(["fit", "--config", write(), "--ckpt_path", "x.ckpt"]) == 1
    assert "is no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_checkpoint_that_does_not_exist_is_refused_before_anything_is_loaded(
    write: WriteConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(VarrlCLI, "instantiate_classes", lambda self: pytest.fail("it was loaded"))
    Path("other.ckpt").touch()
    assert main([command, "--config", write(), "--ckpt_path", "lst"]) == 2
    said = capsys.readouterr().err
    assert "cannot read the checkpoint lst: there is no such file or folder. Beside it: other.ckpt. Give a path, or `last`" in said


def test_a_prompt_without_quotes_around_it_is_explained(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", write(), "--prompt", "a", "red", "sign"]) == 2
    assert "no option takes 'red sign'. Put a value with spaces in quotes: --prompt 'a sign" in capsys.readouterr().err


def test_a_run_that_never_validates_says_so(write: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", write({"trainer.val_check_interval": 3, "trainer.check_val_every_n_epoch": None})]) == 0
    assert "No validation in 2 steps (trainer.val_check_interval 3), so no best.ckpt either." in capsys.readouterr().out
    assert not list(Path().rglob("best.ckpt"))


def test_what_the_user_writes_wins_over_a_checkpoint(write: WriteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(_checkpoint(hyper_parameters={"alpha": 0.9}), "x.ckpt")
    monkeypatch.setattr(VarrlCLI, "_run_subcommand", lambda self, name: None)
    cli = VarrlCLI(["fit", "--config", write(), "--ckpt_path", "x.ckpt", "--model.alpha=0.42"])
    assert cli.model.grpo.credit.alpha == 0.42
