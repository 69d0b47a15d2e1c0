"""`varrl report`: where the page goes, and what is said when it cannot be made."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.run_page.made import sampled, written
from varrl_lightning.commands import report

needs_vega = pytest.mark.skipif(find_spec("vl_convert") is None, reason="needs the extra 'report'")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return sampled(written(tmp_path / "runs" / "one", {"reward": [0.1, 0.2]}))


@needs_vega
def test_the_page_of_one_run_is_in_its_folder_beside_its_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run)]) == 0
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert (run / "figures" / "reward.png").exists()
    assert capsys.readouterr().out.splitlines()[-1] == str(run / "report.html")
    assert list(run.glob(".*")) == []


@needs_vega
def test_the_page_of_several_runs_is_in_the_folder_that_holds_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = written(run.parent / "two", {"reward": [0.3, 0.4]})
    monkeypatch.chdir(run.parent)
    assert report.main(["one", str(two)]) == 0
    assert "2 runs: one, two" in (run.parent / "report.html").read_text(encoding="utf-8")
    assert report.main(["one", "two", "--output", "pages/here.html"]) == 0
    assert (run.parent / "pages" / "here.html").exists()


def test_without_the_extra_the_figures_are_drawn_and_a_line_says_what_to_install(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert report.main([str(run)]) == 0
    assert (run / "figures" / "reward.png").exists()
    assert not (run / "report.html").exists()
    assert capsys.readouterr().err == f"varrl report: the page needs Vega-Lite, which is not installed: {report.INSTALL}\n"
    assert report.main([str(run), "--output", str(run / "page.html")]) == 1


@needs_vega
def test_a_page_that_cannot_be_written_says_where_to_put_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "in the way").touch()
    assert report.main([str(run), "--output", str(run / "in the way" / "page.html")]) == 1
    assert "could not be written" in (said := capsys.readouterr().err)
    assert "give another place as --output" in said


@needs_vega
def test_a_broken_summary_is_named_and_the_page_is_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").write_text("{")
    assert report.main([str(run)]) == 0
    said = capsys.readouterr().err
    assert f"the figures of {run} were not drawn" in said
    assert "one: summary.json could not be read and is left out" in said
    assert "one: summary.json could not be read and is left out" in (run / "report.html").read_text(encoding="utf-8")


def test_each_folder_must_be_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(run), str(run / "nowhere"), str(run / "metrics.csv")]) == 2
    assert f"{run / 'nowhere'}, {run / 'metrics.csv'} is not a folder" in capsys.readouterr().err
