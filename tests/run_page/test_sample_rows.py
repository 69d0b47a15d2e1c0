"""Which samples stand in the table, and what a row of a Parquet table becomes."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.run_page.made import sampled, written
from varrl_lightning.run_page.pictures import EXACT, SIDE, data_url
from varrl_lightning.run_page.record import read_run
from varrl_lightning.run_page.sample_rows import STEPS, chosen_rows, evaluation_rows, table_rows


def test_rows_are_even_over_steps_and_within_them() -> None:
    found = chosen_rows({step: list(range(32)) for step in range(0, 1000, 10)}, 100)
    assert len(found) == STEPS
    assert (min(found), max(found)) == (0, 990)
    assert all(rows == [0, 10, 21, 31] for rows in found.values())
    assert chosen_rows({}, 100) == {}
    assert chosen_rows({0: [1], 1: [2], 2: [3]}, 2) == {0: [1], 2: [3]}


def test_samples_of_evaluation_are_rows_too(tmp_path: Path) -> None:
    rows, count = evaluation_rows(read_run(sampled(written(tmp_path / "run", {"reward": [0.1]})), "run"), 3)
    assert count == 4
    assert [(row.step, row.correct, row.read, row.numbers) for row in rows] == [
        (0, False, ("ST<B>E",), {"reward": 0.0}),
        (9, True, ("STONE",), {"reward": 1.0}),
    ]


def test_a_table_that_is_damaged_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra 'tables'")
    run = written(tmp_path / "run", {"reward": [0.1]})
    (run / "samples" / "tables").mkdir(parents=True)
    (run / "samples" / "tables" / "step_000001.parquet").write_bytes(b"PAR1, or so")
    record = read_run(run, "run")
    assert table_rows(record, 10) == ([], 0)
    assert "step_000001.parquet cannot be read as a table of samples" in record.problems[-1]


def test_small_pictures_stay_exact_and_large_ones_become_smaller() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 600, 3), dtype=np.uint8)
    url = data_url(noise)
    assert url.startswith("data:image/jpeg;base64,")
    assert len(url) < 80_000
    flat = data_url(np.full((1000, 600, 3), 7, dtype=np.uint8))
    assert flat.startswith("data:image/png;base64,")
    assert len(flat) < EXACT
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        assert max(picture.size) == SIDE
