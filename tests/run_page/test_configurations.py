"""Differences of configurations, and the nearest one that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.run_page.made import write_config
from varrl_lightning.configuration.files import find_config
from varrl_lightning.configuration.shipped import LEVELS
from varrl_lightning.run_page.configurations import ABSENT, MEANING, differences, flat, nearest, without_seed


def config(folder: Path, seed: int = 0, **changes: str) -> dict[str, object]:
    write_config(folder, seed, **changes)
    return dict(yaml.safe_load((folder / "config.yaml").read_text()))


def test_nested_keys_are_dotted_and_lists_of_values_are_one_value() -> None:
    tree = {"a": {"b": 1, "c": {}}, "d": [1, "x"], "e": [{"f": None}, 2], "g": "two\nlines"}
    assert dict(flat(tree)) == {"a.b": "1", "a.c": "{}", "d": "[1, x]", "e.0.f": "null", "e.1": "2", "g": '"two\\nlines"'}


def test_only_keys_that_differ_are_left() -> None:
    one = {"seed_everything": 0, "model": {"m": 4, "reward": {"ocr": 1}}, "trainer": {"default_root_dir": "a"}}
    two = {"seed_everything": 0, "model": {"m": 5, "reward": {"ocr": 1}, "eta": 1.0}, "trainer": {"default_root_dir": "b"}}
    assert differences([one, two]) == [("model.m", ["4", "5"]), ("model.eta", [ABSENT, "1.0"])]
    assert differences([one, one]) == []
    assert without_seed(one) == {"model.m": "4", "model.reward.ocr": "1"}


def test_the_nearest_configuration_has_the_fewest_differences(tmp_path: Path) -> None:
    near = nearest(config(tmp_path))
    assert near is not None
    assert (near.name, near.seen, near.differences, near.same_recipe) == ("quickstart.yaml", "run to its result", [], True)
    changed = nearest(config(tmp_path, group_size="16", max_steps="40", lr="0.00030"))
    assert changed is not None
    assert changed.differences == [("model.group_size", "8", "16"), ("trainer.max_steps", "300", "40")]
    assert not changed.same_recipe


@pytest.mark.parametrize("given", [{}, {"model": {"policy": {"class_path": "mine.Policy"}}}, {"model": "none"}])
def test_another_policy_has_no_nearest_configuration(given: dict[str, object]) -> None:
    assert nearest(given) is None


def test_every_level_has_its_meaning() -> None:
    assert set(MEANING) == set(LEVELS)
    page = find_config("quickstart.yaml").parents[1] / "docs" / "configs.md"
    text = page.read_text(encoding="utf-8")
    assert [level for level in LEVELS if f"| {level} |" not in text] == []
