from __future__ import annotations

import math

import pytest
import torch

from varrl_lightning.evaluation.standardised import completed_standards, standardised_reward
from varrl_lightning.types import Scores


def scores(**values: list[float]) -> dict[str, Scores]:
    return {name: Scores(torch.tensor(x), valid=torch.tensor(x).isfinite()) for name, x in values.items()}


def test_standards_are_those_of_the_first_scores_and_stay() -> None:
    first = completed_standards({}, scores(a=[1.0, 3.0], b=[100.0, math.nan, 300.0]))
    assert first == {"a": (2.0, 1.0), "b": (200.0, 100.0)}
    assert completed_standards(first, scores(a=[7.0, 9.0], b=[0.0, 1.0])) == first


def test_a_reward_that_did_not_vary_has_no_scale_yet() -> None:
    """Residues of rounding are no scale either: one would count a million times the other."""
    for equal in (0.0, 91.31956):
        first = completed_standards({}, scores(a=[1.0, 3.0], b=[equal, equal + equal * 1e-7]))
        assert first["b"] == (pytest.approx(equal), 0.0)
        assert standardised_reward(scores(a=[3.0], b=[equal]), {"a": 1.0, "b": 5.0}, first) == 1.0
        later = completed_standards(first, scores(a=[0.0, 0.0], b=[equal, equal + 2]))
        assert later["b"] == (pytest.approx(equal), 1.0)
        assert standardised_reward(scores(a=[2.0], b=[equal + 2]), {"a": 1.0, "b": 5.0}, later) == pytest.approx(10, rel=1e-4)


def test_the_sum_is_of_means_in_standard_deviations_by_the_weights() -> None:
    standards = {"a": (2.0, 1.0), "b": (200.0, 100.0), "watched": (0.0, 1.0)}
    now = scores(a=[3.0, 5.0], b=[150.0, math.nan], watched=[1e9])
    assert standardised_reward(now, {"a": 1.0, "b": -2.0, "watched": 0.0}, standards) == pytest.approx(2 + 1)


def test_without_a_score_of_each_there_is_no_number() -> None:
    standards = {"a": (2.0, 1.0), "b": (200.0, 100.0)}
    assert math.isnan(standardised_reward(scores(a=[3.0], b=[math.nan]), {"a": 1.0, "b": 1.0}, standards))
