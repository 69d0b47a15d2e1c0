"""What earlier runs have left in a folder is kept, whoever runs there next, and wherever a process is killed meanwhile."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from varrl_lightning.configuration.earlier_runs import EARLIER, RESULTS, keep_alone, keep_earlier_run


def leave(run: Path, mark: str, *, folders: bool = False) -> None:
    """What a run leaves, with its mark in every file; checkpoints are links to folders where it is sharded."""
    for name in ("config.yaml", "metrics.csv", "summary.json", "alarms.json"):
        write(run / name, mark)
    for name in ("samples/step_000000.png", "figures/reward.png", "tensorboard/events.1"):
        write(run / name, mark)
    for number, name in enumerate(("last", "best")):
        path = run / "checkpoints" / f"{name}.ckpt"
        if folders:
            write(path.with_name(f".{name}.{number}") / "shard", mark)
            path.symlink_to(f".{name}.{number}")
        else:
            write(path, mark)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def marks(run: Path) -> Counter[str]:
    """How many files there are of each mark."""
    return Counter(path.read_text() for path in run.rglob("*") if path.is_file() and path.name != "config.yaml")


@pytest.mark.parametrize("folders", [False, True], ids=["files", "sharded"])
def test_three_runs_in_a_folder_are_all_kept(tmp_path: Path, folders: bool) -> None:
    places = []
    for mark in ("first", "second", "third"):
        places.append(keep_earlier_run(tmp_path))
        assert [p.name for p in tmp_path.iterdir() if p.name not in (EARLIER, "config.yaml")] == []
        leave(tmp_path, mark, folders=folders)
    assert places == [None, tmp_path / EARLIER / "1", tmp_path / EARLIER / "2"]
    for number, mark in (("1", "first"), ("2", "second")):
        kept = tmp_path / EARLIER / number
        assert {p.name for p in kept.iterdir()} == {*RESULTS, "config.yaml"}
        assert {path.read_text() for path in kept.rglob("*") if path.is_file()} == {mark}
        assert (
            next((kept / "checkpoints" / "last.ckpt").parent.glob("last.ckpt/shard" if folders else "last.ckpt")).read_text()
            == mark
        )


@pytest.mark.parametrize("folders", [False, True], ids=["files", "sharded"])
def test_a_run_goes_on_from_its_own_last_checkpoint_in_place(tmp_path: Path, folders: bool) -> None:
    leave(tmp_path, "first", folders=folders)
    before = marks(tmp_path)
    assert keep_earlier_run(tmp_path, tmp_path / "checkpoints" / "last.ckpt") is None
    assert marks(tmp_path) == before
    assert not (tmp_path / EARLIER).exists()


def test_a_folder_of_checkpoints_that_is_a_link_is_still_the_runs_own(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    leave(run, "first")
    (run / "checkpoints").rename(disk)
    (run / "checkpoints").symlink_to("../disk")
    assert keep_earlier_run(run, run / "checkpoints" / "last.ckpt") is None
    assert keep_earlier_run(run, disk / "last.ckpt") is None
    assert keep_earlier_run(run) == run / EARLIER / "1"
    assert (run / EARLIER / "1" / "checkpoints" / "last.ckpt").read_text() == "first"


@pytest.mark.parametrize("folders", [False, True], ids=["files", "sharded"])
def test_from_its_best_checkpoint_a_run_keeps_the_end_that_it_will_replace(tmp_path: Path, folders: bool) -> None:
    leave(tmp_path, "first", folders=folders)
    best = tmp_path / "checkpoints" / "best.ckpt"
    kept = keep_earlier_run(tmp_path, best)
    assert kept == tmp_path / EARLIER / "1"
    assert best.exists()
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert (kept / "checkpoints" / "last.ckpt").exists()
    assert not (kept / "checkpoints" / "best.ckpt").exists()
    for name in ("metrics.csv", "samples/step_000000.png"):  # the run goes on with them, and changes them
        assert (tmp_path / name).read_text() == (kept / name).read_text() == "first"
    assert (kept / "summary.json").read_text() == "first"
    assert keep_earlier_run(tmp_path, best) is None  # started again before its first save


def test_another_runs_checkpoint_does_not_mix_two_runs(tmp_path: Path) -> None:
    leave(tmp_path / "a", "a")
    leave(tmp_path / "b", "b")
    kept = keep_earlier_run(tmp_path / "b", tmp_path / "a" / "checkpoints" / "last.ckpt")
    assert kept == tmp_path / "b" / EARLIER / "1"
    assert set(marks(tmp_path / "a")) == {"a"}
    assert not (tmp_path / "b" / "metrics.csv").exists()


def test_a_kept_run_goes_on_with_its_metrics_and_both_stay(tmp_path: Path) -> None:
    leave(tmp_path, "first")
    keep_earlier_run(tmp_path)
    leave(tmp_path, "second")
    given = tmp_path / EARLIER / "1" / "checkpoints" / "last.ckpt"
    assert keep_earlier_run(tmp_path, given) == tmp_path / EARLIER / "2"
    assert given.read_text() == "first"
    assert (tmp_path / "metrics.csv").read_text() == (tmp_path / "samples" / "step_000000.png").read_text() == "first"
    assert set(marks(tmp_path / EARLIER / "1")) == {"first"}
    assert set(marks(tmp_path / EARLIER / "2")) == {"second"}


def test_a_checkpoint_that_version_0_2_has_set_aside_is_never_moved(tmp_path: Path) -> None:
    leave(tmp_path, "second")
    given = tmp_path / "checkpoints" / "last.ckpt.earlier"
    write(tmp_path / "checkpoints" / ".last.7" / "shard", "first")
    given.symlink_to(".last.7")
    kept = keep_earlier_run(tmp_path, given)
    assert (given / "shard").read_text() == "first"
    assert kept is not None
    assert {p.name for p in (kept / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


class KilledError(BaseException):
    """In place of a signal, between two renames."""


@pytest.mark.parametrize("folders", [False, True], ids=["files", "sharded"])
@pytest.mark.parametrize("given", [None, "checkpoints/best.ckpt"])
def test_a_kill_in_between_loses_nothing(tmp_path: Path, folders: bool, given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before each rename in turn, and started again: every file is there, and nothing of the two runs is mixed."""
    moves = 0
    while True:
        run = tmp_path / str(moves)
        leave(run, "first", folders=folders)
        before = marks(run)
        left = [moves]

        def rename(self: Path, to: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            os.rename(self, to)
            return to

        monkeypatch.setattr(Path, "rename", rename)
        try:
            keep_earlier_run(run, None if given is None else run / given)
            finished = True
        except KilledError:
            finished = False
        monkeypatch.undo()
        assert marks(run) >= before
        if moves and given is None:
            assert not (run / "checkpoints").exists(), "a job that is started again would resume from another run's checkpoint"
        if given is not None:
            keep_earlier_run(run, run / given)  # the same command once more
            assert (run / given).exists()
        keep_earlier_run(run)  # a new run
        assert marks(run) >= before
        assert any(p.exists() for p in (run / EARLIER).glob("*/checkpoints/last.ckpt"))
        assert [p.name for p in run.iterdir() if p.name not in (EARLIER, "config.yaml")] == []
        if given is None:
            assert [p.name for p in (run / EARLIER).iterdir()] == ["1"]
        if finished:
            break
        moves += 1
    assert moves >= 3


def test_a_file_that_is_kept_alone_has_a_number_of_its_own(tmp_path: Path) -> None:
    assert keep_alone(tmp_path / "metrics.csv") is None
    for number in (1, 2):
        write(tmp_path / "metrics.csv", str(number))
        assert keep_alone(tmp_path / "metrics.csv") == tmp_path / EARLIER / str(number)
        assert (tmp_path / EARLIER / str(number) / "metrics.csv").read_text() == str(number)
