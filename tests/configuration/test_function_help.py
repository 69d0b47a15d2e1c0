"""`--model.policy.help` explains what builds a policy, be it a class, a class method or a function."""

from __future__ import annotations

import pytest

from varrl_lightning.__main__ import main


def helped(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "varrl_lightning.InfinityPolicy.from_pretrained",
            ["path", "tokenizer", "pixels", "dtype"],
            "default resolution in megapixels",
        ),
        ("varrl_lightning.policies.infinity.InfinityPolicy.from_pretrained", ["path"], "default resolution in megapixels"),
        ("LetteringPolicy.from_pretrained", ["path", "tokenizer"], "`embedded`, the model that comes with the package"),
        ("varrl_lightning.policies.llm_prefix.LLMPrefixPolicy.from_backbone", ["backbone", "seed"], "of the random visual parts"),
        ("varrl_lightning.add_lora", ["policy", "rank", "adapter"], "alpha / rank scales the product"),
    ],
)
def test_a_method_or_a_function(name: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped(["fit", "--model.policy.help", name], capsys)
    assert all(f"  --model.policy.{option}" in text for option in options)
    assert said in " ".join(text.split())
    assert text.startswith(f"Help for --model.policy.help={name}\n")
    assert "torch.nn.Hardshrink" not in text, "one of 300 classes that an encoder of texts might be"


def test_the_name_may_be_joined_to_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.policy.rank" in helped(["fit", "--model.policy.help=varrl_lightning.add_lora"], capsys)


def test_a_class_has_the_help_of_its_constructor_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.policy.transformer" in helped(["fit", "--model.policy.help", "varrl_lightning.LetteringPolicy"], capsys)


def test_other_commands_have_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("test", "doctor"):
        text = helped([command, "--model.policy.help", "varrl_lightning.LetteringPolicy.from_pretrained"], capsys)
        assert "--model.policy.tokenizer" in text


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.policy", "varrl_lightning.LetteringPolicy.from_pretraind"),
        ("model.polic", "varrl_lightning.LetteringPolicy.from_pretrained"),
        ("model.policy", "no.such.module"),
        ("model.policy", "os.path.join"),
    ],
)
def test_a_typo_is_an_error(key: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", f"--{key}.help", name]) == 2
    assert capsys.readouterr().out == ""
