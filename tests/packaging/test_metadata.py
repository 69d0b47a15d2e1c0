"""What a distribution says of itself, and what it holds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
BUILD = tomllib.loads(TEXT)["tool"]["hatch"]["build"]["targets"]


def test_the_source_archive_has_what_a_clone_has() -> None:
    included = BUILD["sdist"]["include"]
    assert [name for name in included if not (ROOT / name).exists()] == []
    listed = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(listed.stdout.split()) - set(included) <= {"pyproject.toml", ".gitignore"}  # nothing is listed outside of a clone


def test_the_wheel_has_the_configurations() -> None:
    assert BUILD["wheel"]["force-include"] == {"configs": "varrl_lightning/configs"}


def test_every_requirement_has_its_reason() -> None:
    section = TEXT.split("dependencies = [")[1].split("[project.urls]")[0]
    lines = [line for line in section.splitlines() if line.startswith('  "')]
    named = [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]
    assert len(lines) == len(named)
    assert [line for line in lines if not re.search(r'",  # \S', line)] == []


def test_the_classifiers_exist() -> None:
    known = pytest.importorskip("trove_classifiers", reason="comes with hatchling").classifiers
    assert set(PROJECT["classifiers"]) - set(known) == set()
