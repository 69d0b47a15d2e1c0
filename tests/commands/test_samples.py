"""`varrl samples` on tables made by hand: milliseconds each, and a second for the one sheet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.sample_tables.made_rows import IMAGE, row
from varrl_lightning.commands.samples import main
from varrl_lightning.figures.sample_sheet import overlay, save_sheet
from varrl_lightning.sample_tables.parquet import table_path, write_sample_table
from varrl_lightning.sample_tables.rows import SampleRow

pytest.importorskip("pyarrow")
ROWS = [row(branch=b, reward=r, advantage=a) for b, r, a in ((0, 0.25, 0.0), (1, None, 0.0), (2, 0.75, 1.5), (3, -0.5, -1.5))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_sample_table(table_path(folder, 40), ROWS)
    write_sample_table(table_path(folder, 80), [row(step=80, stage="suffix", prompt="[red]plain", read=None)])
    return folder


def listed(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[dict[str, object]]:
    assert main([str(run), "--json", *options]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def refusal(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main([str(run), *options])
    out, err = capsys.readouterr()
    assert not out
    return status, err


def test_the_table_shows_what_a_reader_wants_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == "step stage group branch continuation prompt read reward return advantage".split()  # noqa: SIM905
    assert len(lines) == 5
    assert lines[0].split() == ["40", "prefix", "0", "0", "0", "a", "sign", '"STONE"', "ST0NE", "x", "0.25", "0.5", "0"]
    assert "[red]plain" in lines[-1]


@pytest.mark.parametrize(
    ("options", "branches"),
    [
        (["--sort", "reward"], [3, 0, 2, 1]),
        (["--sort", "reward", "--descending"], [2, 0, 3, 1]),  # without a reward: last in both
        (["--sort", "advantage", "--limit", "2"], [3, 0]),
        (["--where", "advantage < -1"], [3]),
        (["--where", "reward > 0 and advantage >= 0", "--sort", "branch", "--descending"], [2, 0]),
    ],
)
def test_rows_are_sorted_and_filtered(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], branches: list[int]
) -> None:
    assert [r["branch"] for r in listed(run, capsys, "--step", "40", *options)] == branches


def test_json_has_every_column_that_is_no_picture(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (last,) = listed(run, capsys, "--step", "last")
    assert (last["step"], last["return"], last["read"], last["words"]) == (80, 0.5, None, ["STONE"])
    assert (last["rewards.ocr"], last["rewards.my-clip"], last["parts.ocr.ned"]) == (0.25, None, 0.5)
    assert not {"image", "masks", "image_mask", "scales"} & set(last)


def test_columns_are_chosen(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(run, capsys, "--step", "80", "--columns", "parts.ned, step") == [{"parts.ocr.ned": 0.5, "step": 80}]
    assert main([str(run), "--columns", "all", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "parts.my-clip.both" in out
    assert "1 of 5 rows; --limit 5 shows all" in out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--where", "reward > 7"], 1, "none of 5 rows fulfils 'reward > 7'"),
        (["--where", "rewrd > 7"], 2, "the table has no 'rewrd'. Did you mean 'reward"),
        (["--where", "reward >"], 2, "cannot be read at character 9: expected a column"),
        (["--where", "reward < 'a'"], 2, "compares values of one kind"),
        (["--where", "__import__('os')"], 2, "the table has no '__import__'"),
        (["--sort", "retrun"], 2, "Did you mean 'return'"),
        (["--columns", "image"], 2, "the table has no 'image'"),
        (["--step", "41"], 2, "no table of step '41'; there are tables of step 40, 80, or 'last'"),
    ],
)
def test_what_cannot_be_shown_is_said(
    run: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, said: str
) -> None:
    got, err = refusal(run, capsys, *options)
    assert got == status
    assert err.startswith("varrl samples: ")
    assert said in err


def test_a_limit_is_a_number_of_rows(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([str(run), "--limit", "0"])
    assert raised.value.code == 2
    assert "a number of rows is at least 1, got '0'" in capsys.readouterr().err


def test_folders_without_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, err = refusal(tmp_path / "nothing", capsys)
    assert status == 2
    assert "is not a folder; give the folder of a run" in err
    status, err = refusal(tmp_path, capsys)
    assert status == 1
    assert "has no tables of samples in samples/tables. The callback SampleTables writes one" in err
    assert "pip" not in err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, err = refusal(tmp_path, capsys)
    assert status == 1
    assert "which needs pyarrow: pip install 'varrl-lightning[tables]'" in err


def test_without_pyarrow_tables_are_not_read(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, err = refusal(run, capsys)
    assert status == 1
    assert "not installed: pip install 'varrl-lightning[tables]'" in err


def test_a_damaged_table_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table_path(tmp_path, 3)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    status, err = refusal(tmp_path, capsys)
    assert status == 1
    assert f"{path} cannot be read as a table of samples" in err


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_pictures_are_saved_by_step_group_and_branch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--where", "branch == 3 and step == 40", "--save", str(tmp_path / "new" / "pictures")]) == 0
    assert "4 pictures of 1 rows in" in capsys.readouterr().err
    stem = "step_000040_group_0_branch_03_0"
    names = {path.name for path in (tmp_path / "new" / "pictures").iterdir()}
    assert names == {f"{stem}{name}.png" for name in ("", "_pixels", "_scale_01", "_scale_02")}
    assert (pixels(tmp_path / "new" / "pictures" / f"{stem}.png") == IMAGE).all()
    over = pixels(tmp_path / "new" / "pictures" / f"{stem}_scale_01.png")
    assert over.shape == (256, 128, 3)
    assert (over[:, :64] == 40).all()  # outside the mask, a fifth as bright
    assert (over[:, 64:] == 200).all()


def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    status, err = refusal(run, capsys, "--save", str(tmp_path / "file"))
    assert status == 1
    assert str(tmp_path / "file") in err


def test_an_overlay_has_a_plain_rectangle_for_each_token() -> None:
    image = np.full((300, 200, 3), 100, dtype=np.uint8)
    over = overlay(image, np.array([[0, 255], [255, 0], [0, 0]], dtype=np.uint8))
    assert over.shape == image.shape
    expected = np.full((300, 200), 20)
    expected[:100, 100:] = expected[100:200, :100] = 100
    assert (over == expected[..., None]).all()


def test_a_sheet_has_a_line_for_each_row(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--limit", "2", "--sheet", str(tmp_path / "two.png")]) == 0
    assert "2 rows on" in capsys.readouterr().err
    hostile: list[SampleRow] = [row(prompt="$\\frac$ 中", read=(), reward=None, masks=(), scales=()), ROWS[0], ROWS[1]]
    save_sheet(hostile, tmp_path / "three.png")
    two, three = pixels(tmp_path / "two.png"), pixels(tmp_path / "three.png")
    assert two.shape[1] == three.shape[1]
    assert three.shape[0] == pytest.approx(1.5 * two.shape[0], abs=2)
    assert (three[..., :3] < 128).any()
