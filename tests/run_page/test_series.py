"""Lines, bands and groups of runs, against numbers made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.run_page.made import write_config, written
from varrl_lightning.figures.tables import Curve
from varrl_lightning.run_page.record import read_runs
from varrl_lightning.run_page.series import SHOWN, column, groups, lines, noisy, of_stage, series, smoothed


def test_runs_that_differ_by_the_seed_alone_are_one_group(tmp_path: Path) -> None:
    folders = [written(tmp_path / f"seed{i}", {"reward": [float(i)]}, seed=i) for i in range(3)]
    other = written(tmp_path / "other", {"reward": [1.0]})
    write_config(other, 3, group_size="16")
    unknown = [written(tmp_path / name, {"reward": [1.0]}) for name in ("a", "b")]
    found = groups(read_runs([folders[0], other, *folders[1:], *unknown]))
    assert {name: [run.name for run in members] for name, members in found.items()} == {
        "seed0 and 2 more": ["seed0", "seed1", "seed2"],
        "other": ["other"],
        "a": ["a"],
        "b": ["b"],
    }


def test_a_band_is_the_lowest_and_the_highest_run_at_the_steps_that_all_have() -> None:
    curves = [Curve([0, 1, 2, 3], [0.1, 0.5, 0.2, 9.0]), Curve([0, 1, 2], [0.3, 0.1, 0.7]), Curve([0, 2], [0.8, 0.3])]
    found = series("reward", curves)
    values = np.array([[0.1, 0.2], [0.3, 0.7], [0.8, 0.3]])
    assert found.steps == [0, 2]
    assert np.allclose(found.mean, values.mean(0), atol=1e-6)
    assert (found.low, found.high) == (values.min(0).tolist(), values.max(0).tolist())
    assert found.raw is None


def test_runs_without_a_common_step_show_the_first_alone() -> None:
    found = series("reward", [Curve([0, 2], [1.0, 2.0]), Curve([1], [3.0])], several=True)
    assert (found.label, found.steps, found.mean, found.low) == ("reward (one run)", [0, 2], [1.0, 2.0], None)


def test_a_noisy_curve_is_smoothed_before_the_mean_over_runs() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 120))
    by_hand = np.array([[row[max(0, i - 3) : i + 4].mean() for i in range(120)] for row in values])
    assert np.allclose(smoothed(values[0].tolist()), by_hand[0])
    found = series("reward", [Curve(list(range(120)), row.tolist()) for row in values])
    assert np.allclose(found.mean, by_hand.mean(0), rtol=1e-5)
    assert np.allclose(found.low or [], by_hand.min(0), rtol=1e-5)
    one = series("reward", [Curve(list(range(120)), values[0].tolist())])
    assert np.allclose(one.raw or [], values[0], rtol=1e-5)
    assert one.low is None


@pytest.mark.parametrize(("values", "expected"), [([i % 2 for i in range(39)], False), ([i % 2 for i in range(40)], True)])
def test_short_curves_are_shown_as_they_are(values: list[float], expected: bool) -> None:
    assert noisy(values) is expected
    assert (smoothed(values).tolist() == values) is not expected


def test_a_schedule_is_not_smoothed() -> None:
    values = [min(i / 40, 1 - i / 400) for i in range(400)]
    assert smoothed(values).tolist() == values


def test_long_curves_are_thinned_with_both_ends() -> None:
    found = series("lr", [Curve(list(range(10_000)), [float(i) for i in range(10_000)])])
    assert len(found.steps) == SHOWN
    assert (found.steps[0], found.steps[-1]) == (0, 9999)


def test_a_line_for_each_choice_and_group_that_has_numbers(tmp_path: Path) -> None:
    columns = {"reward": [0.1, 0.4], "prefix/reward": [0.1, 0.1], "suffix/reward": [np.nan, 0.4]}
    runs = groups(read_runs([written(tmp_path / "a", columns), written(tmp_path / "b", {"reward": [1.0, 2.0]})]))
    found = lines(runs, {"all": column("reward"), "prefix": of_stage("prefix", "reward"), "suffix": of_stage("suffix", "reward")})
    assert [(one.label, one.steps, one.mean) for one in found] == [
        ("all · a", [0, 1], [0.1, 0.4]),
        ("all · b", [0, 1], [1.0, 2.0]),
        ("prefix · a", [0], [0.1]),
        ("suffix · a", [1], [0.4]),
    ]
