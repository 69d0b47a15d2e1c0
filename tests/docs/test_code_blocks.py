"""Each code block of the site is what its tag says, and names only what exists: commands, options, keys, classes, files."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.accepted import read_command, read_fit, read_main
from tests.docs.code_blocks import ROOT, Block, blocks, commands, pages, save_files, tagged
from varrl_lightning.errors import ConfigError

TAGS = {"bash", "python", "yaml", "toml", "json", "text"}
PACKAGE = "varrl_lightning"
FOLDERS = ("configs/", "docker/", "docs/", "examples/", "plugins/", "tests/", "varrl_lightning/")
PROGRAMS = {
    *("varrl", "python", "python3", "pip", "pytest", "just", "ruff", "mypy", "mkdocs", "pre-commit", "tensorboard", "wandb"),
    *("torchrun", "srun", "sbatch", "scontrol", "squeue", "docker", "hadolint", "nvidia-smi", "hf", "jupyter", "uv", "conda"),
    *("git", "cd", "ls", "cat", "cp", "mkdir", "curl", "wget", "tar", "unzip", "ssh", "rsync", "apt", "apt-get", "bash", "source"),
    *("echo", "head", "tail", "sleep", "kill", "open", "xdg-open", "module", "."),
}
"""Programs that a console block may call; a name that is not here is more often a slip than a program."""
RUN_FIRST = {"torchrun", "srun"}
SITE = "https://github.com/varrl-lightning/varrl-lightning/"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the real parsers read each block: minutes


@pytest.fixture
def patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """In an empty folder, as a reader's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    return monkeypatch


def every(tag: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", tagged(tag), ids=str)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_block_has_a_tag_and_ends(page: Path) -> None:
    assert [f"{block} {block.tag!r}" for block in blocks(page) if block.tag not in TAGS] == []
    fences = re.findall(r"^ *(?:```|~~~)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page)), "a block is not closed, or is indented unlike its end"


# --- console -------------------------------------------------------------------------------------------------------------------


def _of_repository(words: Sequence[str]) -> Iterator[str]:
    """The files of the repository that a command reads."""
    for before, word in zip(["", *words], words, strict=False):
        path = word.removeprefix("./").split("[")[0].split("::")[0].split("=")[-1]
        if path.startswith(FOLDERS) and before not in ("--output", "-o") and "*" not in path:
            yield path


def _check_python(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    if "-m" in words:
        module, *rest = words[words.index("-m") + 1 :]
        if module == PACKAGE:
            read_command(rest, patch)
        elif module == f"{PACKAGE}.pretraining":
            assert rest[0] in ("fit", "validate"), rest
        elif module.startswith(PACKAGE):
            read_main(importlib.import_module(module), rest, patch)
        return
    script = next((word for word in words if word.endswith(".py")), None)
    if script is not None and (ROOT / script).is_file():
        source = (ROOT / script).read_text(encoding="utf-8")
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        assert [option for option in options if option not in source] == [], f"not in {script}"


def _check_extras(words: Sequence[str]) -> None:
    extras = set(
        re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1], re.M)
    )
    for word in words:
        if asked := re.fullmatch(r"(?:\.|varrl-lightning)\[([\w,]+)\].*", word):
            assert set(asked[1].split(",")) <= extras


def _check_command(words: Sequence[str], patch: pytest.MonkeyPatch) -> None:
    program = words[0]
    assert program in PROGRAMS or (ROOT / program).is_file(), f"unknown program in: {' '.join(words)}"
    assert [path for path in _of_repository(words) if not (ROOT / path).exists()] == []
    inner = next((i for i, word in enumerate(words) if word == "varrl" or word.startswith("python")), 0)
    called = words[inner:] if program in RUN_FIRST else words
    if called[0] == "varrl":
        read_command(called[1:], patch)
    elif called[0].startswith("python") or (program == "torchrun" and "-m" in words):
        _check_python(called, patch)
    elif program == "pip":
        _check_extras(words)
    elif program == "just":
        recipes = re.findall(r"^([\w-]+):", (ROOT / "justfile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [word for word in words[1:] if word not in recipes] == []


def _check_console(text: str, patch: pytest.MonkeyPatch) -> None:
    assert not re.search(r"^\s*\$ ", text, flags=re.MULTILINE), "no prompts: a block is copied as a whole"
    for words in commands(text):
        _check_command(words, patch)


@every("bash")
def test_console_blocks(block: Block, patch: pytest.MonkeyPatch) -> None:
    save_files(block.page, Path.cwd())
    _check_console(block.text, patch)


# --- Python --------------------------------------------------------------------------------------------------------------------


def _imported(tree: ast.Module) -> dict[str, Any]:
    """What a block imports from the package, by the name that it has there; a wrong name raises."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                value = getattr(module, alias.name, None)
                found[alias.asname or alias.name] = (
                    importlib.import_module(f"{node.module}.{alias.name}") if value is None else value
                )
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    importlib.import_module(alias.name)
                    found[alias.asname or PACKAGE] = importlib.import_module(alias.name if alias.asname else PACKAGE)
    return found


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """The object that a dotted name of the package means; None for anything else; a wrong name raises."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (owner := _value(node.value, known)) is not None:
        return getattr(owner, node.attr)
    return None


def _check_call(node: ast.Call, function: Any) -> None:
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = {parameter.name for parameter in parameters}
    given = [keyword.arg for keyword in node.keywords if keyword.arg is not None]
    assert [name for name in given if name not in names] == [], f"line {node.lineno}: {ast.unparse(node.func)} has {sorted(names)}"


def _check_python_code(text: str) -> None:
    tree = ast.parse(text)
    compile(tree, "block", "exec")
    known = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            _value(node, known)
        elif isinstance(node, ast.Call) and (function := _value(node.func, known)) is not None:
            _check_call(node, function)


@every("python")
def test_python_blocks(block: Block) -> None:
    _check_python_code(block.text)


# --- data ----------------------------------------------------------------------------------------------------------------------


def _check_yaml(text: str) -> None:
    given = yaml.safe_load(text)
    if not (isinstance(given, dict) and {"model", "data", "trainer"} & given.keys()):
        return
    Path("block.yaml").write_text(text, encoding="utf-8")
    whole = "policy" in (given.get("model") or {}) and "data" in given
    read_fit(["fit", *([] if whole else ["--config", "quickstart.yaml"]), "--config", "block.yaml"])


@every("yaml")
@pytest.mark.usefixtures("patch")
def test_yaml_blocks(block: Block) -> None:
    save_files(block.page, Path.cwd())
    _check_yaml(block.text)


@every("toml")
def test_toml_blocks(block: Block) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no parser for TOML")
    assert tomllib.loads(block.text)


@every("json")
def test_json_blocks(block: Block) -> None:
    try:
        json.loads(block.text)
    except json.JSONDecodeError:  # or one object a line
        for line in block.text.splitlines():
            json.loads(line)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_to_files_of_the_repository(page: Path) -> None:
    paths = re.findall(rf"{re.escape(SITE)}(?:blob|tree|raw|edit)/main/([^\s)#\"'>]*)", page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


# --- the checks themselves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "varrl fit --config quickstart.yaml --model.group_seize 4",
        "varrl fit --config quickstart.yml",
        "varrl fit --config quickstart.yaml && varrl predict --config quickstart.yaml --promt x",
        "CUDA_VISIBLE_DEVICES=0 varrl doctor --config quickstart.yaml --memory_limit 24",
        "varrl export --config quickstart.yaml --output x --layout peftt",
        "varrl serve ocr --prt 8000",
        "varrl compares configs/comparison.yaml",
        "varrl list reward",
        "torchrun --nproc_per_node 2 -m varrl_lightning fit --config quickstart.yaml --trainer.strtegy ddp",
        "python -m varrl_lightning.prompts.generate --outputs x.jsonl",
        "python -m varrl_lightning.prompts.generated --output x.jsonl",
        "python examples/benchmarks/draft.py",
        "python examples/benchmarks/prefix_update.py --mm 4",
        "pip install '.[deev]'",
        "just doc",
        "varl fit --config quickstart.yaml",
        "varrl fit --config 'quickstart.yaml",
    ],
)
def test_a_wrong_command_is_found(line: str, patch: pytest.MonkeyPatch) -> None:
    with pytest.raises((AssertionError, ValueError, ConfigError, ImportError, argparse.ArgumentError)):
        _check_console(line, patch)


@pytest.mark.parametrize(
    "text",
    [
        "from varrl_lightning import VARGPRO",
        "import varrl_lightning.policy",
        "from varrl_lightning import VARGRPO\nVARGRPO(policy, groupsize=4)",
        "from varrl_lightning import InfinityPolicy as Family\nFamily.from_pretrain('a', 'b')",
        "from varrl_lightning import InfinityPolicy\nInfinityPolicy.from_pretrained('a', 'b', 'c', pixel='1M')",
        "return 1",
    ],
)
def test_wrong_code_is_found(text: str) -> None:
    with pytest.raises((AssertionError, AttributeError, ImportError, SyntaxError)):
        _check_python_code(text)


@pytest.mark.parametrize(
    "text",
    ["model: {group_seize: 4}", "data: {trian: x.jsonl}", "trainer: {max_step: 3}", "trainer: {max_steps: three}", "model: {"],
)
@pytest.mark.usefixtures("patch")
def test_a_wrong_configuration_is_found(text: str) -> None:
    with pytest.raises((ConfigError, yaml.YAMLError)):
        _check_yaml(text)
