"""Fails the build when a public name is missing from the API pages, or is not explained.

What is public is written down in docs/api/index.md. This file finds the names in the code, without importing it:

- what a module or package lists in `__all__`;
- every class, function and documented constant of the modules in `WHOLE`;
- what `configs/*.yaml` name by `class_path`, and what the package and `plugins/*` register as plugins.

mkdocs calls `on_post_build`. Without a build it can be asked what is public: `python docs/hooks/api_check.py`.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
PACKAGE = "varrl_lightning"
WHOLE = ("algorithms", "metrics", "errors", "learning_rates", "loggers", "mask_sources.base", "rewards.base", "testing")
"""Modules and packages of which everything is public; one that does not exist is left out."""
SPEC = re.compile(rf"class_path: *({PACKAGE}\.[\w.]+)")
ENTRY = re.compile(r'^[\w-]+ = "([\w.]+):(\w+)"$', flags=re.MULTILINE)
GROUPS = re.compile(r'^\[project\.entry-points\."varrl_lightning\.\w+"\]\n((?:.+\n?)*)', flags=re.MULTILINE)
ARGUMENT = r"\*{0,2}\w+"
ENTRY_OF_ARGS = re.compile(rf"^    ({ARGUMENT}(?:, {ARGUMENT})*): ", flags=re.MULTILINE)


@dataclass(frozen=True)
class Public:
    """A public name and the code that makes it.

    Args:
        path: where users import it from.
        home: where it is defined.
        node: its definition; None where it is not a class, function or constant.
        docstring: what explains it.
    """

    path: str
    home: str
    node: ast.stmt | None
    docstring: str | None

    def faults(self) -> Iterator[str]:
        """What its docstring lacks."""
        if not self.docstring:
            yield f"{self.home} has no docstring"
            return
        module = self.home.rpartition(".")[0]
        arguments = arguments_of(self.node, {name: node for name, (node, _) in definitions(module).items()})
        explained = explained_in(self.docstring)
        if unknown := explained - arguments:
            yield f"{self.home} explains arguments that it does not have: {', '.join(sorted(unknown))}"
        if explained and isinstance(self.node, ast.ClassDef) and (silent := arguments - explained):
            yield f"{self.home} explains some arguments and leaves out: {', '.join(sorted(silent))}"


def source_of(module: str) -> Path | None:
    """The file of a module of the package or of a plugin."""
    for folder in (ROOT, *sorted((ROOT / "plugins").glob("*/"))):
        stem = folder.joinpath(*module.split("."))
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


_TREES: dict[str, ast.Module] = {}


def tree_of(module: str) -> ast.Module | None:
    """The code of a module; None where there is no such module."""
    if module not in _TREES:
        file = source_of(module)
        if file is None:
            return None
        _TREES[module] = ast.parse(file.read_text(encoding="utf-8"))
    return _TREES[module]


def listed_in(module: str) -> list[str]:
    """The names in a module's `__all__`."""
    tree = tree_of(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def definitions(module: str) -> dict[str, tuple[ast.stmt, str | None]]:
    """The classes, functions and constants of a module, each with its docstring."""
    found: dict[str, tuple[ast.stmt, str | None]] = {}
    body = tree.body if (tree := tree_of(module)) else []
    for node, after in zip(body, [*body, None][1:], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node, ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            says = after.value if isinstance(after, ast.Expr) else None
            text = says.value if isinstance(says, ast.Constant) and isinstance(says.value, str) else None
            for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                found[ast.unparse(name)] = node, text
    return found


def public_in(module: str) -> list[str]:
    """The names in `definitions` that are neither private nor variables of types."""
    found = definitions(module).items()
    return [name for name, (node, _) in found if re.fullmatch(r"[A-Za-z]\w*", name) and "TypeVar(" not in ast.unparse(node)]


def imports_of(module: str) -> dict[str, str]:
    """What a module imports from others of the package, with `if TYPE_CHECKING:` blocks: name -> dotted home."""
    tree = tree_of(module)
    found = {}
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def home_of(path: str) -> str:
    """Where a public name is defined: imports are followed."""
    module, _, name = path.rpartition(".")
    if tree_of(module) is None or name in definitions(module):
        return path
    home = imports_of(module).get(name)
    return home_of(home) if home else path


def arguments_of(node: ast.stmt | None, siblings: Mapping[str, ast.stmt]) -> set[str]:
    """The arguments of a function or a constructor; of a dataclass or NamedTuple without one, its fields.

    Args:
        node: a definition.
        siblings: the definitions of its module, among which a base class may be.
    """
    if isinstance(node, ast.FunctionDef):
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return {argument.arg for argument in given} - {"self", "cls"}
    if not isinstance(node, ast.ClassDef):
        return set()
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return arguments_of(member, siblings)
    for base in map(ast.unparse, node.bases):
        if base in siblings and (inherited := arguments_of(siblings[base], siblings)):
            return inherited
    if node.decorator_list or "NamedTuple" in map(ast.unparse, node.bases):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and not ast.unparse(f.annotation).startswith("ClassVar")]
        return {ast.unparse(f.target) for f in fields if f.value is None or "init=False" not in ast.unparse(f.value)}
    return set()


def explained_in(docstring: str) -> set[str]:
    """The arguments in a docstring's section Args."""
    section = re.split(r"^(?:Args|Attributes):\n", docstring, flags=re.MULTILINE)
    if len(section) == 1:
        return set()
    text = re.split(r"^\S", section[1], flags=re.MULTILINE)[0]
    names = {name for joined in ENTRY_OF_ARGS.findall(text) for name in joined.split(", ")}
    return {name for name in names if not name.startswith("*")}


def whole_modules() -> list[str]:
    """The modules of `WHOLE`, packages with all of their files."""
    found = []
    for name in WHOLE:
        folder = ROOT / PACKAGE / name.replace(".", "/")
        if folder.is_dir():
            files = sorted(folder.rglob("*.py"))
            found += [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
        elif folder.with_suffix(".py").is_file():
            found.append(f"{PACKAGE}.{name}")
    return found


def public_paths() -> set[str]:
    """Where users import each public name from."""
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in (ROOT / PACKAGE).rglob("*.py")]
    listing = {module.removesuffix(".__init__") for module in modules}
    paths = {f"{module}.{name}" for module in listing for name in listed_in(module)}
    paths |= {f"{module}.{name}" for module in whole_modules() for name in public_in(module)}
    for file in (ROOT / "configs").glob("*.yaml"):
        paths |= {path.removesuffix(".from_pretrained") for path in SPEC.findall(file.read_text(encoding="utf-8"))}
    for file in (ROOT / "pyproject.toml", *(ROOT / "plugins").glob("*/pyproject.toml")):
        for group in GROUPS.findall(file.read_text(encoding="utf-8")):
            paths |= {f"{module}.{name}" for module, name in ENTRY.findall(group)}
    return {path for path in paths if not path.endswith("__version__")}


def public_names() -> list[Public]:
    """Every public name, by its home and once each."""
    found: dict[str, Public] = {}
    for path in sorted(public_paths(), key=lambda path: (path.count("."), path)):
        home = home_of(path)
        module, _, name = home.rpartition(".")
        node, docstring = definitions(module).get(name, (None, None))
        found.setdefault(home, Public(path, home, node, docstring))
    return list(found.values())


def in_inventory(file: Path) -> set[str]:
    """The names in a built `objects.inv`."""
    text = zlib.decompress(file.read_bytes().split(b"zlib.\n", 1)[1]).decode()
    return {line.split(" ", 1)[0] for line in text.splitlines()}


def faults(inventory: set[str]) -> list[str]:
    """What is wrong with the API pages, a line each; empty when they are complete."""
    found = []
    for public in public_names():
        found += public.faults()
        if not {public.path, public.home} & inventory:
            found.append(f"{public.path} is on no page of docs/api: add '::: {public.path}' to one")
    return found


def on_post_build(config: Any) -> None:
    """Check the built site; mkdocs calls this."""
    from mkdocs.exceptions import PluginError

    if found := faults(in_inventory(Path(config["site_dir"]) / "objects.inv")):
        raise PluginError("the API reference is not complete:\n  " + "\n  ".join(found))


if __name__ == "__main__":
    for name in public_names():
        print(name.path)
