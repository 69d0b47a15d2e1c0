"""Prompts that the policy's text encoder cuts off are said before anything is sampled, by every command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from families import load_infinity, load_switti, load_tokenflow
from text_encoders.tiny_encoders import write_clip, write_t5
from tiny import TinyPolicy, tiny_module, tiny_trainer
from torch import nn
from torch.utils.data import DataLoader

from varrl_lightning.__main__ import main
from varrl_lightning.errors import SpecError
from varrl_lightning.policies.state import Cond
from varrl_lightning.rewards.clip_score import CLIPScore
from varrl_lightning.text_encoders import ClipPair, T5Text
from varrl_lightning.training.argument_checks import ENCODED_AT_ONCE, ENCODED_BY_NETWORKS, check_prompts
from varrl_lightning.training.cut_prompts import check_cut_prompts
from varrl_lightning.types import Prompt

SHORT, LONG = '"stone"', '"stone" "river"'
"""Of 9 tokens and of 17 with the closing one, where a `Reading` policy reads 12."""


class Reading(TinyPolicy):
    """The tiny policy, with a T5 that it does not listen to."""

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        return super().frozen_parts | {"text_encoder": T5Text.from_pretrained("t5", max_tokens=12)}


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.chdir(tmp_path)
    write_t5(Path("t5"))
    return Reading()


def test_words_that_fall_off_are_an_error_unless_the_user_says_so(reading: Reading) -> None:
    prompts = [Prompt(SHORT), *(Prompt(LONG, id=f"p{i}") for i in range(5)), Prompt(f"{LONG} ", id="last")]
    error = (
        r"the text encoder of Reading \(T5Text\) cuts off 6 of 7 texts, and with them words to be written of 6: prompt 'p0' loses "
        r"'river' and is read up to '\"stone\" \"r'; prompt 'p1' .*; and 3 more\. Shorten .*guards\.cut_prompts: warn"
    )
    module = tiny_module(reading)
    with pytest.raises(ValueError, match=error):
        module.check_prompts(prompts)
    module.check_prompts(prompts[:1])
    with pytest.warns(UserWarning, match=error) as told:
        tiny_module(reading, guards={"cut_prompts": "warn"}).check_prompts(prompts)
    assert len(told) == 1
    with pytest.raises(SpecError, match=r"guards\.cut_prompts"):
        tiny_module(reading, guards={"cut_prompts": "no"})


def test_a_cut_that_loses_no_word_is_a_warning(reading: Reading) -> None:
    prompts = [Prompt('"a cat" sat on the mat', id="x"), Prompt(SHORT, negative="blurred and dark")]
    said = (
        r"cuts off 2 of 2 texts; no word .*: prompt 'x' is read up to '\"a cat\" sat o'; the negative prompt of '\"stone\"' is read"
    )
    with pytest.warns(UserWarning, match=said):
        check_cut_prompts(prompts, reading, "error")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "doctor"])
def test_every_command_says_it(reading: Reading, capsys: pytest.CaptureFixture[str], command: str) -> None:
    for name, texts in (("train", [SHORT] * 4), ("some", ['a red "plant"'] * 2), ("long", [LONG])):
        Path(f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": text, "id": f"{name} {i}"}) + "\n" for i, text in enumerate(texts))
        )
    data = {"train": "train.jsonl", "batch_size": 2, "overlap": "ignore"}
    data |= {"validation": "long.jsonl", "test": "long.jsonl", "predict": "long.jsonl"}
    model = {
        "policy": {"class_path": f"{__name__}.Reading"},
        "reward": "tiny.LeftBright",
        "mask_source": "full",
        "m": 2,
        "group_size": 2,
    }
    Path("x.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"accelerator": "cpu"}}))
    status = main([command, "--config", "x.yaml"])
    assert status == 1 if command != "doctor" else status
    assert "prompt 'long 0' loses 'river' and is read up to" in "".join(capsys.readouterr())  # a finding of doctor's
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_foreign_loader_is_told_once(reading: Reading) -> None:
    loader = DataLoader(
        [{"prompt": SHORT, "row": 0}] * 2 + [{"prompt": f"{LONG}{' ' * i}", "row": i} for i in range(4)], batch_size=2
    )  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="cuts off 2 of 2 texts, and with them words to be written of 2: .* loses 'river'") as told:
        tiny_trainer(max_steps=3, limit_val_batches=0).fit(tiny_module(reading, group_size=2), loader)
    assert sum("cuts off" in str(warning.message) for warning in told) == 1


# --- the families -----------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer that knows no places, with an id for each letter."""

    bos_token_id = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [2 + ord(letter) % 9 for letter in text]


def test_tokenflow(weights_folder: Path) -> None:
    policy = load_tokenflow(weights_folder, "plain", text_encoder=Letters(), max_text_tokens=20, negative="n" * 19)
    fits, cut = Prompt('a red sign, "OPEN"'), Prompt('a green sign, "OPEN"')
    check_cut_prompts([fits], policy, "error")
    assert policy.kept_texts([fits.text, cut.text]) == {cut.text: 'a green sign, "OPEN'}
    with pytest.warns(UserWarning, match="no word to be written is lost: prompt"):  # the mark alone falls off
        check_cut_prompts([cut], policy, "error")
    with pytest.raises(ValueError, match=r"TokenFlowPolicy cuts off 1 of 1 texts.*loses 'OPEN'"):
        check_cut_prompts([Prompt('a yellow sign, "OPEN"')], policy, "error")
    policy.negative += "n"
    with pytest.warns(UserWarning, match="the policy's negative prompt is read up to"):
        check_cut_prompts([fits], policy, "error")


def test_switti_reads_by_two_encoders(weights_folder: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in enumerate(folders):  # only the first has merges: the second reads a cat letter by letter
        write_clip(folder, 16, seed=number, pad="!", merged=number == 0)
    policy = load_switti(weights_folder, text_encoder=ClipPair.from_pretrained(*folders))
    prompts = [
        Prompt("cat " * 20 + '"OPEN"', id="fits"),
        Prompt("cat " * 30 + '"OPEN"', id="second"),
        Prompt("cat " * 90 + '"OPEN"', id="both"),
    ]
    with pytest.raises(ValueError, match=r"SwittiPolicy \(ClipPair\) cuts off 2 of 3 .*'second' loses 'OPEN'.*'both' loses 'OPEN'"):
        check_cut_prompts(prompts, policy, "error")


def test_infinity_cuts_what_it_has_no_positions_for(weights_folder: Path, tmp_path: Path) -> None:
    """T5 reads 512 tokens, and fewer where the transformer has learned positions of fewer."""
    write_t5(tmp_path)
    policy = load_infinity(weights_folder, "published_2b", text_encoder=str(tmp_path))
    longest = policy.transformer.sizes.text_length
    encoder = policy.frozen_parts["text_encoder"]
    assert encoder.max_tokens == longest < 512
    text = "the " * longest + '"open"'
    assert int(encoder([text])["mask"].sum()) == longest
    with pytest.raises(ValueError, match=r"InfinityPolicy \(T5Text\) cuts off 1 of 1 .*loses 'open'"):
        check_cut_prompts([Prompt(text)], policy, "error")


# --- beside the policy ------------------------------------------------------------------------------------------------------


def test_clip_score_only_warns_and_counts_its_prefix(tmp_path: Path) -> None:
    reward = CLIPScore(write_clip(tmp_path, 16, seed=0, pad="!", merged=True))
    fits = "cat " * (77 - 2 - len("A photo depicts".replace(" ", "")) - 6)
    reward.check_prompts([Prompt(fits + '"OPEN"', id="fits")] * 2)
    with pytest.warns(UserWarning, match=r"CLIPScore \(77 tokens, its prefix included\) cuts off 1 of 2 .*'longer' loses 'OPEN'"):
        reward.check_prompts([Prompt(fits + '"OPEN"'), Prompt(fits + 'cat cat "OPEN"', id="longer")])


def test_a_network_encodes_a_few_prompts_for_the_check_and_a_table_all(reading: Reading) -> None:
    encoded: list[int] = []

    class Counting(Reading):
        def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
            encoded.append(len(prompts))
            return super().encode_prompts(prompts)

    many = [Prompt(SHORT, id=str(i)) for i in range(ENCODED_AT_ONCE + 1)]
    module = tiny_module(Counting())
    check_prompts(many, module.policy, module.rewards, module.guards)
    assert encoded == [2 * ENCODED_BY_NETWORKS]
    encoded.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Reading, "frozen_parts", TinyPolicy.frozen_parts)
        check_prompts(many, module.policy, module.rewards, module.guards)
    assert encoded == [ENCODED_AT_ONCE, 1]
