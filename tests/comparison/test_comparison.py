"""The comparison of recipes: the same updates as `fit`, runs that end with their budgets, and phases that go on where they were."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.comparison.jobs import Run
from varrl_lightning.comparison.phases import Comparison
from varrl_lightning.comparison.report import write_report
from varrl_lightning.comparison.spec import read_spec
from varrl_lightning.comparison.training import build, curve, spaced, train
from varrl_lightning.errors import StartError
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.types import Prompt

SETS = {"train": "STONE RIVER BREAD CLOUD", "few": "PLANT HORSE CHAIN", "some": "CHAIR TABLE SHELF"}
PLAIN = {"overrides": {"model.stages": [{"start": 0, "stop": 4, "branches": 2}]}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with prompts, a base configuration of a tiny model, and a spec of two recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # as every command does
    for name, words in SETS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": f'"{w}"'}) + "\n" for w in words.split()))
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}
    cosine = {"class_path": "varrl_lightning.learning_rates.WarmupCosine", "init_args": {"warmup": 20, "total": 99}}
    model = {"policy": {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "mask_source": "full", "optimizer": adam}
    model |= {"sampling": {"top_k": 8}, "group_size": 2, "score": "sampler", "lr_scheduler": cosine}
    model |= {"m": 2, "num_continuations": 2, "alternation": ["prefix", "suffix"]}
    Path("base.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {"accelerator": "cpu"}}))
    spec(tmp_path)
    yield tmp_path
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


def spec(folder: Path, **changes: Any) -> str:
    """Writes c.yaml, with changes by dotted key (`__` for the dot)."""
    tree: dict[str, Any] = {
        "base": "base.yaml",
        "recipes": {"plain": PLAIN, "split": {"label": "two stages"}},
        "prompts": {"train": "train.jsonl", "validation": "few.jsonl", "test": "some.jsonl", "curve": 2},
        "warmup": 1,
        "grid": {"learning_rates": [1e-3], "prompts_per_update": [2]},
        "tuning": {"axes": {"updates": {"updates": 2}}, "seeds": [7], "curve_points": 1},
        "final": {"axes": {"time": {"seconds": 6}}, "seeds": [0, 1], "curve_points": 2},
        "timing": {"rounds": 2, "warm_up": 1, "updates": 1},
        "pairs": [["split", "plain"]],
        "measure": "reward",
        "output": "out",
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        branch = tree
        for part in path:
            branch = branch[part]
        branch[last] = value
    (folder / "c.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return "c.yaml"


def fixed_times(folder: Path) -> None:
    """Put round numbers in place of the measured ones: 1 and 2 s for two stages of 8 and 4 images, 2 s for 4 images."""
    path = folder / "out" / "timing.json"
    table = json.loads(path.read_text())
    for recipe, seconds in (("split", (1.0, 2.0)), ("plain", (2.0,))):
        for stage, value in zip(table["recipes"][recipe]["2"]["cycle"], seconds, strict=True):
            stage["seconds"] = value
    path.write_text(json.dumps(table))


class WordReader(BaseReward):
    """A reward that looks for words."""

    reads_words = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean((1, 2, 3))


def comparison() -> Comparison:
    """The comparison of c.yaml, checked, with each recipe's run made in this process."""
    found = Comparison(read_spec("c.yaml"))
    found.check()
    return found


def rows() -> list[dict[str, str]]:
    with open("out/results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- the whole ----------------------------------------------------------------------------------------------------------------


def test_all_phases_and_what_is_there_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"time": {"seconds": 6}, "images": {"images": "fewest"}, "updates": {"updates": "fewest"}}
    spec(folder, recipes__split={"label": "two stages", "beyond": [1e-2]}, final__axes=axes)
    found = comparison()
    found.time()
    measured = json.loads(Path("out/timing.json").read_text())
    split, plain = (measured["recipes"][name]["2"] for name in ("split", "plain"))
    assert [(s["name"], s["images"]) for s in split["cycle"]] == [("prefix", 8), ("suffix", 4)]
    assert [(s["name"], s["images"]) for s in plain["cycle"]] == [("all", 4)]
    # Two rounds of one update after the warm-up, or of one cycle; the first measured one of a cycle is its second stage.
    assert [[step[0] for step in turn] for turn in split["rounds"]] == [[1, 0], [1, 0]]
    assert [[step[0] for step in turn] for turn in plain["rounds"]] == [[0], [0]]
    assert all(0 < sum(step[3:]) <= step[1] * 1.001 for turn in split["rounds"] for step in turn)
    assert split["cycle"][1]["seconds"] == min(turn[0][1] for turn in split["rounds"])
    fixed_times(folder)
    found.tune()
    found.final()
    write_report(found)

    tuned = {row["run"]: float(row["reward"]) for row in rows() if (row["phase"], row["split"]) == ("tune", "validation")}
    assert list(tuned) == ["tune-plain-p2-lr0.001-u2-s7", "tune-split-p2-lr0.001-u2-s7", "tune-split-p2-lr0.01-u2-s7"]
    best = max(("0.001", "0.01"), key=lambda rate: tuned[f"tune-split-p2-lr{rate}-u2-s7"])
    assert json.loads(Path("out/choices.json").read_text())["points"]["split"]["learning_rate"] == float(best)

    # 6 s are floor(6 / 1.5) = 4 and 6 / 2 = 3 updates; plain has drawn 12 images by then, which split has after 2 updates.
    ends = [row for row in rows() if (row["phase"], row["split"], row["way"]) == ("final", "test", "sampled")]
    assert {(row["recipe"], row["axes"], row["updates"], row["images"], float(row["seconds"])) for row in ends} == {
        ("plain", "time images updates", "3", "12", 6.0),
        ("split", "time", "4", "24", 6.0),
        ("split", "images", "2", "12", 3.0),
        ("split", "updates", "3", "20", 4.0),
    }
    assert {(row["recipe"], row["m"], row["K"]) for row in ends} == {("plain", "", ""), ("split", "2", "2")}
    assert [row["phase"] for row in rows() if row["split"] == "test" and row["phase"] == "tune"] == []
    assert {row["updates"] for row in rows() if row["run"].startswith("final-split") and row["total_updates"] == "4"} == {"2", "4"}

    # The results by hand, from the rows.
    results = json.loads(Path("out/results.json").read_text())
    by_seed = {r: [float(e["reward"]) for e in ends if e["recipe"] == r and "time" in e["axes"]] for r in ("plain", "split")}
    assert results["axes"]["time"]["recipes"]["split"]["sampled"]["reward"]["seeds"] == by_seed["split"]
    (difference,) = results["axes"]["time"]["differences"]
    by_hand = [a - b for a, b in zip(by_seed["split"], by_seed["plain"], strict=True)]
    assert difference["sampled"]["by_seed"] == pytest.approx(by_hand)
    half = 12.7062 * abs(by_hand[0] - by_hand[1]) / 2  # the quantile of t with one degree of freedom
    assert difference["sampled"]["t_interval"] == pytest.approx([fmean(by_hand) - half, fmean(by_hand) + half], abs=1e-5)
    page = Path("out/results.md").read_text()
    for heading in ("## At equal time", "## At equal images", "## At equal updates", "- two stages minus plain, 2 seeds: "):
        assert heading in page
    assert re.search(r"\| two stages \| 2 \| 1\.50 \| 6 \| \d+% \| -?\d+% \|", page)
    with Image.open("out/comparison.png") as picture:
        assert picture.width > 1500

    # A run whose rows are gone is made again, alone, and with the same readings.
    table, gone = Path("out/results.csv"), "final-split-p2-lr" + best + "-u4-s1"
    before = [row for row in rows() if row["run"] == gone]
    assert len(before) == 5
    header, *lines = table.read_text().splitlines()
    table.write_text("\n".join([header, *(line for line in lines if not line.startswith(f"{gone},"))]) + "\n")
    write_report(found)
    assert f"**1 runs are missing**: {gone}." in Path("out/results.md").read_text()
    capsys.readouterr()
    found.final()
    assert re.findall(r"^(\S+): \d+ s", capsys.readouterr().out, flags=re.MULTILINE) == [gone]
    again = [row for row in rows() if row["run"] == gone]
    assert [{**row, "wall_seconds": ""} for row in again] == [{**row, "wall_seconds": ""} for row in before]

    Path("some.jsonl").write_text('{"text": "\\"OTHER\\""}\n')
    with pytest.raises(StartError, match=r"rows of start were made with another test \(\w{8}, now \w{8}\) than requested now"):
        comparison().final()


@pytest.mark.slow
def test_two_workers_find_what_one_does(folder: Path) -> None:
    assert main(["compare", spec(folder), "--phase", "time"]) == 0
    fixed_times(folder)
    assert main(["compare", "c.yaml", "--phase", "tune"]) == 0
    alone = {row["run"]: row["reward"] for row in rows()}
    Path("out/results.csv").unlink()
    assert main(["compare", spec(folder, workers=2), "--phase", "tune"]) == 0
    assert {row["run"]: row["reward"] for row in rows()} == alone


def test_the_updates_are_those_of_fit(folder: Path) -> None:
    tree = Comparison(read_spec("c.yaml")).tree("split", (2, 3e-4), seed=5, updates=3)
    schedule = tree["model"]["lr_scheduler"]["init_args"]
    assert (schedule["warmup"], schedule["total"]) == (1, 3)
    module, data, config = build(tree, "split")
    start = torch.cat([p.detach().flatten().clone() for p in module.policy.parameters()])
    recorder = train(module, data, config, 3, {1: curve(data.prompts["validation"])})
    assert list(recorder.taken) == [1]
    assert module.lr_schedulers().get_last_lr() == pytest.approx([3e-5])  # type: ignore[union-attr]
    Path("whole.yaml").write_text(yaml.safe_dump(tree))
    limits = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0", "--trainer.default_root_dir=run"]
    assert main(["fit", "--config", "whole.yaml", *limits]) == 0
    held = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = module.state_dict()
    assert held.keys() == ours.keys()
    assert all(torch.equal(held[key], ours[key]) for key in held)
    assert not torch.equal(start, torch.cat([p.flatten() for p in module.policy.parameters()]))


# --- what is wrong is said first ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes__split": {"overides": {}}}, r"recipes.split: unknown key 'overides'. Did you mean 'overrides'\?"),
        ({"recipes__split": {"config": "plane.yaml"}}, "no configuration file 'plane.yaml'"),
        (
            {"grid__learning_rates": ["1e-4", "2e-4"]},
            r"grid.learning_rates must be a list of numbers, got \['1e-4', '2e-4'\]; '1e-4' is a text to YAML: write 0.0001",
        ),
        ({"recipes__split": {"beyond": ["1e-5"]}}, "recipes.split.beyond must be a list of numbers, got .* write 1e-05"),
        ({"warmup": "20"}, "warmup must be an integer or null, got '20'; '20' is a text to YAML: write 20"),
        ({"threads": "1"}, "threads must be an integer, got '1'"),
        ({"workers": 1.5}, "workers must be an integer, got 1.5"),
        ({"margin": True}, "margin must be a number, got True"),
        ({"output": 3}, "output must be a text, got 3"),
        ({"grid__prompts_per_update": [2.5]}, r"grid.prompts_per_update must be a list of integers, got \[2.5\]"),
        ({"grid__prompts_per_update": 2}, "grid.prompts_per_update must be a list of integers, got 2"),
        ({"final__axes": ["time"]}, r"final.axes must be a mapping, got \['time'\]"),
        ({"tuning__axes": ["time"]}, r"tuning.axes must be a mapping, got \['time'\]"),
        ({"final__seeds": ["a"]}, r"final.seeds.default must be a list of integers, got \['a'\]"),
        ({"recipes__split": {"overrides": [1]}}, r"recipes.split.overrides must be a mapping, got \[1\]"),
        ({"recipes": ["plain"]}, r"recipes must be a mapping, got \['plain'\]"),
        ({"prompts__curve": 2.5}, "prompts.curve must be an integer, got 2.5"),
        ({"measure": "acuracy"}, r"measure 'acuracy' is none of validation prompts.*There are: word_accuracy, ned, reward"),
        ({"measure": "judge_ned"}, r"measure 'judge_ned' is none of validation prompts"),
        (
            {"learning_rates_from": "x.json"},
            r"tuning would do nothing: all learning rates come from learning_rates_from \(x.json\)",
        ),
        (
            {"recipes": {name: {"learning_rate": 0.1} for name in ("plain", "split")}},
            "tuning would do nothing: all learning rates come from the recipes",
        ),
        (
            {
                "recipes": {name: {"learning_rate": 0.1} for name in ("plain", "split")},
                "tuning": None,
                "learning_rates_from": "x.json",
            },
            "learning_rates_from would do nothing: every recipe has its learning_rate",
        ),
        ({"recipes__split": {"tuned_as": "plain"}}, "recipes.split.tuned_as names a recipe of learning_rates_from, which does not"),
        ({"recipes__split": {"overrides": {"data.batch_size": 4}}}, "data.batch_size follows grid.prompts_per_update"),
        ({"recipes__split": {"overrides": {"data": {"train": "x"}}}}, "data.train follows prompts.train"),
        ({"recipes__split": {"overrides": {"model.lr_scheduler.init_args.total": 9}}}, "init_args.total follows axes"),
        ({"recipes__split": {"beyond": [1e-3]}}, "beyond must list learning rates that the grid does not have"),
        (
            {"recipes__split": {"learning_rate": 1e-3, "beyond": [1.0]}},
            "split.beyond is for tuning, but its learning rate is given",
        ),
        ({"recipes": {"plain": PLAIN}}, "at least two"),
        ({"base": None}, "recipes.plain: give it a config, or give a base for all recipes"),
        ({"grid__learning_rates": [1e-3, 1e-3]}, "grid.learning_rates must list different numbers"),
        ({"grid__learning_rates": []}, "recipes.plain has no learning rate: give `tuning` and grid.learning_rates"),
        ({"prompts__choice": 0}, "prompts.choice must be a number of prompts, at least 1, got 0"),
        ({"final__axes": {"tim": {"seconds": 3}}}, r"final.axes: unknown axis 'tim'. Did you mean 'time'\?"),
        ({"final__axes": {"time": {"updates": 3}}}, r"final.axes.time must be {seconds: number}, got {'updates': 3}"),
        ({"final__axes": {"images": {"images": "fewest"}}}, "within the seconds of final.axes.time: give that"),
        ({"final__axes": {"updates": {"updates": 0}}}, "final.axes.updates.updates must be a number above 0 or fewest, got 0"),
        ({"tuning__axes": {"time": {"seconds": 1}, "updates": {"updates": 3}}}, "tuning.axes must have one axis"),
        ({"final__seeds": []}, "final.seeds must list different seeds"),
        ({"final__seeds": {"default": [0, 1], "most": [0, 2, 3]}}, "most must have the default ones and more"),
        ({"final__seeds": {"default": [0], "most": [0, 1], "most_for": ["plan"]}}, r"'plan' is no recipe. Did you mean 'plain'\?"),
        ({"baseline": "plan"}, "baseline: 'plan' is no recipe"),
        ({"pairs": [["plain", "plain"]]}, "pairs must list pairs of two recipes"),
        (
            {"final__axes": {"updates": {"updates": 3}}, "grid__prompts_per_update": [2, 4]},
            "updates compares updates of the same prompts: give grid.prompts_per_update one number",
        ),
    ],
)
def test_a_bad_spec_is_refused_before_any_work(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", spec(folder, **changes)]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes__plain": {"overrides": {"model.alpa": 1}}}, "recipe plain: .*model has no 'alpa'"),
        ({"recipes__split": {"overrides": {"model.eval_seed": 3}}}, "differ in one of model.sampling, model.eval_seed"),
        (
            {"prompts__test": "few.jsonl"},
            r"validation \(few.jsonl\) and test \(few.jsonl\) share 3 prompts: \"chain\", \"horse\", \"plant\"",
        ),
        ({"prompts__validation": "train.jsonl"}, r"train \(train.jsonl\) and validation \(train.jsonl\) share 4 prompts"),
        ({"grid__prompts_per_update": [2, 8]}, "asks for 8 prompts, and there are 4"),
        (
            {"recipes__split": {"overrides": {"model.group_size": 4}}, "final__axes": {"updates": {"updates": 3}}},
            r"updates of the same branches per prompt, got {'plain': \[2\], 'split': \[4\]}",
        ),
        ({"measure": "ned"}, "measure is ned, but no reward of recipe plain reads words: give measure: reward"),
        ({"recipes__split": {"overrides": {"model.lr_scheduler": None}}}, "warmup is 1, but model.lr_scheduler has no `warmup`"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", spec(folder, **changes)]) in (1, 2)
    assert re.search(said, capsys.readouterr().err)
    assert not Path("out").exists()


def test_a_reward_that_reads_shares_no_word_between_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One word of a prompt with two; the prompts themselves differ."""
    Path("some.jsonl").write_text(json.dumps({"text": 'a sign that says "river SHELF"'}) + "\n")
    tree = yaml.safe_load(Path("base.yaml").read_text())
    tree["model"]["reward"] = {"class_path": "test_comparison.WordReader"}
    Path("base.yaml").write_text(yaml.safe_dump(tree))
    assert main(["compare", "c.yaml"]) == 1
    assert "train (train.jsonl) and test (some.jsonl) share 1 words: river" in capsys.readouterr().err


def test_a_phase_says_which_one_it_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for phase in ("tune", "final"):
        with pytest.raises(StartError, match="lacks plain with 2 prompts; run --phase time first"):
            getattr(Comparison(read_spec("c.yaml")), phase)()
    assert main(["compare", "c.yaml", "--phase", "report"]) == 1
    assert "run --phase time first" in capsys.readouterr().err


# --- the shipped comparisons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["comparison", "comparison_m"])
def test_the_shipped_comparisons_are_what_they_say(name: str) -> None:
    found = Comparison(read_spec(f"{name}.yaml"))
    spec = found.spec
    validation = load_prompts(spec.prompts.validation)
    for count in (spec.prompts.curve, spec.prompts.choice or 0):
        assert set(Counter(len(p.words) for p in spaced(validation, count)).values()) == {count // 3}
    trees = {recipe: found.tree(recipe, (4, 1e-4), 0, 100)["model"] for recipe in spec.recipes}
    assert all(model["lr_scheduler"]["init_args"] == {"warmup": 20, "total": 100, "least": 0.1} for model in trees.values())
    own = {"m", "stages", "alpha", "mask_source", "num_continuations", "alternation"}
    common = [{key: value for key, value in model.items() if key not in own} for model in trees.values()]
    assert all(model == common[0] for model in common)
    assert common[0]["first_scale"] == "shared"
    assert all(model["stages"] == [{"start": 1, "stop": 7, "branches": 8}] for model in trees.values() if "stages" in model)
    assert common[0]["group_size"] == 8
    made = [found.made(Run("final", recipe, 4, 1e-4, 100, 0)) for recipe in spec.recipes]
    assert len({digests["judging"] for digests in made}) == 1
    assert len({digests["training"] for digests in made}) == len(made)
    assert trees["grpo"]["alpha"] == 0
    assert spec.rival == "grpo"


def test_the_shipped_comparison_tunes_on_other_seeds_than_it_compares() -> None:
    spec = read_spec("comparison.yaml")
    assert spec.tuning is not None
    assert not set(spec.tuning.seeds) & set(spec.final.seeds.most)
    assert {name: (r.overrides.get("model.num_continuations", 1)) for name, r in spec.recipes.items() if "prefix" in name} == {
        "prefix_k0": 0,
        "prefix_k1": 1,
        "prefix_k2": 2,
    }
