"""Which commit a run names: that of the checkout that the package is run from, and no other project's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from varrl_lightning.callbacks.environment import commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *who, *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_checkout_has_a_plus_where_files_have_changed(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    assert commit(package) is None
    git(tmp_path, "init", "-q")
    assert commit(package) is None  # a package that is installed inside of another project
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    assert commit(package) == git(tmp_path, "rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True\n")
    assert commit(package) == git(tmp_path, "rev-parse", "HEAD") + "+"
