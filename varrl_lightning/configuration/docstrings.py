"""The first sentence of a docstring, read from the source: importing what it belongs to may take seconds, or fail."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_SENTENCE = re.compile(r"(?s)(.+?\.)(?=\s+[\"'`(A-Z]|\s*\Z)")
"""Up to a full stop before a capital, so that `Eq. 11` and `et al., 2021` do not end it."""


MOST_HOPS = 10
"""From how many modules to others a name is followed."""


class UnreadableSourceError(Exception):
    """A class or function cannot be read from its source; the message says why, as a user needs it."""


def first_sentence(docstring: str | None) -> str:
    """The first sentence of a docstring's first paragraph; empty where there is none."""
    paragraph = " ".join((docstring or "").strip().split("\n\n")[0].split())
    found = _SENTENCE.match(paragraph)
    return found[1] if found else paragraph


def definition(module: str, name: str) -> Definition | None:
    """The definition of `name`, dotted, in the source of a module or where that imports it from; None where no source shows it.

    Raises:
        UnreadableSourceError: when the module is not there or has errors, or the one that defines it imports what is not there.
    """
    first, *rest = name.split(".")
    for _ in range(MOST_HOPS):
        tree = _parsed(module)
        found = None if tree is None else _named(first, tree.body)
        if tree is None or found is not None:
            break
        origin = next(((x, y) for x in _imports_from(tree) for y in x.names if first == (y.asname or y.name)), None)
        if origin is None or origin[0].module is None or origin[0].level:
            return None
        module, first = origin[0].module, origin[1].name
    else:
        return None
    if tree is not None:
        _require_imports(module, tree)
    for part in rest:
        found = None if found is None else _named(part, found.body)
    return found


def _named(name: str, body: Sequence[ast.stmt]) -> Definition | None:
    return next((x for x in body if isinstance(x, Definition) and x.name == name), None)


def imported_from(module: str, package: str) -> dict[str, str]:
    """Names that a module's source imports from modules of a package, each with that module.

    Raises:
        UnreadableSourceError: as `definition`.
    """
    tree = _parsed(module)
    froms = [] if tree is None else list(_imports_from(tree))
    return {alias.name: x.module for x in froms if x.module and x.module.startswith(f"{package}.") for alias in x.names}


def _imports_from(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    return (x for x in ast.walk(tree) if isinstance(x, ast.ImportFrom))


def _parsed(module: str) -> ast.Module | None:
    """The source of a module; None where it is compiled."""
    path = _source(module)
    if path is None:
        return None
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError, OSError) as error:
        raise UnreadableSourceError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def _source(module: str) -> Path | None:
    first, *rest = module.split(".")
    spec = _top(first)
    for i, _ in enumerate(rest):
        name = ".".join((first, *rest[: i + 1]))
        spec = PathFinder.find_spec(name, spec.submodule_search_locations) if spec and spec.submodule_search_locations else None
    if spec is None:
        raise UnreadableSourceError(f"there is no module {module!r}")
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def _top(name: str) -> ModuleSpec | None:
    """Where a package or module without a dot is; nothing is imported."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: it is loaded, without saying from where
        return None


def _require_imports(module: str, tree: ast.Module) -> None:
    """Refuse a module whose first imports cannot succeed; those within functions and `try` are its own affair."""
    names = [alias.name for x in tree.body if isinstance(x, ast.Import) for alias in x.names]
    names += [x.module for x in tree.body if isinstance(x, ast.ImportFrom) and x.module and not x.level]
    missing = sorted({top for name in names if _top(top := name.split(".")[0]) is None})
    if missing:
        raise UnreadableSourceError(f"{module} imports {', '.join(missing)}, which is not installed")
