"""Folders that are cut off, broken or still written to: what is wrong is named, and the rest is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_page.made import sampled, written
from varrl_lightning.run_page.callback_panels import hacking
from varrl_lightning.run_page.record import read_run, read_runs, short_names


def test_a_whole_folder_has_no_problem(tmp_path: Path) -> None:
    run = sampled(written(tmp_path / "run", {"reward": [0.1, 0.2]}, seed=3))
    (run / "summary.json").write_text('{"steps": 7}')
    record = read_run(run, "run")
    assert record.problems == []
    assert record.steps == 7
    assert record.config["seed_everything"] == 3
    assert [step for step, _ in record.samples] == [0, 9]


def test_a_last_line_that_is_cut_off_is_left_out_and_named(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"reward": [0.1, 0.2]})
    with (run / "metrics.csv").open("a") as file:
        file.write("12,0.")
    record = read_run(run, "run")
    assert record.steps == 2
    assert record.metrics["reward"].values == [0.1, 0.2]
    assert record.problems == ["run: the last line of metrics.csv has no end and is left out: it was being written, or cut off."]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", b'{"steps": 7'),
        ("summary.json", b"[1]"),
        ("alarms.json", b'[{"step": 7}]'),
        ("alarms.json", b"[{"),
        ("config.yaml", b"a: [1"),
        ("config.yaml", b"- a\n- b\n"),
        ("config.yaml", b"\xff\xfe"),
        ("metrics.csv", b"step,reward\nsoon,1\n"),
        ("metrics.csv", b"step,reward\n1e999,1\n"),
        ("metrics.csv", b"step,reward\n\xff,1\n"),
        ("samples/raw/step_000000.png", b"\x89PNG, or so"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_kept(tmp_path: Path, file: str, content: bytes) -> None:
    run = sampled(written(tmp_path / "run", {"reward": [0.1, 0.2]}, seed=0))
    (run / "summary.json").write_text('{"steps": 7}')
    (run / file).write_bytes(content)
    record = read_run(run, "run")
    assert record.problems[0].startswith(f"run: {file} could not be read and is left out (")
    assert record.begun
    assert len(record.samples) == (1 if file.startswith("samples") else 2)


def test_alarms_are_named_in_the_panel(tmp_path: Path) -> None:
    run = written(tmp_path / "run", {"hacking/alarms": [0.0, 1.0], "hacking/reward/change": [0.0, 0.5]}, seed=0)
    notes = hacking([read_run(run, "run")], {}).notes
    assert notes[0] == "run: no alarm."
    (run / "alarms.json").write_text('[{"text": "at step 2 it cheats"}]')
    notes = hacking([read_run(run, "run")], {}).notes
    assert notes[0] == "run, alarm: at step 2 it cheats."


def test_a_folder_without_numbers_says_so(tmp_path: Path) -> None:
    record = read_run(tmp_path, "run")
    assert not record.begun
    assert record.problems == ["run: metrics.csv has no numbers yet, so that there are no curves."]


def test_names_tell_runs_apart() -> None:
    assert short_names([Path("/x/runs/a")]) == ["a"]
    assert short_names([Path("/x/runs/a"), Path("/y/runs/a"), Path("/x/runs/b")]) == ["x/runs/a", "y/runs/a", "x/runs/b"]
    assert short_names([Path("/x/a"), Path("/x/a")]) == ["a (1)", "a (2)"]


def test_runs_keep_their_order(tmp_path: Path) -> None:
    folders = [written(tmp_path / name, {"reward": [1.0]}) for name in ("b", "a")]
    assert [run.name for run in read_runs(folders)] == ["b", "a"]
