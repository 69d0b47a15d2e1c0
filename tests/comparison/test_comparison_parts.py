"""Parts of the comparison without training: trees, budgets, the tidy file, choices, and intervals that can be checked by hand."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import ttest_1samp
from torch import Tensor

from tests.tiny import PROMPTS, LeftBright, tiny_module
from varrl_lightning.comparison.axes import lengths
from varrl_lightning.comparison.choices import Choices
from varrl_lightning.comparison.costs import Cost, StageCost
from varrl_lightning.comparison.jobs import Job, Run
from varrl_lightning.comparison.recipe_trees import changed, decided, merged, training_digest
from varrl_lightning.comparison.spec import Spec, read_spec
from varrl_lightning.comparison.statistics import Spread, bootstrap_interval, not_inferior, t_interval, verdict
from varrl_lightning.comparison.table import Table, alone
from varrl_lightning.comparison.training import whole
from varrl_lightning.errors import ConfigError, StartError
from varrl_lightning.types import Prompt, Scores

PREFIX, SUFFIX = StageCost("prefix", 16, 1.0, 0.9, {"reward": 0.2}), StageCost("suffix", 8, 3.0, 2.7, {"reward": 0.4})

# --- configurations -----------------------------------------------------------------------------------------------------------


def test_trees_are_merged_and_changed_key_by_key() -> None:
    below = {"model": {"optimizer": {"class_path": "A", "init_args": {"lr": 1, "eps": 2}}, "m": 4}}
    assert merged(below, {"model": {"optimizer": {"init_args": {"lr": 3}}}})["model"] == {
        "optimizer": {"class_path": "A", "init_args": {"lr": 3, "eps": 2}},
        "m": 4,
    }
    other = merged(below, {"model": {"optimizer": {"class_path": "B"}}})
    assert other["model"]["optimizer"] == {"class_path": "B"}, "arguments of another class are not its own"
    assert changed({"model": {"reward": "ocr"}}, "model.reward.init_args.lam", 2) == {
        "model": {"reward": {"class_path": "ocr", "init_args": {"lam": 2}}}
    }
    assert below["model"]["m"] == 4
    assert below["model"]["optimizer"]["init_args"]["lr"] == 1


def test_a_schedule_ends_with_its_run() -> None:
    def schedule(name: str, updates: int, rise: int | None, **arguments: Any) -> Any:
        tree = {"model": {"lr_scheduler": {"class_path": name, "init_args": arguments}}}
        return decided(tree, {}, updates, rise)["model"]["lr_scheduler"]["init_args"]

    assert schedule("WarmupCosine", 50, 5, warmup=20, total=99, least=0.1) == {"warmup": 5, "total": 50, "least": 0.1}
    assert schedule("WarmupCosine", 50, None, warmup=20, total=99) == {"warmup": 20, "total": 50}
    assert schedule("CosineAnnealingLR", 50, None, T_max=99) == {"T_max": 50}
    assert schedule("LinearLR", 50, None, total_iters=5) == {"total_iters": 5}
    with pytest.raises(ConfigError, match=r"warmup is 5, but model.lr_scheduler has no `warmup` and `total`"):
        schedule("CosineAnnealingLR", 50, 5, T_max=99)


def test_a_digest_is_of_what_training_depends_on() -> None:
    def tree(**model: Any) -> dict[str, Any]:
        schedule = {"class_path": "WarmupCosine", "init_args": {"warmup": 20, "total": 9}}
        return {
            "model": {"m": 4, "optimizer": {"init_args": {"lr": 1.0}}, "lr_scheduler": schedule, **model},
            "trainer": {"max_steps": 3},
        }

    same = training_digest(tree())
    for key, value in (("model.optimizer.init_args.lr", 2.0), ("model.lr_scheduler.init_args.total", 7), ("trainer.max_steps", 4)):
        assert training_digest(changed(tree(), key, value)) == same, f"{key} is told by the run's name"
    for key, value in (("model.m", 3), ("model.lr_scheduler.init_args.warmup", 7), ("trainer.precision", "bf16")):
        assert training_digest(changed(tree(), key, value)) != same
    assert training_digest(tree(evaluate_with=None)) == training_digest(tree(judge=None)), "results of 0.2 stay known"


# --- budgets ------------------------------------------------------------------------------------------------------------------


def test_a_budget_is_counted_through_the_cycle() -> None:
    cost = Cost((PREFIX, PREFIX, PREFIX, SUFFIX))
    assert (cost.seconds_per_update, cost.images_per_update) == (1.5, 14.0)
    assert [cost.images(n) for n in range(6)] == [0, 16, 32, 48, 56, 72]
    assert [cost.seconds(n) for n in range(6)] == [0, 1, 2, 3, 6, 7]
    assert cost.reward_share == pytest.approx(1.0 / 6.0)
    assert cost.waiting == pytest.approx(0.1)
    assert cost.updates_in(8.9) == 5
    for images in range(1, 200):
        updates = cost.updates_drawing(images)
        assert cost.images(updates) >= images > cost.images(updates - 1)


def test_axes_become_numbers_of_updates() -> None:
    costs = {"a": Cost((PREFIX,)), "b": Cost((SUFFIX,))}
    axes: dict[str, dict[str, Any]] = {"time": {"seconds": 12}, "images": {"images": "fewest"}, "updates": {"updates": "fewest"}}
    # 12 and 4 updates in 12 s; b draws 32 images by then, as a does in 2 updates.
    assert lengths("final", axes, costs, None) == {
        "time": {"a": 12, "b": 4},
        "images": {"a": 2, "b": 4},
        "updates": {"a": 4, "b": 4},
    }
    assert lengths("final", {"images": {"images": 17}}, costs, None) == {"images": {"a": 2, "b": 3}}


@pytest.mark.parametrize(
    ("axes", "warmup", "said"),
    [
        ({"time": {"seconds": 2}}, None, "final.axes.time: 2 seconds are less than one update of b, which takes 3 s and 8 images"),
        (
            {"images": {"images": 15}},
            None,
            "final.axes.images: 15 images are less than one update of a, which takes 1 s and 16 images",
        ),
        ({"updates": {"updates": 20}}, 20, "20 updates are 20 updates of a, and the warm-up alone takes 20"),
    ],
)
def test_budgets_that_are_too_small_are_refused(axes: dict[str, dict[str, Any]], warmup: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lengths("final", axes, {"a": Cost((PREFIX,)), "b": Cost((SUFFIX,))}, warmup)


# --- the tidy file ------------------------------------------------------------------------------------------------------------

MADE = {"training": "1e5", "weights": "b", "judging": "c", "train": "d", "validation": "e", "test": "f"}
RunFactory = Callable[..., Job]


def job(recipe: str = "a", rate: float = 1e-3, seed: int = 0, phase: Any = "final", **made: str) -> Job:
    return Job(Run(phase, recipe, 4, rate, 10, seed), {}, MADE | made, 2, None, 1, "word_accuracy")


def result(validation: float = 0.5, prompts: tuple[float, ...] = (0.0, 1.5)) -> dict[str, Any]:
    mean = sum(prompts) / len(prompts)
    test = [
        {"updates": 10, "split": "test", "way": way, "n": len(prompts), "values": {"word_accuracy": mean}, "prompts": list(prompts)}
        for way in ("sampled", "greedy")
    ]
    whole = {"updates": 10, "split": "validation", "way": "sampled", "n": 9, "prompts": None}
    return {"readings": [*test, whole | {"values": {"word_accuracy": validation}}], "stopped": "", "wall_seconds": 1.5}


def add(table: Table, one: Job, found: dict[str, Any] | None = None) -> None:
    found = found or result()
    table.add(one, found, {"m": "", "K": "", "axes": "time"}, [(20, 1.25)] * len(found["readings"]))


def test_rows_are_kept_as_they_were_and_others_are_refused(tmp_path: Path) -> None:
    table = Table(tmp_path)
    add(table, job(seed=0))
    first = table.path.read_text()
    add(table, job(seed=1), result(prompts=(0.3, 0.6)))
    assert table.path.read_text().startswith(first)
    assert [row["seed"] for row in table.rows()] == ["0"] * 3 + ["1"] * 3
    assert table.check([job(seed=0), job(seed=1), job(seed=2)]) == {job(seed=0).run.name, job(seed=1).run.name}
    row = next(row for row in table.rows() if row["split"] == "test" and row["seed"] == "1")
    assert {name: row[name] for name in ("learning_rate", "images", "seconds", "word_accuracy", "training")} == {
        "learning_rate": "0.001",
        "images": "20",
        "seconds": "1.25",
        "word_accuracy": "0.45",
        "training": "1e5",
    }
    assert table.of_prompts(row, "word_accuracy") == [0.3, 0.6]
    said = r"final-a-p4-lr0.001-u10-s1 were made with another weights \(b, now x\), test \(f, now y\) than requested now"
    with pytest.raises(StartError, match=said):
        table.check([job(seed=1, weights="x", test="y")])


def test_a_new_measure_gets_a_column_and_a_stopped_run_a_row(tmp_path: Path) -> None:
    table = Table(tmp_path)
    add(table, job())
    add(table, job(seed=1), {"readings": [], "stopped": "not finite", "wall_seconds": 2.0})
    more = result()
    more["readings"][0]["values"]["ned"] = 0.75
    add(table, job(seed=2), more)
    rows = table.rows()
    assert [row["ned"] for row in rows if row["split"] == "test"] == ["", "", "0.75", ""]
    assert [(row["stopped"], row["split"]) for row in rows if row["seed"] == "1"] == [("not finite", "")]


def test_files_that_were_changed_are_found(tmp_path: Path) -> None:
    table = Table(tmp_path)
    add(table, job())
    row = table.rows()[0]
    with pytest.raises(StartError, match=r"does not have the mean of its row in results.csv"):
        table.of_prompts(row | {"word_accuracy": "0.5"}, "word_accuracy")
    (tmp_path / "prompts" / f"{row['run']}.json.gz").write_bytes(b"")
    with pytest.raises(StartError, match=r"has no word_accuracy of the prompts, sampled"):
        table.of_prompts(row, "word_accuracy")
    lines = table.path.read_text().splitlines()
    table.path.write_text("\n".join([*lines, lines[1][:40]]) + "\n")
    with pytest.raises(StartError, match=r"results.csv, line 5: expected the columns"):
        table.rows()


def test_two_commands_do_not_add_to_one_folder(tmp_path: Path) -> None:
    second = alone(tmp_path / "out")
    with alone(tmp_path / "out"), pytest.raises(StartError, match="another `varrl compare` is adding to"), second:
        pass
    with alone(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


# --- choices ------------------------------------------------------------------------------------------------------------------


def spec(folder: Path, **changes: Any) -> Spec:
    tree: dict[str, Any] = {
        "recipes": {name: {"config": "paper.yaml"} for name in ("a", "b", "c")},
        "prompts": {"train": "x", "validation": "y", "test": "z"},
        "grid": {"learning_rates": [1e-3, 1e-2], "prompts_per_update": [4]},
        "tuning": {"axes": {"time": {"seconds": 1}}, "seeds": [7, 8]},
        "final": {"axes": {"time": {"seconds": 1}}, "seeds": {"default": [0, 1], "most": [0, 1, 2], "most_for": ["a"]}},
        "output": str(folder),
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree | changes))
    return read_spec(folder / "c.yaml")


def test_the_best_point_is_chosen_on_validation(tmp_path: Path) -> None:
    table, choices = Table(tmp_path), Choices(spec(tmp_path))
    values = {("a", 1e-3): (0.5, 0.7), ("a", 1e-2): (0.9, 0.1), ("b", 1e-3): (0.4, 0.4), ("b", 1e-2): (0.4, 0.4)}
    runs = []
    for (recipe, rate), of_seeds in values.items():
        for seed, value in zip((7, 8), of_seeds, strict=True):
            one = job(recipe, rate, seed, "tune")
            runs.append(one.run)
            # The test says otherwise, and is not asked.
            add(table, one, result(value, prompts=(1.0 - value, 1.0 - value)))
    assert choices.tune(runs, table) == {"a": (4, 1e-3), "b": (4, 1e-3)}, "of equal ones the smaller rate"
    missing = job("c", 1e-3, 7, "tune").run
    with pytest.raises(StartError, match=re.escape(f"lacks 1 of 9 runs, {missing.name} the first; run --phase tune first")):
        choices.tune([*runs, missing], table)
    add(table, job("c", 1e-3, 7, "tune"), {"readings": [], "stopped": "not finite", "wall_seconds": 1.0})
    with pytest.raises(StartError, match=r"every run of c stopped before its end"):
        choices.tune([*runs, missing], table)


def test_more_seeds_go_to_the_highest_on_validation_and_stay_there(tmp_path: Path) -> None:
    table, choices = Table(tmp_path), Choices(spec(tmp_path))
    values = {"a": (0.5, 0.6), "b": (0.5, 0.5), "c": (0.9, 0.4)}
    jobs = [(job(recipe, seed=seed), value) for recipe, of_seeds in values.items() for seed, value in enumerate(of_seeds)]
    for one, value in jobs:
        add(table, one, result(value, prompts=(1.0 - value, 1.0 - value)))
    assert choices.chosen_seeds() == dict.fromkeys("abc", (0, 1)), "before the choice"
    expected = {"a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2)}
    assert choices.seeds([one.run for one, _ in jobs], "time", table) == expected
    recorded = json.loads(choices.path.read_text())["most_seeds"]
    assert recorded == {
        "highest": "c",
        "axis": "time",
        "seeds": [0, 1],
        "validation_word_accuracy": {"a": 0.55, "b": 0.5, "c": 0.65},
    }
    assert choices.seeds([one.run for one, _ in jobs], "time", table) == expected
    others = Table(tmp_path / "other")
    for one, value in jobs:
        add(others, one, result(1.0 - value))
    with pytest.raises(StartError, match=r"records .*'highest': 'c'.* validation rows say .*'highest': 'b'"):
        choices.seeds([one.run for one, _ in jobs], "time", others)


def test_learning_rates_of_another_comparison(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    recipes = {"a": {"config": "paper.yaml"}, "b2": {"config": "paper.yaml", "tuned_as": "b"}}
    recipes["c"] = {"config": "paper.yaml", "learning_rate": 0.5}  # type: ignore[dict-item]
    given = spec(
        tmp_path,
        recipes=recipes,
        tuning=None,
        learning_rates_from=str(other),
        final={"axes": {"time": {"seconds": 1}}, "seeds": [0]},
    )
    choices = Choices(given)
    with pytest.raises(StartError, match=re.escape(f"there is no {other}; tune that comparison first")):
        choices.points([], Table(tmp_path))
    other.write_text(json.dumps({"points": {"a": {"prompts": 4, "learning_rate": 2e-4}}}))
    with pytest.raises(StartError, match="has no point of b, for b2; it has a"):
        choices.points([], Table(tmp_path))
    other.write_text(json.dumps({"points": {n: {"prompts": 4, "learning_rate": r} for n, r in (("a", 2e-4), ("b", 4e-4))}}))
    assert choices.points([], Table(tmp_path)) == {"a": (4, 2e-4), "b2": (4, 4e-4), "c": (4, 0.5)}


# --- statistics ---------------------------------------------------------------------------------------------------------------


def test_the_t_interval_is_students() -> None:
    differences = [0.03, 0.05, -0.01, 0.06, 0.02]
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert t_interval(differences) == pytest.approx((expected.low, expected.high))
    with pytest.raises(ValueError, match="needs two of them at least, got 1"):
        t_interval([0.1])


def test_the_t_interval_covers_what_it_says() -> None:
    """Of 1000 sets of three differences with mean .3; the standard error of the share is .007."""
    rng = np.random.default_rng(0)
    within = [low <= 0.3 <= high for low, high in (t_interval(row.tolist()) for row in rng.normal(0.3, 0.2, (1000, 3)))]
    assert np.mean(within) == pytest.approx(0.95, abs=0.02)


def test_the_bootstrap_by_enumeration() -> None:
    """Two seeds and two prompts: 4 draws of seeds, each with 4 draws of prompts in either place, all equally likely."""
    d = np.array([[0.0, 1.0], [4.0, 8.0]])
    means = []
    for seeds in itertools.product(range(2), repeat=2):
        for prompts in itertools.product(range(2), repeat=4):
            means.append(np.mean([d[seeds[0], list(prompts[:2])], d[seeds[1], list(prompts[2:])]]))
    rng = np.random.default_rng(3)
    low, high = bootstrap_interval(d.tolist(), level=0.5, draws=5000)
    ordered = np.sort(means)
    assert low == pytest.approx(np.quantile(ordered, 0.25), abs=0.51)
    assert high == pytest.approx(np.quantile(ordered, 0.75), abs=0.51)
    # The standard deviation, by wide rows whose means are nearly normal.
    d = rng.normal(0, 1, (6, 40)) + rng.normal(0, 1, (6, 1))
    low, high = bootstrap_interval(d.tolist())
    of_seeds, of_prompts = d.mean(axis=1).var() / 6, d.var(axis=1).mean() / 240
    assert (high - low) / (2 * 1.96) == pytest.approx(math.sqrt(of_seeds + of_prompts), rel=0.05)
    assert bootstrap_interval(d.tolist()) == (low, high)
    assert bootstrap_interval(d.tolist(), seed=1) != (low, high)


def test_rows_that_cannot_be_drawn_from_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the same prompts for every seed, got \[2, 1\]"):
        bootstrap_interval([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="needs two of each at least, got 1 and 2"):
        bootstrap_interval([[1.0, 2.0]])


def test_what_an_interval_says() -> None:
    assert [verdict(interval) for interval in ((0.01, 0.1), (-0.2, -0.1), (-0.01, 0.1))] == ["above", "below", "cannot be told"]
    assert [not_inferior((low, 0.1), 0.02) for low in (-0.019, -0.021)] == ["not inferior", "cannot be told"]


def test_a_spread_by_hand() -> None:
    assert Spread.of([1.0, 2.0, 6.0]) == Spread(3.0, 1.0, 6.0, math.sqrt(7.0))
    assert math.isnan(Spread.of([1.0]).std)


# --- readings -----------------------------------------------------------------------------------------------------------------


def test_the_first_reward_of_evaluations_reads_the_sampled_images_of_a_thorough_reading() -> None:
    def half(images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        return Scores(torch.zeros(len(images)), texts=[[word if i % 2 else "" for word in p.words] for i, p in enumerate(prompts)])

    module = tiny_module(evaluate_with={"half": half, "light": LeftBright()})
    sampled, greedy = whole("test", PROMPTS[:4], thorough=True)(module)
    assert sampled["values"]["judge_word_accuracy"] == pytest.approx(0.5)
    assert "judge_word_accuracy" not in greedy["values"]
    (quick,) = whole("choice", PROMPTS[:4], thorough=False)(module)
    assert "judge_word_accuracy" not in quick["values"]
