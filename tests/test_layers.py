"""Imports point down only, and nothing below `data` knows Lightning."""

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
    ("types", "tokenizers", "text_encoders"),
    ("algorithms", "configuration"),
    ("metrics", "policies", "registry"),
    ("prompts", "rewards"),
    ("mask_sources",),
    ("grpo",),
    ("data", "loggers", "memory", "pretraining", "serving"),
    ("strategies",),
    ("checkpoints", "evaluation"),
    ("training", "figures"),
    ("module",),
    ("gradient_agreement",),
    ("callbacks",),
    ("commands",),
    ("comparison",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
LIGHTNING_FROM = LEVEL["data"]
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
            assert LEVEL[own] >= LIGHTNING_FROM, f"{own} lies below data and must not import lightning"


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
