"""Faults planted in rewards: each is found by the check that is for it, which a clean configuration passes.

Here: a reward that is dead, gives NaN, is constant, is constant in most groups, is decided by chance, is too slow; a reader that is
broken; a dead judge; a plugin that is not installed. It takes about 10 s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import faults
from tests.faults import HERE, examined, finding
from tests.tiny import LeftBright
from varrl_lightning.commands.doctor_checklist import made
from varrl_lightning.commands.doctor_checks import Finding, plugins_load


def test_each_is_named_with_its_time_and_range(clean: dict[str, Finding]) -> None:
    assert "the reward 'ReadsWords' scores 8 of 8 images" in clean["rewards"].figure
    assert "the judge 'LeftBright' scores 8 of 8 images" in clean["rewards"].figure
    assert clean["rewards"].figure.count("ms an image") == 2


FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "dead": ("reward", "FAIL", {"reward": faults.Dead()}, "the reward 'Dead' raised ConnectionError: no connection to the scorer"),
    "dead, by name": ("rewards", "FAIL", {"reward": faults.Dead()}, "ConnectionError: no connection to the scorer"),
    "NaN": ("reward", "FAIL", {"reward": faults.NotANumber()}, "See why the reward gives None or NaN"),
    "NaN, by name": ("rewards", "FAIL", {"reward": faults.NotANumber()}, "The reward 'NotANumber' gave no score (None or NaN)"),
    "constant": ("variance", "FAIL", {"reward": faults.Constant()}, "The returns of each group are all alike"),
    "constant in most groups": ("variance", "warn", {"reward": faults.SomeGroups()}, "Most groups teach nothing"),
    "chance": ("rewards", "warn", {"reward": faults.Dice()}, "The reward 'Dice' is not deterministic"),
    "broken reader": ("reader", "FAIL", {"reward": faults.BrokenReader()}, "Either the reader does not work"),
    "dead judge": ("rewards", "FAIL", {"evaluate_with": faults.Dead()}, "ConnectionError: no connection to the scorer"),
    "too slow": (
        "duration",
        "warn",
        {"reward": faults.Slow(), "alternation": ["suffix"], "trainer": {"max_steps": 20_000}},
        "The rewards are too slow",
    ),
}


@pytest.mark.filterwarnings("ignore:the reward '.*' gave no score to some images")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names(fault: str, clean: dict[str, Finding], tmp_path: Path) -> None:
    check, level, changes, told = FAULTS[fault]
    found = finding(tmp_path, check, **changes)
    assert found.level == level, found
    assert told in found.advice
    assert clean[check].level == "pass"


def test_a_constant_reward_is_named_with_its_number(tmp_path: Path) -> None:
    found = finding(tmp_path, "variance", reward={"own": {"reward": faults.Constant(), "weight": 1.0}})
    assert "prefix: branches differ in 0 of 4 groups" in found.figure
    assert "the reward 'own' is constant: 0.250 for every image" in found.figure


def test_a_constant_reward_beside_another_is_no_fault(tmp_path: Path) -> None:
    both = {name: {"reward": reward, "weight": 1.0} for name, reward in (("a", faults.Constant()), ("b", LeftBright()))}
    found = finding(tmp_path, "variance", reward=both)
    assert found.level == "pass"
    assert "the reward 'a' is constant" in found.figure


def test_a_plugin_that_is_missing(clean: dict[str, Finding]) -> None:
    found = made("plugins", lambda: plugins_load("brightnes", "full"))
    assert not found.passed
    assert "no reward named 'brightnes'" in found.advice
    assert clean["plugins"].level == "pass"


def test_without_a_reward_gradients_are_tried_all_the_same_and_the_rest_is_not(tmp_path: Path) -> None:
    found = examined(tmp_path, reward=f"{HERE}.Dead", evaluate_with=None)
    assert found["gradients"].passed
    assert "with advantages of +1 and -1, since the rewards give none" in found["gradients"].figure
    assert [name for name, each in found.items() if each.figure == "not checked"] == ["variance", "duration"]
