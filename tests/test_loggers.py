from __future__ import annotations

import csv
from pathlib import Path

import pytest

from varrl_lightning.loggers import FLUSH_EVERY, MetricsCSV, run_loggers


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def logged(folder: Path, steps: range, resume: bool = False, **metrics: float) -> None:
    logger = MetricsCSV(folder, resume)
    for step in steps:
        logger.log_metrics(metrics | {"reward": step / 2}, step)
    logger.finalize("success")


def test_every_step_has_a_row(tmp_path: Path) -> None:
    logged(tmp_path, range(3))
    assert rows(tmp_path) == [{"step": "0", "reward": "0.0"}, {"step": "1", "reward": "0.5"}, {"step": "2", "reward": "1.0"}]


def test_what_is_logged_twice_at_a_step_shares_its_row(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"reward": 1.0}, 4)
    logger.log_metrics({"val/reward": 2.0}, 4)
    logger.save()
    assert rows(tmp_path) == [{"step": "4", "reward": "1.0", "val/reward": "2.0"}]


def test_a_column_that_comes_late_keeps_the_rows_before_it(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(2 * FLUSH_EVERY):
        logger.log_metrics({"reward": float(step)} | ({"late": 1.0} if step > FLUSH_EVERY else {}), step)
    logger.save()
    found = rows(tmp_path)
    assert [row["step"] for row in found] == [str(step) for step in range(2 * FLUSH_EVERY)]
    assert [row["late"] for row in found].count("1.0") == FLUSH_EVERY - 1


def test_a_resumed_run_goes_on_with_the_file_from_where_it_was_saved(tmp_path: Path) -> None:
    logged(tmp_path, range(5), old=1.0)
    logged(tmp_path, range(3, 6), resume=True, new=2.0)
    assert [(row["step"], row["old"], row["new"]) for row in rows(tmp_path)] == [
        ("0", "1.0", ""),
        ("1", "1.0", ""),
        ("2", "1.0", ""),
        ("3", "", "2.0"),
        ("4", "", "2.0"),
        ("5", "", "2.0"),
    ]


def test_a_new_run_in_the_same_folder_starts_an_empty_file_and_keeps_the_other(tmp_path: Path) -> None:
    logged(tmp_path, range(5))
    logged(tmp_path, range(9, 10))
    assert [row["step"] for row in rows(tmp_path)] == ["9"]
    assert [row["step"] for row in rows(tmp_path / "earlier" / "1")] == list("01234")


def test_a_run_that_logs_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    logged(tmp_path, range(2))
    logged(tmp_path, range(0))
    assert len(rows(tmp_path)) == 2


def test_a_run_that_resumes_with_a_validation_keeps_the_step_before_it(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    for step in range(3):
        logger.log_metrics({"reward": float(step)}, step)
        logger.save()
        logger.log_metrics({"val/reward": float(step)}, step)
        logger.save()
    resumed = MetricsCSV(tmp_path, resume=True)
    resumed.save()  # as Lightning does before a validation
    resumed.log_metrics({"val/reward": 9.0, "epoch": 0}, 1)
    resumed.save()
    assert [(row["step"], row["reward"], row["val/reward"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""),
        ("0", "", "0.0"),
        ("1", "1.0", ""),
        ("1", "", "9.0"),
    ]


def test_what_a_stage_has_no_number_for_is_an_empty_cell(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path)
    logger.log_metrics({"prefix/reward": 0.5, "suffix/reward": float("nan")}, 0)
    logger.log_metrics({"prefix/reward": float("nan"), "suffix/reward": float("inf")}, 1)
    logger.save()
    assert rows(tmp_path) == [
        {"step": "0", "prefix/reward": "0.5", "suffix/reward": ""},
        {"step": "1", "prefix/reward": "", "suffix/reward": "inf"},
    ]


def test_tensorboard_is_spared_nan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv_logger, events = run_loggers(tmp_path)
    assert isinstance(csv_logger, MetricsCSV)
    events.log_metrics({"prefix/reward": 0.5, "suffix/reward": float("nan")}, 0)
    events.finalize("success")
    assert "NaN" not in caplog.text
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_tensorboard_shows_two_runs_in_a_folder_apart(tmp_path: Path) -> None:
    for _ in range(2):
        events = run_loggers(tmp_path)[1]
        events.log_metrics({"reward": 0.5}, 0)
        events.finalize("success")
    for folder in (tmp_path, tmp_path / "earlier" / "1"):
        assert len(list((folder / "tensorboard").glob("events*"))) == 1


def test_a_row_that_a_kill_has_cut_short_is_left_out(tmp_path: Path) -> None:
    """Read as it stands, the row of step 12 could be one of step 1."""
    logged(tmp_path, range(2))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1")
    logged(tmp_path, range(2, 3), resume=True)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
