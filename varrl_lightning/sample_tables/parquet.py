"""Tables of samples as Parquet files in a run folder; reading and writing needs pyarrow."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varrl_lightning.configuration.atomic_write import replacing
from varrl_lightning.sample_tables.rows import SampleRow

KEY = b"varrl-lightning"
VERSION = 1
"""The version of the columns; a reader refuses a later one."""
INSTALL = "pip install 'varrl-lightning[tables]'"
PICTURES = ("image", "masks", "image_mask")
"""The columns that hold PNG files."""


def table_path(run: Path, step: int) -> Path:
    """Where a run's table of a training step is."""
    return run / "samples" / "tables" / f"step_{step:06d}.parquet"


def table_files(run: Path) -> dict[int, Path]:
    """The tables of a run by their step, the first step first."""
    found = {path.stem.removeprefix("step_"): path for path in (run / "samples" / "tables").glob("step_*.parquet")}
    return dict(sorted((int(number), path) for number, path in found.items() if number.isdecimal()))


def remove_tables(run: Path, from_step: int) -> None:
    """Remove the tables of `from_step` and later: of steps that are repeated, or of another run."""
    for step, path in table_files(run).items():
        if step >= from_step:
            path.unlink()


def can_write() -> bool:
    """Whether pyarrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def write_sample_table(path: Path, rows: Sequence[SampleRow]) -> None:
    """Write the rows of one step, in one piece or not at all.

    Raises:
        ModuleNotFoundError: without pyarrow.
        OSError: where it cannot be written.
    """
    arrow, parquet = _arrow()
    about = json.dumps({"version": VERSION, "scales": rows[0].scales})
    schema = _schema(arrow).with_metadata({KEY: about.encode()})
    table = arrow.Table.from_pylist([_record(row) for row in rows], schema=schema)
    plain = [name for name in schema.names if name not in PICTURES]
    with replacing(path) as part:
        # A PNG is compressed already, and no two are alike.
        parquet.write_table(table, part, compression=dict.fromkeys(plain, "zstd"), use_dictionary=plain)


def read_sample_tables(run: str | Path, step: int | None = None, pictures: bool = True) -> list[SampleRow]:
    """All rows of a run's tables, the first step first; none where there is no table.

    Args:
        run: the run folder.
        step: the rows of this step alone.
        pictures: whether to read `image`, `masks` and `image_mask` too, which are nearly all of a file.

    Raises:
        ModuleNotFoundError: without pyarrow; says how to install it.
        ValueError: names a file that is damaged, or of another kind.
    """
    files = table_files(Path(run))
    if not files:
        return []
    arrow, parquet = _arrow()
    return [row for n, path in files.items() if step in (None, n) for row in _rows(arrow, parquet, path, pictures)]


def _rows(arrow: Any, parquet: Any, path: Path, pictures: bool) -> list[SampleRow]:
    columns = [name for name in _schema(arrow).names if pictures or name not in PICTURES]
    try:
        with parquet.ParquetFile(path) as file:
            about = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
            if about.get("version") != VERSION:
                raise ValueError(f"it is no table of samples of version {VERSION}, but of version {about.get('version')}")
            records = file.read(columns).to_pylist()
        return [_row(record, tuple(about["scales"])) for record in records]
    except (ValueError, OSError, KeyError) as error:  # pyarrow's errors are of these kinds
        raise ValueError(
            f"{path} cannot be read as a table of samples: {error}. Remove it, or write it again with this version"
        ) from error


def _schema(arrow: Any) -> Any:
    number, text, picture = arrow.float64(), arrow.string(), arrow.binary()
    columns = {
        "step": arrow.int64(),
        "stage": text,
        "prompt": text,
        "words": arrow.list_(text),
        "group": arrow.int64(),
        "branch": arrow.int64(),
        "continuation": arrow.int64(),
        "image": picture,
        "read": arrow.list_(text),
        "reward": number,
        "rewards": arrow.map_(text, number),
        "parts": arrow.map_(text, number),
        "return": number,
        "advantage": number,
        "masks": arrow.list_(picture),
        "image_mask": picture,
    }
    return arrow.schema(list(columns.items()))


def _record(row: SampleRow) -> dict[str, Any]:
    """A row by the names of the columns."""
    values = {name: value for name, value in vars(row).items() if name not in ("scales", "return_")}
    maps = {name: list(value.items()) for name, value in values.items() if isinstance(value, Mapping)}
    return {**values, **maps, "return": row.return_}


def _row(record: dict[str, Any], scales: tuple[str, ...]) -> SampleRow:
    read = record["read"]
    changed = {
        "words": tuple(record["words"]),
        "read": None if read is None else tuple(read),
        "rewards": dict(record["rewards"]),
        "parts": dict(record["parts"]),
        "image": record.get("image", b""),
        "masks": tuple(record.get("masks", ())),
        "image_mask": record.get("image_mask"),
        "return_": record.pop("return"),
        "scales": scales,
    }
    return SampleRow(**{**record, **changed})


def _arrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet."""
    if not can_write():
        raise ModuleNotFoundError(f"tables of samples need pyarrow, which is not installed: {INSTALL}")
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
