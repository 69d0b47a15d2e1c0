"""The comparison of recipes: the same updates as `fit`, resumable phases, and statistics that can be checked by hand."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from varrl_lightning.__main__ import main
from varrl_lightning.comparison.costs import Cost, StageCost
from varrl_lightning.comparison.report import _compared
from varrl_lightning.comparison.spec import read_spec
from varrl_lightning.comparison.statistics import Spread, paired_difference
from varrl_lightning.comparison.training import build, means, spaced, train
from varrl_lightning.configuration.files import shipped_configs
from varrl_lightning.prompts.files import load_prompts

RECIPES = ("paper", "vanilla_grpo", "vanilla_panw", "prefix_only")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with prompts, two recipes on a tiny model, and a spec of two points and two seeds."""
    monkeypatch.chdir(tmp_path)
    sets = {"train": "STONE RIVER BREAD CLOUD", "few": "PLANT HORSE CHAIN", "some": "CHAIR TABLE SHELF"}
    for name, words in sets.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": f'"{w}"'}) + "\n" for w in words.split()))
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}
    model = {"policy": {"class_path": "tiny.tiny_policy"}, "reward": "tiny.LeftBright", "mask_source": "full", "optimizer": adam}
    model |= {"sampling": {"top_k": 8}, "group_size": 2, "score": "sampler"}
    ways = {"split": {"m": 2, "num_continuations": 2, "alternation": ["prefix", "suffix"]}}
    ways["plain"] = {"stages": [{"start": 0, "stop": 4, "branches": 2}]}
    for name, own in ways.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": model | own, "trainer": {"accelerator": "cpu"}}))
    spec(folder=tmp_path)
    yield tmp_path
    # seed_everything leaves its seed in the environment.
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("PL_SEED_WORKERS", raising=False)


def spec(folder: Path, **changes: Any) -> str:
    """Writes c.yaml, with changes by dotted key (`__` for the dot)."""
    tree: dict[str, Any] = {
        "recipes": {"split": {"config": "split.yaml", "label": "two stages"}, "plain": {"config": "plain.yaml"}},
        "prompts": {"train": "train.jsonl", "validation": "few.jsonl", "test": "some.jsonl", "curve": 2},
        "grid": {"learning_rates": [1e-3, 1e-4], "prompts_per_update": [2]},
        "tuning": {"seconds": 4, "seeds": [7], "curve_every": 2},
        "final": {"seconds": 6, "seeds": [0, 1], "curve_every": 2},
        "timing": {"warm_up": 1, "updates": 2},
        "measure": "reward",
        "baseline": "plain",
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


# --- the whole ----------------------------------------------------------------------------------------------------------------


def test_all_phases_and_what_is_there_is_not_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "c.yaml", "--phase", "time"]) == 0
    measured = json.loads(Path("out/timing.json").read_text())
    split, plain = (measured["recipes"][name]["2"] for name in ("split", "plain"))
    assert [(s["name"], s["images"]) for s in split["cycle"]] == [("prefix", 8), ("suffix", 4)]
    assert [(s["name"], s["images"]) for s in plain["cycle"]] == [("all", 4)]
    assert all(0 < sum(s["parts"].values()) <= s["seconds"] * 1.001 for s in split["cycle"])
    fixed_times(folder)
    assert main(["compare", "c.yaml"]) == 0

    grid = json.loads(Path("out/grid.json").read_text())
    assert len(grid["runs"]) == 4
    for recipe, best in grid["best"].items():
        rows = {row["learning_rate"]: row["at_time"]["sampled"]["reward"] for row in grid["runs"] if row["recipe"] == recipe}
        assert best["learning_rate"] == max(rows, key=lambda rate: (rows[rate], -rate))
    # 6 s are floor(6 / 1.5) = 4 and 6 / 2 = 3 updates; plain has drawn 12 images by then, which split has after 2 of its updates.
    results = json.loads(Path("out/results.json").read_text())["recipes"]
    assert [results[name]["at_time"]["updates"] for name in ("split", "plain")] == [4, 3]
    assert [results[name]["at_images"]["updates"] for name in ("split", "plain")] == [2, 3]
    assert results["split"]["at_images"]["images"] == results["plain"]["at_images"]["images"] == 12
    rewards = results["split"]["at_time"]["sampled"]["reward"]
    other = results["plain"]["at_time"]["sampled"]["reward"]
    assert rewards["difference"] == pytest.approx(rewards["mean"] - other["mean"], abs=2e-5)
    assert rewards["seeds"][0] != rewards["seeds"][1]
    assert "difference" not in other
    page = Path("out/results.md").read_text()
    assert "## At equal images" in page
    assert re.search(r"\| two stages \| 2 \| 1\.50 \| 6 \| \d+% \|", page)
    assert "| two stages |" in page
    with Image.open("out/comparison.png") as picture:
        assert picture.width > 500

    kept = sorted(Path("out/final").glob("split_*seed1.json"))[0]
    before = {path: path.stat().st_mtime_ns for path in [*Path("out/final").glob("*.json"), *Path("out/grid").glob("*.json")]}
    content = json.loads(kept.read_text())
    kept.unlink()
    capsys.readouterr()
    assert main(["compare", "c.yaml"]) == 0
    assert "1 to go" not in capsys.readouterr().out
    again = json.loads(kept.read_text())
    assert again["readings"] == content["readings"]
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path != kept)

    Path("plain.yaml").write_text(Path("plain.yaml").read_text().replace("group_size: 2", "group_size: 3"))
    assert main(["compare", "c.yaml", "--phase", "final"]) == 1
    assert "timing.json: plain with 2 prompts was made with another recipe" in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_find_what_one_does(folder: Path) -> None:
    assert main(["compare", "c.yaml", "--phase", "time"]) == 0
    fixed_times(folder)
    spec(folder, grid__learning_rates=[1e-3], tuning__seconds=2)
    assert main(["compare", "c.yaml", "--phase", "grid"]) == 0
    alone = json.loads(Path("out/grid.json").read_text())
    for path in Path("out/grid").iterdir():
        path.unlink()
    spec(folder, grid__learning_rates=[1e-3], tuning__seconds=2, workers=2)
    assert main(["compare", "c.yaml", "--phase", "grid"]) == 0
    assert json.loads(Path("out/grid.json").read_text()) == alone


@pytest.mark.parametrize("name", ["split", "plain"])
def test_the_updates_are_those_of_fit(folder: Path, name: str) -> None:
    found = read_spec("c.yaml")
    arguments = found.arguments(name, prompts=2, rate=3e-4, seed=5)
    module, data, config = build(arguments, 3)
    start = torch.cat([p.detach().flatten().clone() for p in module.policy.parameters()])
    recorder = train(module, data, config, 3, {1: means(data.prompts["validation"])})
    assert list(recorder.taken) == [1]
    limits = ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
    assert main([*arguments, *limits, "--trainer.default_root_dir=run"]) == 0
    held = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    ours = module.state_dict()
    assert held.keys() == ours.keys()
    assert all(torch.equal(held[key], ours[key]) for key in held)
    assert not torch.equal(start, torch.cat([p.flatten() for p in module.policy.parameters()]))


def test_a_schedule_that_ends_ends_with_the_run(folder: Path) -> None:
    cosine = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 99}}
    tree = yaml.safe_load(Path("plain.yaml").read_text())
    tree["model"]["lr_scheduler"] = cosine
    Path("plain.yaml").write_text(yaml.safe_dump(tree))
    module, data, config = build(read_spec("c.yaml").arguments("plain", 2, 1e-3, 0), updates=2)
    train(module, data, config, 2, {})
    assert module.lr_schedulers().get_last_lr() == pytest.approx([0.0])  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_recipe_may_have_seeds_and_learning_rates_of_its_own(folder: Path) -> None:
    """Runs 0 and 1 of one recipe, 0, 1 and 2 of the other: the difference is over the two that both have."""
    own = {"config": "split.yaml", "label": "two stages", "seeds": [0, 1, 2], "beyond": [5e-4]}
    assert main(["compare", spec(folder, recipes__split=own, grid__learning_rates=[1e-3]), "--phase", "time"]) == 0
    fixed_times(folder)
    assert main(["compare", "c.yaml"]) == 0
    tried = [(run["recipe"], run["learning_rate"]) for run in json.loads(Path("out/grid.json").read_text())["runs"]]
    assert tried == [("split", 1e-3), ("plain", 1e-3), ("split", 5e-4)]
    table = json.loads(Path("out/results.json").read_text())["recipes"]
    assert [table[name]["seeds"] for name in ("split", "plain")] == [[0, 1, 2], [0, 1]]
    ours, theirs = (table[name]["at_time"]["sampled"]["reward"] for name in ("split", "plain"))
    assert len(ours["seeds"]) == 3
    by_hand = [a - b for a, b in zip(ours["seeds"][:2], theirs["seeds"], strict=True)]
    assert ours["differences"] == pytest.approx(by_hand, abs=2e-5)
    assert ours["difference"] == pytest.approx(sum(by_hand) / 2, abs=2e-5)
    assert ours["difference_seeds"] == [0, 1]
    assert "| two stages | 3 |" in Path("out/results.md").read_text()


def test_what_only_one_recipe_was_judged_by_is_not_compared() -> None:
    """The recipe that draws fewest images has one reading for both budgets, with the second judge; others have none there."""

    def run(*measures: str) -> dict[str, Any]:
        values = {"means": dict.fromkeys(measures, 0.5), "prompts": {name: [0.25, 0.75] for name in measures}}
        return {"at_images": 3, "readings": {"3": {"test": {"sampled": values}}}}

    runs = {"a": {s: run("reward", "judge_word_accuracy") for s in (0, 1)}, "b": {s: run("reward") for s in (0, 1)}}
    found = _compared(runs, "a", "b", "at_images", "sampled")
    assert "difference" in found["reward"]
    assert "difference" not in found["judge_word_accuracy"]


# --- what is wrong is said first ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"recipes__plain": {"config": "plain.yaml", "label": "x", "overides": {}}},
            r"unknown key 'overides'. Did you mean 'overrides'\?",
        ),
        ({"recipes__plain": {"config": "plane.yaml"}}, "no configuration file 'plane.yaml'"),
        ({"recipes__plain": {"config": "plain.yaml", "grid": {"learning_rates": [1e-3]}}}, "recipes.plain: unknown key 'grid'"),
        (
            {"recipes__plain": {"config": "plain.yaml", "overrides": {"data.batch_size": 4}}},
            "data.batch_size follows grid.prompts_per",
        ),
        ({"recipes__plain": {"config": "plain.yaml", "overrides": {"model.alpa": 1}}}, "model has no 'alpa'"),
        (
            {"recipes__plain": {"config": "plain.yaml", "overrides": {"model.eval_seed": 3}}},
            "differ in one of model.sampling, model.eval_seed, model.reward, model.judge",
        ),
        (
            {"recipes__plain": {"config": "plain.yaml", "overrides": {"model.judge": "tiny.LeftBright"}}},
            "differ in one of model.sampling, model.eval_seed, model.reward, model.judge",
        ),
        ({"recipes__plain": {"config": "plain.yaml", "seeds": [1, 2]}}, "split.seeds: two must be plain's too"),
        (
            {"recipes__plain": {"config": "plain.yaml", "beyond": [1e-3]}},
            "beyond must list learning rates that the grid does not have",
        ),
        ({"recipes": {"plain": {"config": "plain.yaml"}}}, "at least two"),
        ({"prompts__test": "few.jsonl"}, "validation and test share 3 prompts"),
        ({"prompts__validation": "train.jsonl"}, "train and validation share 4 prompts"),
        ({"grid__prompts_per_update": [2, 8]}, "asks for 8 prompts, and there are 4"),
        ({"grid__learning_rates": [1e-3, 1e-3]}, "grid.learning_rates must list different numbers"),
        ({"final": {"seconds": 3, "seeds": [0, 1]}}, "final: curve_every missing"),
        ({"prompts__choice": 0}, "prompts.choice must be a number of prompts, at least 1, got 0"),
        ({"recipes__plain": {"config": "plain.yaml", "seeds": [1, 1]}}, r"plain.seeds must list different seeds, got \(1, 1\)"),
        # While tests run, the type checker answers these two before we do.
        ({"recipes__plain": {"config": "plain.yaml", "seeds": 3}}, "(?s)recipes.plain.*seeds"),
        ({"prompts__curve": None}, "(?s)prompts.*curve"),
        ({"final__seeds": []}, "final.seeds must list different seeds"),
        ({"tuning__images": "most"}, "tuning.images must be a number above 0 or 'fewest', got 'most'"),
        ({"baseline": "plan"}, "baseline 'plan' is no recipe"),
    ],
)
def test_a_bad_spec_is_refused_before_any_work(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", spec(folder, **changes)]) in (1, 2)
    assert re.search(said, capsys.readouterr().err)
    assert not Path("out").exists()


def test_a_phase_says_which_one_it_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "c.yaml", "--phase", "grid"]) == 1
    assert "lacks split with [2] prompts; run --phase time first" in capsys.readouterr().err
    assert main(["compare", "c.yaml", "--phase", "time"]) == 0
    assert main(["compare", "c.yaml", "--phase", "final"]) == 1
    assert "lacks 4 of 4 runs; run --phase grid first" in capsys.readouterr().err


# --- budgets ------------------------------------------------------------------------------------------------------------------


def test_a_budget_is_counted_through_the_cycle() -> None:
    prefix, suffix = StageCost("prefix", 16, 1.0, 1.0, {"reward": 0.2}), StageCost("suffix", 8, 3.0, 3.0, {"reward": 0.4})
    cost = Cost((prefix, prefix, prefix, suffix))
    assert (cost.seconds_per_update, cost.images_per_update) == (1.5, 14.0)
    assert [cost.images(n) for n in range(6)] == [0, 16, 32, 48, 56, 72]
    assert [cost.seconds(n) for n in range(6)] == [0, 1, 2, 3, 6, 7]
    assert cost.reward_share == pytest.approx(1.0 / 6.0)
    assert cost.updates_in(8.9) == 5
    for images in range(1, 200):
        updates = cost.updates_drawing(images)
        assert cost.images(updates) >= images > cost.images(updates - 1)


# --- statistics ---------------------------------------------------------------------------------------------------------------


def test_a_difference_by_hand() -> None:
    """d = [[1, 3], [2, 6]]: means 2, 4 by seed; 1.5, 4.5 by prompt; 3 of all."""
    found = paired_difference([[2.0, 3.0], [2.0, 7.0]], [[1.0, 0.0], [0.0, 1.0]])
    assert found.mean == 3.0
    assert found.seeds == (2.0, 4.0)
    v_s, v_i, v_e = (1 + 1) / 2, (2.25 + 2.25) / 2, (0.25 * 4) / 4
    assert found.error == pytest.approx(math.sqrt(v_s + v_i - v_e))


def test_the_error_is_that_of_new_seeds_and_new_prompts() -> None:
    """Over many draws of seeds and prompts, SE^2 is the variance of the mean on average; either half alone falls short of it."""
    rng = np.random.default_rng(0)
    found, alone = [], []
    for _ in range(4000):
        d = 0.3 + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 1.0, (1, 40)) + rng.normal(0, 0.5, (3, 40))
        found.append(paired_difference(d.tolist(), np.zeros((3, 40)).tolist()))
        alone.append(d.mean(axis=1).var(ddof=1) / 3)
    means_of = np.array([f.mean for f in found])
    squares = np.array([f.error**2 for f in found])
    expected = 0.2**2 / 3 + 1.0 / 40 + 0.5**2 / 120
    assert means_of.var() == pytest.approx(expected, rel=0.07)
    assert squares.mean() == pytest.approx(expected, rel=0.07)
    assert np.mean(alone) < 0.5 * expected


def test_unequal_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="the same seeds and prompts"):
        paired_difference([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="needs two of each"):
        paired_difference([[1.0, 2.0]], [[1.0, 2.0]])


def test_a_spread_by_hand() -> None:
    assert Spread.of([1.0, 2.0, 6.0]) == Spread(3.0, 1.0, 6.0, math.sqrt(7.0))
    assert math.isnan(Spread.of([1.0]).std)


# --- the shipped comparison ---------------------------------------------------------------------------------------------------


def test_the_shipped_comparison_is_accepted_and_its_recipes_differ_as_they_say() -> None:
    found = read_spec("comparison.yaml")
    assert set(found.recipes) == set(RECIPES)
    assert len(found.grid.points) >= 6
    assert len(found.final.seeds) >= 3
    validation = load_prompts(found.prompts.validation)
    for count in (found.prompts.curve, found.prompts.choice or 0):
        assert set(Counter(len(p.words) for p in spaced(validation, count)).values()) == {count // 3}
    assert not set(found.tuning.seeds) & set(found.final.seeds)
    trees = {name: yaml.safe_load(shipped_configs()[f"{name}.yaml"].read_text()) for name in RECIPES}
    own = {"m", "stages", "alpha", "mask_source", "num_continuations", "alternation", "group_size", "eta", "first_scale"}
    common = [{k: v for k, v in tree["model"].items() if k not in own} for tree in trees.values()]
    assert all(model == common[0] for model in common)
    assert all(tree["data"] == trees["paper"]["data"] and tree["trainer"] == trees["paper"]["trainer"] for tree in trees.values())
    branches = {tree["model"].get("group_size") or tree["model"]["stages"][0]["branches"] for tree in trees.values()}
    assert branches == {8}
    models = [tree["model"] for tree in trees.values()]
    begins = {model["stages"][0]["start"] if "stages" in model else model["first_scale"] for model in models}
    assert begins == {1, "shared"}, "no recipe trains r_1, or all do"
    assert {name: tree["model"]["alpha"] for name, tree in trees.items()} == {
        n: 0.0 if n == "vanilla_grpo" else 0.6 for n in RECIPES
    }
