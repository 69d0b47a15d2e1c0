"""A file is there whole or as it was, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from varrl_lightning.configuration.atomic_write import replace_text, replacing

KILLED = """
import os, signal, sys
from varrl_lightning.configuration.atomic_write import replacing
with replacing(sys.argv[1]) as part:
    part.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "numbers.json"


def test_a_file_takes_its_name_when_it_is_whole(path: Path) -> None:
    for text in ("former\n", "new\r\n", ""):
        replace_text(path, text)
        assert path.read_bytes() == text.encode()
        assert os.listdir(path.parent) == [path.name]


def test_the_former_file_is_there_until_the_new_one_is_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_text(path, "former")
    told = []

    def fsync(descriptor: int) -> None:
        part = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        told.append((part.name, part.read_text(), path.read_text()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_text(str(path), "new")
    assert told == [(".numbers.json.part", "new", "former")]
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no number"), KeyboardInterrupt()], ids=repr)
def test_a_failure_leaves_the_former_file_alone(path: Path, error: BaseException) -> None:
    replace_text(path, "former")

    def fail() -> None:
        with replacing(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert path.read_text() == "former"
    assert os.listdir(path.parent) == [path.name]


def test_a_kill_leaves_the_former_file_and_the_next_write_clears_up(path: Path) -> None:
    replace_text(path, "former")
    killed = subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "former"
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == [path.name]


def test_an_error_names_the_file_that_was_asked_for(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as caught:
        replace_text(path, "new")
    assert str(caught.value).endswith(f": '{path}'")
    with pytest.raises(OSError, match="full") as caught, replacing(path):
        raise OSError(errno.ENOSPC, "full")  # as the system says it of a file that is open: without a name
    assert str(caught.value) == f"[Errno {errno.ENOSPC}] full: '{path}'"


def test_an_error_about_another_file_is_left_as_it_is(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '/nowhere/input'"), replacing(path):
        Path("/nowhere/input").read_text()
