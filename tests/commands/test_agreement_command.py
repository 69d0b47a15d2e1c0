"""`varrl agreement` on a tiny model: what it prints and writes, and what it refuses before anything is drawn."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from tiny import PROMPTS, LeftBright, tiny_module
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.commands.deciding_options import deciding_options
from varrl_lightning.types import Prompt

VARIANTS = {
    "vanilla": {"stage": "all", "alpha": 0.0},
    "prefix, K=1": {"stage": "prefix", "num_continuations": 1},
    "prefix, K=2": {"stage": "prefix", "num_continuations": 2},
}


class Interrupts(LeftBright):
    """Somebody presses Ctrl-C while the fourth batch of a stage is scored, and the signal comes twice."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.calls += 1
        if self.calls == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return super().__call__(images, prompts)


class Alike(LeftBright):
    """A reward without any variance."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.ones(len(images))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    Path("v.yaml").write_text(yaml.safe_dump(VARIANTS, sort_keys=False))


def agreement(*arguments: str, adam_batches: int = 0, **model: Any) -> int:
    own = {
        "policy": {"class_path": "tiny.tiny_policy"},
        "reward": "tiny.LeftBright",
        "mask_source": "full",
        "m": 2,
        "group_size": 2,
    }
    config = {"model": own | model, "data": {"train": "words.jsonl", "batch_size": 2}, "trainer": {"accelerator": "cpu"}}
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return main(["agreement", "--config", "x.yaml", f"--adam_batches={adam_batches}", *arguments])


def test_variants_in_a_table_and_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement("--variants", "v.yaml", "--batches=3", "--output", "out") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split() == ["variant", "scales", "A", "K", "cosine", "less", "the", "first", "signal", "batches"]
    assert [line[:11] for line in lines[1:4]] == ["vanilla    ", "prefix, K=1", "prefix, K=2"]
    assert [line.count("±") for line in lines[1:4]] == [1, 2, 2]
    assert "batch 3 of 3" in said.err
    held = json.loads(Path("out/agreement.json").read_text())
    assert {key: held[key] for key in ("batches", "prompts", "measured_batches", "variants", "checkpoint")} == {
        **{"batches": 3, "prompts": 2, "measured_batches": 3, "variants": "v.yaml", "checkpoint": None}
    }
    rows = held["rows"]
    assert [(row["variant"], row["stop"], row["continuations"]) for row in rows] == [
        *(("vanilla", 4, 1), ("prefix, K=1", 2, 1), ("prefix, K=2", 2, 2))
    ]
    assert rows[1]["difference"] == pytest.approx(rows[1]["cosine"] - rows[0]["cosine"])
    assert f"{rows[2]['cosine']:+.4f} ± {rows[2]['standard_error']:.4f}" in lines[3]
    with Path("out/agreement.csv").open(newline="") as file:
        assert [float(row["cosine"]) for row in csv.DictReader(file)] == [row["cosine"] for row in rows]
    assert not Path("runs").exists()


def test_gains_stand_in_the_table_and_in_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    Path("v.yaml").write_text(yaml.safe_dump({name: VARIANTS[name] for name in ("vanilla", "prefix, K=1")}, sort_keys=False))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"betas": [0.9, 0.5]}}
    found = []
    for options in ({"optimizer": optimizer}, {}):
        assert agreement("--variants", "v.yaml", "--batches=3", "--output=out", adam_batches=2, **options) == 0
        found.append(json.loads(Path("out/agreement.json").read_text()))
    said = capsys.readouterr()
    assert "2 batches of 'vanilla' warm the AdamW state" in said.err
    lines = said.out.splitlines()
    assert [lines[0].count(name) for name in ("gain", "batch gain", "times the first's")] == [2, 1, 2]
    first, second = found[0]["rows"]
    assert found[0]["adam_batches"] == 2
    assert (first["relative_batch_gain"], first["relative_batch_gain_standard_error"]) == (1, 0)
    assert f"{second['relative_batch_gain']:+.2f} ± {second['relative_batch_gain_standard_error']:.2f}" in lines[2]
    other = found[1]["rows"][1]["relative_batch_gain"]
    assert other != second["relative_batch_gain"]  # another beta2, another metric
    assert other == pytest.approx(second["relative_batch_gain"], rel=0.5)


def test_gains_are_left_out_where_no_batch_warms_the_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement("--batches=3", "--model.alternation=[prefix]", adam_batches=1, reward="test_agreement_command.Alike") == 1
    said = capsys.readouterr()
    assert "no batch had a gradient" in said.err
    assert "gains are left out" in said.err
    assert "gain" not in said.out


def test_the_stages_of_the_configuration_at_a_checkpoint_scale_by_scale(capsys: pytest.CaptureFixture[str]) -> None:
    moved = tiny_module()
    torch.manual_seed(7)
    for parameter in moved.policy.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    checkpoint: dict[str, Any] = {"state_dict": moved.state_dict()}
    moved.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, "late.ckpt")
    asked = ("--batches=3", "--output=out", "--model.alternation=[prefix]", "--parameters=blocks.1.*")
    found = {}
    for name, more in (("start", ["--per_scale"]), ("late", ["--ckpt_path=late.ckpt"])):
        assert agreement(*asked, *more) == 0
        found[name] = json.loads(Path("out/agreement.json").read_text())["rows"]
    assert [row["scale"] for row in found["start"]] == [None, 1, 2]
    assert abs(found["start"][0]["cosine"] - found["late"][0]["cosine"]) > 1e-3


def test_ctrl_c_reports_what_has_been_measured(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert (
        agreement("--batches=50", "--output=out", "--model.alternation=[prefix]", reward="test_agreement_command.Interrupts") == 0
    )
    said = capsys.readouterr()
    assert "ending with this batch" in said.err
    held = json.loads(Path("out/agreement.json").read_text())
    assert (held["batches"], held["measured_batches"], held["rows"][0]["batches"]) == (50, 4, 4)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_measurement_is_resumed_and_no_other_is(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends like one that never stopped; with other options or weights, or without its sums, there is nothing to go on from."""
    asked = ("--blocks=3", "--model.alternation=[prefix]", "--model.num_continuations=1")
    assert agreement(*asked, "--batches=4", "--output=whole", adam_batches=1) == 0
    assert not Path("whole/agreement.pt").exists()
    asked = (*asked, "--output=out", "--resume")
    assert agreement(*asked, "--batches=3", adam_batches=1) == 0
    assert agreement(*asked, "--batches=4", adam_batches=1) == 0
    said = capsys.readouterr().err
    assert "3 batches have been measured before" in said
    assert said.count("warm the AdamW state") == 2
    resumed = json.loads(Path("out/agreement.json").read_text())
    assert resumed == json.loads(Path("whole/agreement.json").read_text())
    assert resumed["measured_batches"] == 4

    other = {"policy": {"class_path": "tiny.tiny_policy", "init_args": {"seed": 1}}}
    Path("other.jsonl").write_text(Path("words.jsonl").read_text().replace('"text": "', '"text": "a red ', 1))
    for more, adam_batches, model, says in (
        (["--seed=1"], 1, {}, "its seed is 0, now is 1; give the same arguments"),
        ([], 2, {}, "its adam_batches is 1, now is 2"),
        ([], 1, other, "its weights have the fingerprint"),
        (
            ["--model.alpha=0", "--model.eta=2"],
            1,
            {},
            "its model.eta is '1.0', now is '2.0'; its model.alpha is '0.6', now is '0.0'; give",
        ),
        (["--data.train=other.jsonl"], 1, {}, "its training prompts is '6 with the digest "),
        (["--variants=v.yaml"], 1, {}, "its variants is None, now is 'v.yaml'; its variant 'vanilla' is not there, now is '{"),
    ):
        assert agreement(*asked, *more, adam_batches=adam_batches, **model) == 2
        assert says in capsys.readouterr().err
    Path("words.jsonl").rename("same.jsonl")
    assert agreement(*asked, "--batches=4", "--data.train=same.jsonl", "--model.micro_batch_size=1", adam_batches=1) == 0
    assert "4 batches have been measured before" in capsys.readouterr().err
    Path("same.jsonl").rename("words.jsonl")
    held = torch.load("out/agreement.pt", weights_only=True)
    del held["about"]["decided by"]
    torch.save(held, "out/agreement.pt")
    assert agreement(*asked, adam_batches=1) == 2
    assert "does not say what its gradients were decided by: it was kept by an earlier version" in capsys.readouterr().err
    Path("out/agreement.pt").write_bytes(b"nothing")
    assert agreement(*asked, adam_batches=1) == 2
    assert "does not hold the sums of a measurement" in capsys.readouterr().err


def test_what_decides_gradients_is_told_apart() -> None:
    variants: dict[str, Any] = {"a": {"stage": "all", "alpha": 0.0}}
    model = Namespace(alpha=0.6, seed=1, stages=[Namespace(start=0)])
    first = deciding_options(model, variants, PROMPTS)
    assert set(first) == {"model.alpha", "model.stages", "variant 'a'", "training prompts"}
    assert deciding_options(Namespace(alpha=0.6, seed=2, stages=[Namespace(start=0)]), variants, PROMPTS) == first
    assert deciding_options(model, {"a": {"stage": "all", "alpha": 0.1}}, PROMPTS) != first
    assert deciding_options(model, variants, PROMPTS[::-1]) != first


def test_a_second_ctrl_c_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varrl_lightning.commands.agreement.ONE_PRESS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        agreement("--batches=50", "--output=out", "--model.alternation=[prefix]", reward="test_agreement_command.Interrupts")
    assert list(Path("out").iterdir()) == []


def test_what_has_been_measured_outlives_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varrl_lightning.commands.agreement.ONE_PRESS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        agreement("--batches=30", "--output=out", "--model.alternation=[prefix]", reward="test_agreement_command.Interrupts")
    held = json.loads(Path("out/agreement.json").read_text())
    assert (held["batches"], held["measured_batches"], held["rows"][0]["batches"]) == (30, 3, 3)
    assert sorted(path.name for path in Path("out").iterdir()) == ["agreement.csv", "agreement.json"]


def test_a_disk_that_is_full_for_a_while_costs_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    replace, tries = Path.replace, iter([OSError("No space left on device")])

    def full_at_first(partial: Path, target: Path) -> Path:
        for error in tries:
            raise error
        return replace(partial, target)

    monkeypatch.setattr(Path, "replace", full_at_first)
    assert agreement("--batches=3", "--output=out", "--model.alternation=[prefix]") == 0
    assert "could not write to out what has been measured (No space left on device)" in capsys.readouterr().err
    assert json.loads(Path("out/agreement.json").read_text())["measured_batches"] == 3


def test_a_disk_that_stays_full_costs_the_files_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert agreement("--batches=3", "--output=out", "--model.alternation=[prefix]") == 1
    said = capsys.readouterr()
    assert "could not write to out" in said.err
    assert said.out.startswith("variant")
    assert "agreement.json" not in said.out


@pytest.mark.parametrize(
    ("arguments", "model", "says"),
    [
        (["--batches", "2"], {}, "batches must be at least 3"),
        (["--batches", "many"], {}, "invalid int value: 'many'"),
        (["--prompts", "7"], {}, "only 6 training prompts"),
        (["--blocks", "1"], {}, "blocks must be at least 2"),
        (["--resume"], {}, "--resume needs --output FOLDER"),
        (["--adam_batches=-1"], {}, "--adam_batches must be 0, for no gains, or more, got -1"),
        (["--parameters", "none"], {}, "no trained parameter has a name like 'none'"),
        (["--variants", "x.jaml"], {}, "no file of variants 'x.jaml'"),
        (["--variants", "wrong.yaml"], {}, "the variant 'a' has no 'alhpa'. Did you mean 'alpha'?"),
        (["--output", "words.jsonl"], {}, "is a file; expected a folder"),
        (["--output", "words.jsonl/out"], {}, "--output words.jsonl/out cannot be made: Not a directory; give another folder"),
        (["--kl"], {}, "its model.kl_coef is 0"),
        ([], {"reward": None}, "reward"),
        ([], {"alhpa": 1.0}, "alhpa"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_drawn(
    arguments: list[str], model: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wrong.yaml").write_text("a: {stage: all, alhpa: 1}")
    assert agreement(*arguments, **model) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "batch 1" not in said.err
    assert said.out == ""


def test_one_process_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert agreement() == 2
    assert "agreement measures on one process, but WORLD_SIZE is 2" in capsys.readouterr().err


def test_rewards_without_variance_teach_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert agreement("--batches=3", "--model.alternation=[prefix]", reward="test_agreement_command.Alike") == 1
    said = capsys.readouterr()
    assert "0 (3 without gradient)" in said.out
    assert "too few batches had a gradient" in said.err


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["agreement", "--help"]) == 0
    assert all(f"--{name} " in capsys.readouterr().out for name in ("variants",))
