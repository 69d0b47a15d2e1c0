"""What others rely on beside the code: metadata, the typed marker, examples in docstrings, and files that tools read."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import varrl_lightning
from varrl_lightning import algorithms, metrics

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CI = ROOT / ".ci" / "run"


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def setting(name: str) -> str:
    """The value of a line `name = "value"` of pyproject.toml: Python 3.10 has no parser for the whole."""
    (value,) = re.findall(rf'^{name} = "(.*)"$', PYPROJECT, flags=re.MULTILINE)
    return str(value)


def modules(package: ModuleType) -> list[ModuleType]:
    return [importlib.import_module(f"{package.__name__}.{module.name}") for module in pkgutil.iter_modules(package.__path__)]


def public(kind: Any) -> Iterator[tuple[str, Any]]:
    for module in modules(algorithms) + modules(metrics):
        for name, value in inspect.getmembers(module, kind):
            if value.__module__ == module.__name__ and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value


DOCUMENTED = dict([*public(inspect.isfunction), *public(inspect.isclass)])


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_function_and_class_of_the_method_has_an_example(name: str) -> None:
    documentation = inspect.getdoc(DOCUMENTED[name]) or ""
    assert "\nExamples:\n" in documentation, f"{name} has no section Examples"
    assert "    >>> " in documentation.split("\nExamples:\n")[1], f"{name} has no example that runs"


def test_there_is_something_to_have_examples() -> None:
    names = {name.rpartition(".")[2] for name in DOCUMENTED}
    assert {"group_advantages", "propagate", "soft_value", "panw_weights", "ocr_score", "CategoryMean"} <= names


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(varrl_lightning.__file__).parent / "py.typed").is_file()
    assert '"Typing :: Typed"' in PYPROJECT


def versions(lines: str) -> list[str]:
    return re.findall(r"Programming Language :: Python :: (3\.\d+)", lines)


def test_the_workflow_covers_every_python_that_is_promised() -> None:
    job = read(".github/workflows/tests.yml")["jobs"]["tests"]
    tested = job["strategy"]["matrix"]["python-version"]
    assert all(isinstance(version, str) for version in tested), "3.10 without quotes is 3.1"
    assert tested == versions(PYPROJECT)
    assert setting("requires-python") == f">={tested[0]}"
    assert setting("target-version").removeprefix("py3") == tested[0].removeprefix("3.")


def test_the_workflow_runs_what_a_change_has_to_pass() -> None:
    workflow = read(".github/workflows/tests.yml")
    step = workflow["jobs"]["tests"]["steps"][-1]
    assert (ROOT / step["run"]) == CI
    assert CI.is_file()
    assert step["env"] == {"PYTHON": "python${{ matrix.python-version }}"}
    assert "${PYTHON:-" in CI.read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    # YAML 1.1 reads the key `on` as true.
    assert {"push", "pull_request"} <= set(workflow[True])


def test_the_issue_form_asks_for_what_is_needed_to_see_a_bug() -> None:
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    assert {"name", "description", "body"} <= set(form)
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert {name for name, field in fields.items() if field["validations"]["required"]} == {"what", "config", "doctor", "versions"}
    assert "varrl doctor --config FILE --json" in fields["doctor"]["attributes"]["label"]
    assert all(field["attributes"].get("label") for field in fields.values())


def test_the_hooks_use_the_tools_of_the_environment() -> None:
    """Then constraints.txt alone says which versions they are."""
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff-check", "ruff-format", "mypy"]
    assert {hook["language"] for hook in hooks} == {"system"}
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(re.search(rf"^{hook['entry'].split()[0]}==", pinned, flags=re.MULTILINE) for hook in hooks)


def test_pins_are_in_alphabetical_order_behind_torch() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines[0].startswith("torch==")
    assert lines[1:] == sorted(lines[1:], key=str.lower)
    assert all(re.fullmatch(r'[\w-]+==[\w.]+( ; python_version >= "3\.\d+")?', line) for line in lines)


def test_the_citation_names_the_software_and_the_paper() -> None:
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "what the format asks for"
    assert citation["type"] == "software"
    assert (citation["title"], citation["version"], citation["license"]) == (
        setting("name"),
        setting("version"),
        setting("license"),
    )
    assert citation["authors"] == [{"name": "varrl_lightning contributors"}]
    (paper,) = citation["references"]
    assert paper["title"].startswith("VAR RL Done Right: ")
    assert paper["url"].endswith("/2601.02256")
    assert len(paper["authors"]) == 11
    assert all(set(author) == {"given-names", "family-names"} for author in paper["authors"])


def test_links_of_the_metadata_lead_to_one_repository() -> None:
    section = PYPROJECT.split("[project.urls]\n")[1].split("\n[")[0]
    links = dict(re.findall(r'^(\w+) = "(.*)"$', section, flags=re.MULTILINE))
    assert set(links) == {"Homepage", "Repository", "Documentation", "Changelog", "Issues"}
    assert {link for link in links.values() if not link.startswith(links["Repository"])} == set()
    assert read("CITATION.cff")["repository-code"] == links["Repository"]
    assert (ROOT / links["Changelog"].rpartition("/")[2]).is_file()


def test_the_security_policy_covers_every_way_in() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for subject in ("class_path", "load_from_checkpoint", "weights_only=True", "DeepSpeed", "plugin", "127.0.0.1", "VARRL_API_KEY"):
        assert subject in text, subject
    assert "/security/advisories/new" in text
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_recipe_is_a_command_that_works_without_just() -> None:
    text = (ROOT / "justfile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^([\w-]+):\n    (.*)$", text, flags=re.MULTILINE))
    assert list(recipes) == ["test", "test-all", "lint", "docs"]
    assert "{{" not in text
    assert recipes["lint"] == "ruff check . && ruff format --check . && mypy"
    assert recipes["docs"].endswith("mkdocs build --strict")


def test_every_dependency_has_a_reason() -> None:
    section = PYPROJECT.split("\ndependencies = [\n")[1].split("[project.scripts]")[0]
    lines = re.findall(r'^  ".*$', section, flags=re.MULTILINE)
    assert len(lines) > 25
    assert [line for line in lines if not re.fullmatch(r'  "[^"]+",  # .+', line)] == []


@pytest.mark.parametrize("package", ["lightning", "peft", "transformers"])
def test_a_package_whose_private_attributes_are_used_has_an_upper_bound(package: str) -> None:
    assert re.search(rf'^  "{package}>=[\d.]+,<[\d.]+"', PYPROJECT, flags=re.MULTILINE)
