"""Files of tables: read back whole, refused where damaged or foreign, removed where a run goes on before them; milliseconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.sample_tables.made_rows import row
from varrl_lightning.sample_tables.parquet import (
    KEY,
    read_sample_tables,
    remove_tables,
    table_files,
    table_path,
    write_sample_table,
)

pq = pytest.importorskip("pyarrow.parquet")
ROWS = [row(), row(branch=4, read=None, reward=None, return_=None, image_mask=None, parts={}), row(branch=5, read=(), words=())]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (2, 10, 1_000_000):
        write_sample_table(table_path(tmp_path, step), [row(step=step)])
    return tmp_path


def test_every_value_is_read_as_it_was(tmp_path: Path) -> None:
    write_sample_table(table_path(tmp_path, 40), ROWS)
    assert read_sample_tables(str(tmp_path)) == ROWS


def test_the_columns_are_those_of_the_contract(tmp_path: Path) -> None:
    path = table_path(tmp_path, 40)
    write_sample_table(path, ROWS)
    table = pq.read_table(path)
    names = ["step", "stage", "prompt", "words", "group", "branch", "continuation", "image", "read"]
    assert table.column_names == [*names, "reward", "rewards", "parts", "return", "advantage", "masks", "image_mask"]
    assert json.loads(table.schema.metadata[KEY]) == {"version": 1, "scales": ["scale 1, 1x2", "scale 2, 2x1"]}


def test_steps_are_in_their_order_and_can_be_chosen(run: Path) -> None:
    (run / "samples" / "tables" / "step_x.parquet").touch()
    assert list(table_files(run)) == [2, 10, 1_000_000]
    assert [r.step for r in read_sample_tables(run)] == [2, 10, 1_000_000]
    assert [r.step for r in read_sample_tables(run, step=10)] == [10]


def test_pictures_can_be_left_out(run: Path) -> None:
    first = read_sample_tables(run, pictures=False)[0]
    assert (first.image, first.masks, first.image_mask) == (b"", (), None)
    assert first.advantage == -1.5


def test_a_run_without_tables_has_no_rows(tmp_path: Path) -> None:
    assert read_sample_tables(tmp_path) == []


def test_tables_of_later_steps_are_removed(run: Path) -> None:
    remove_tables(run, from_step=10)
    assert list(table_files(run)) == [2]


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign", "later"])
def test_a_damaged_file_is_named(run: Path, damage: str) -> None:
    import pyarrow

    path = table_path(run, 10)
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: 500 if damage == "cut" else 0])
    else:
        about = {} if damage == "foreign" else {KEY: b'{"version": 2}'}
        pq.write_table(pyarrow.table({"a": [1]}).replace_schema_metadata(about), path)
    with pytest.raises(ValueError, match=r"step_000010.parquet cannot be read as a table of samples: .*\. Remove it") as raised:
        read_sample_tables(run)
    said = {"foreign": "of version None", "later": "of version 2", "cut": "Parquet", "empty": "Parquet"}[damage]
    assert said in str(raised.value)


def test_without_pyarrow_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'varrl-lightning\[tables\]'"):
        read_sample_tables(run)
