"""Faults planted in rewards: each is found by the check that is for it, which a clean configuration passes.

Here: a reward that is dead, gives NaN, is constant, is constant in most groups, is decided by chance, is too slow; a reader that is
broken; a dead judge; a plugin that is not installed. It takes about 8 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import HERE, examined, finding, first_finding, reward
from varrl_lightning.commands.doctor_checks import Finding

NO_SCORE = "ignore:the reward '.*' gave no score to some images"


@pytest.fixture(autouse=True, scope="module")
def _environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setenv("PL_SEED_WORKERS", "0")
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    judged = reward("ReadsWords") | {"evaluate_with": "tests.tiny.LeftBright"}
    return examined(tmp_path_factory.mktemp("clean"), **judged)


def test_a_clean_configuration_passes_all(clean: dict[str, Finding]) -> None:
    assert {name for name, found in clean.items() if found.level != "pass"} == {"tokens"}
    assert "the reward 'ReadsWords' scores 8 of 8 images" in clean["rewards"].figure
    assert "the judge 'LeftBright' scores 8 of 8 images" in clean["rewards"].figure
    assert "ms an image" in clean["rewards"].figure


FAULTS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "dead": ("reward", "FAIL", reward("Dead"), "the reward 'Dead' raised ConnectionError: no connection to the scorer"),
    "dead, by name": ("rewards", "FAIL", reward("Dead"), "ConnectionError: no connection to the scorer"),
    "NaN": ("reward", "FAIL", reward("NotANumber"), "See why the reward gives None or NaN"),
    "NaN, by name": ("rewards", "FAIL", reward("NotANumber"), "The reward 'NotANumber' gave no score (None or NaN) to any of 8"),
    "constant": ("variance", "FAIL", reward("Constant"), "the returns of each group are all alike"),
    "constant in most groups": ("variance", "warn", reward("SomeGroups"), "Most groups teach nothing"),
    "chance": ("rewards", "warn", reward("Dice"), "The reward 'Dice' is not deterministic"),
    "too slow": ("duration", "warn", reward("Slow") | {"trainer": {"max_steps": 20_000}}, "The rewards are too slow"),
    "broken reader": ("reader", "FAIL", reward("BrokenReader"), "the reader does not work"),
    "dead judge": ("rewards", "FAIL", {"evaluate_with": f"{HERE}.Dead"}, "ConnectionError: no connection to the scorer"),
}


@pytest.mark.filterwarnings(NO_SCORE)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_names(fault: str, clean: dict[str, Finding], tmp_path: Path) -> None:
    check, level, changes, told = FAULTS[fault]
    found = finding(tmp_path, check, **changes)
    assert found.level == level
    assert told.lower() in found.advice.lower()
    assert clean[check].level == "pass"


def test_a_constant_reward_is_named_with_its_number(tmp_path: Path) -> None:
    found = finding(tmp_path, "variance", **reward("Constant"))
    assert "prefix: branches differ in 0 of 4 groups" in found.figure
    assert "the reward 'Constant' is constant: 0.250 for every image" in found.figure


def test_a_plugin_that_is_missing(clean: dict[str, Finding], tmp_path: Path) -> None:
    found = first_finding(tmp_path, "plugins", reward="brightnes")
    assert not found.passed
    assert "no reward named 'brightnes'" in found.advice
    assert clean["plugins"].level == "pass"


def test_without_a_reward_gradients_are_tried_all_the_same_and_the_rest_is_not(tmp_path: Path) -> None:
    found = examined(tmp_path, **reward("Dead"))
    assert found["gradients"].passed
    assert "with advantages of +1 and -1, since the rewards give none" in found["gradients"].figure
    assert [name for name, each in found.items() if each.figure == "not checked"] == ["variance", "duration"]
