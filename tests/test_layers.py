"""Imports point down only, on at most twelve floors of folders; the algorithm knows no Lightning; files stay short."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import varrl_lightning

PACKAGE = Path(varrl_lightning.__file__).parent
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "schedule", "weights", "learning_rates"),
    ("types", "tokenizers"),
    ("algorithms", "configuration", "text_encoders"),
    ("metrics", "policies", "registry"),
    ("prompts", "rewards"),
    ("mask_sources", "data", "loggers", "pretraining", "serving"),
    ("grpo", "strategies"),
    ("gradient_agreement", "checkpoints", "evaluation", "memory", "sample_tables", "training"),
    ("module", "figures"),
    ("callbacks", "run_page"),
    ("commands",),
    ("comparison",),
)
"""At most twelve floors; a folder imports from lower floors and from itself."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_LIGHTNING = {name for names in LAYERS[:5] for name in names} | {
    "mask_sources",
    "grpo",
    "serving",
    "gradient_agreement",
    "sample_tables",
}
"""Folders that know no Lightning: all below `data`, the algorithm as a value, and the reward service."""
LAZY = {"__init__", "__main__"}
"""These two import by name, when asked."""
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).with_suffix("").parts[0] not in LAZY)


def _imports(source: str) -> Iterator[str]:
    """Dotted names of all modules that are imported anywhere, in functions too; not those for type checkers alone."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import, line {node.lineno}"
            assert node.module is not None
            # `from package import name` may name a module.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _layer(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in LEVEL, f"give {own} a place in LAYERS"
    for module in _imports(path.read_text(encoding="utf-8")):
        root = module.split(".")[0]
        if root == "varrl_lightning":
            other = _layer(module)
            assert other == own or LEVEL[other] < LEVEL[own], f"{own} must not import {other}"
        if root in ("lightning", "pytorch_lightning"):
            assert own not in WITHOUT_LIGHTNING, f"{own} must not import lightning"


def test_the_layers_name_what_exists() -> None:
    there = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in SOURCES}
    assert set(LEVEL) == there


def test_the_walk_sees_imports_in_functions_but_not_those_for_type_checkers() -> None:
    source = "def f():\n    from a.b import c\nif TYPE_CHECKING:\n    import d\nimport e.g\n"
    assert sorted(_imports(source)) == ["a.b.c", "e.g"]


def test_only_strategies_know_lightnings_strategies() -> None:
    for path in SOURCES:
        if path.relative_to(PACKAGE).parts[0] != "strategies":
            known = [m for m in _imports(path.read_text(encoding="utf-8")) if m.startswith("lightning.pytorch.strategies")]
            assert not known, path.name


def test_the_algorithms_need_torch_alone() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "jaxtyping", "Levenshtein", "varrl_lightning"}
    for path in (PACKAGE / "algorithms").glob("*.py"):
        assert {m.split(".")[0] for m in _imports(path.read_text(encoding="utf-8"))} <= allowed, path.name


def test_there_are_at_most_twelve_floors() -> None:
    assert len(LAYERS) <= 12


def test_the_root_holds_what_everything_needs_and_the_module() -> None:
    root = {path.stem for path in PACKAGE.glob("*.py")}
    assert root == {"__init__", "__main__", "data", "errors", "learning_rates", "loggers", "module", "registry", "schedule"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_file_and_no_class_is_longer_than_400_lines(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert (node.end_lineno or 0) - node.lineno < 400, node.name
