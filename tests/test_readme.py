"""What the README promises."""

from __future__ import annotations

import inspect
import re
import shlex
from importlib.metadata import requires
from pathlib import Path

import pytest

from varrl_lightning.__main__ import COMMANDS, main
from varrl_lightning.module import VARGRPO
from varrl_lightning.pretraining.modules import main as pretraining

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```[^\n]*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_first_two_blocks_are_one_line_each() -> None:
    first, second = (block.strip() for block in BLOCKS[:2])
    assert "\n" not in first
    assert "\n" not in second
    assert "pip install -c constraints.txt" in first
    assert "-m varrl_lightning fit --config configs/quickstart.yaml" in first
    assert "pip install -c constraints.txt" in second
    assert shlex.split(second)[-1] == "pytest"


def test_every_argument_is_explained() -> None:
    arguments = set(inspect.signature(VARGRPO).parameters)
    section = (VARGRPO.__doc__ or "").split("Args:")[1].split("Raises:")[0]
    explained = set(re.findall(r"^        (\w+): ", section, flags=re.MULTILINE))
    assert explained == arguments


def test_every_argument_is_in_the_readme() -> None:
    named = {name for code in re.findall(r"`([^`\n]+)`", README) for name in re.findall(r"\w+", code)}
    assert set(inspect.signature(VARGRPO).parameters) - named == set()


def test_the_table_of_choices_names_only_arguments_that_exist() -> None:
    """In the first two columns a name before a colon is an argument of VARGRPO."""
    section = README.split("## Where the paper is silent")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`(\w+):", row[2])}
    assert len(named) > 12
    assert named <= set(inspect.signature(VARGRPO).parameters)


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"varrl {name}" not in README] == []


def test_every_link_to_a_file_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith(("http", "#"))]
    assert [link for link in links if not (ROOT / link).exists()] == []
    headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", README) if link not in headings] == []


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_explained() -> None:
    names = {_name(line) for line in requires("varrl-lightning") or () if "extra ==" not in line}
    section = README.split("## Dependencies")[1].split("\n## ")[0]
    listed = {name for line in section.splitlines() if line.startswith("| ") for name in re.findall(r"[\w-]+", line.split("|")[1])}
    assert names - {_name(name) for name in listed} == set()
    assert "GPL-2.0-or-later" in section


def test_every_dependency_is_pinned() -> None:
    names = {_name(line) for line in requires("varrl-lightning") or ()} - {"varrl-lightning"}
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pinned = {_name(line) for line in lines}
    assert lines[0] == "torch==2.13.0"
    assert names - pinned == set()


# comparison.yaml is no configuration of a run: test_comparison reads it.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "comparison")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_accepted(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["varrl", "fit", "--config", str(path), "--print_config"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with pytest.raises(SystemExit, match="0"):
        (pretraining if path.stem.startswith("pretrain_") else main)()
    assert "trainer:" in capsys.readouterr().out
