"""What the README and the site promise, and what CONTRIBUTING and the CHANGELOG say of the code."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from dataclasses import fields
from importlib.metadata import requires
from pathlib import Path

import pytest

from varrl_lightning.__main__ import COMMANDS, main
from varrl_lightning.configuration.renamed import ARGUMENTS, MODULES
from varrl_lightning.configuration.specs import OptionGroup
from varrl_lightning.module import VARGRPO
from varrl_lightning.pretraining.modules import main as pretraining

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ROOT / "docs"
CHOICES, COMMANDS_PAGE, INSTALL = ((PAGES / f"{name}.md").read_text("utf-8") for name in ("choices", "commands", "install"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PARAMETERS = inspect.signature(VARGRPO).parameters
GROUPS = {name: type(p.default) for name, p in PARAMETERS.items() if isinstance(p.default, OptionGroup)}
"""Arguments that group options, with their dataclasses."""
FIELDS = {f"{group}.{field.name}" for group, kind in GROUPS.items() for field in fields(kind)}
BLOCKS = re.findall(r"^```[^\n]*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_first_two_blocks_are_one_line_each() -> None:
    first, second = (block.strip() for block in BLOCKS[:2])
    assert "\n" not in first
    assert "\n" not in second
    assert "pip install -c constraints.txt" in first
    assert "-m varrl_lightning fit --config configs/quickstart.yaml" in first
    assert "pip install -c constraints.txt" in second
    assert shlex.split(second)[-1] == "pytest"


def explained(owner: type) -> set[str]:
    """Names in the section Args of a class's docstring."""
    section = (inspect.getdoc(owner) or "").split("Args:")[1].split("Raises:")[0]
    return set(re.findall(r"^    (\w+): ", section, flags=re.MULTILINE))


def test_every_argument_is_explained() -> None:
    assert explained(VARGRPO) == set(PARAMETERS)
    assert {f"{group}.{name}" for group, kind in GROUPS.items() for name in explained(kind)} == FIELDS
    assert set(GROUPS) == {"mask", "kl", "normalise", "guards", "noise"}


def test_every_argument_is_on_the_page_of_choices() -> None:
    codes = re.findall(r"`([^`\n]+)`", CHOICES)
    named = {name for code in codes for name in re.findall(r"\w+", code)}
    assert set(PARAMETERS) - named == set()
    dotted = {name for code in codes for name in re.findall(r"\w+\.\w+", code)}
    assert FIELDS - dotted == set()


def test_the_table_of_choices_names_only_arguments_that_exist() -> None:
    """In the columns behind the question a name before a colon, and one with a dot, is an argument of VARGRPO or a field of one."""
    section = CHOICES.split("## Where the paper is silent")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")]
    named = {name for row in rows for cell in row[2:4] for name in re.findall(r"`([\w.]+):", cell)}
    dotted = {name for row in rows for cell in row[1:4] for name in re.findall(r"`([a-z]\w*\.\w+)", cell)}
    assert len(named) > 12
    assert len(dotted) > 10
    assert named | dotted <= set(PARAMETERS) | FIELDS


def test_every_command_is_on_its_page() -> None:
    assert [name for name in COMMANDS if f"varrl {name}" not in COMMANDS_PAGE] == []


@pytest.mark.parametrize("text", [README, CONTRIBUTING, CHANGELOG], ids=["README", "CONTRIBUTING", "CHANGELOG"])
def test_every_link_to_a_file_leads_somewhere(text: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith(("http", "#"))]
    assert links or text is not CONTRIBUTING  # those of README are whole addresses, for PyPI: tests/docs follows them
    assert [link for link in links if not (ROOT / link).exists()] == []
    headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)}
    assert [link for link in re.findall(r"\]\(#([^)]+)\)", text) if link not in headings] == []


def floors_of_imports() -> list[tuple[str, ...]]:
    """`LAYERS` of the test that keeps them; read, since no test module imports another."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    (value,) = (node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAYERS")
    assert value is not None
    return list(ast.literal_eval(value))


def test_the_layout_has_every_folder_on_its_floor() -> None:
    rows = re.findall(r"^\| (\d*) ?\| `([\w/.]+)` \|", CONTRIBUTING, flags=re.MULTILINE)
    floors: list[list[str]] = []
    for number, name in rows:
        if number:
            floors.append([])
            assert number == str(len(floors))
        floors[-1].append(name.removesuffix("/").removesuffix(".py"))
    assert [sorted(names) for names in floors] == [sorted(names) for names in floors_of_imports()]


def test_the_changelog_has_every_name_that_was_replaced() -> None:
    since, to = (CHANGELOG.split(heading)[1].split("\n## ")[0] for heading in ("## [Unreleased]", "### From 0.1 to 0.2"))
    rows = set(re.findall(r"^\| `([\w.]+)[`:].* \| `([\w.]+)[`:].* \|$", since + to, flags=re.MULTILINE))
    assert {*ARGUMENTS.items(), *MODULES.items()} - rows == set()


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_explained() -> None:
    runs = [line for line in requires("varrl-lightning") or () if not re.search(r"extra == .(test|docs|browser|dev)", line)]
    names = {_name(line) for line in runs}
    section = INSTALL.split("## Dependencies")[1]
    listed = {name for line in section.splitlines() if line.startswith("| ") for name in re.findall(r"[\w-]+", line.split("|")[1])}
    assert names - {_name(name) for name in listed} == set()
    assert "GPL-2.0-or-later" in section
    extras = set(re.findall(r"^(\w+) = \[", PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE))
    assert {f"| `{name}` |" for name in extras if f"| `{name}` |" not in INSTALL} == set()


def test_every_dependency_is_pinned() -> None:
    names = {_name(line) for line in requires("varrl-lightning") or ()} - {"varrl-lightning"}
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pinned = {_name(line) for line in lines}
    assert lines[0] == "torch==2.13.0"
    assert names - pinned == set()


# comparison.yaml and comparison_m.yaml are no configurations of a run: tests/comparison reads them.
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("comparison", "comparison_m"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_accepted(path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["varrl", "fit", "--config", str(path), "--print_config"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    with pytest.raises(SystemExit, match="0"):
        (pretraining if path.stem.startswith("pretrain_") else main)()
    assert "trainer:" in capsys.readouterr().out
