"""`varrl list`: each kind, what is broken beside what is not, and nothing heavy imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import varrl_lightning
from varrl_lightning.__main__ import main
from varrl_lightning.commands.list import KINDS, policies
from varrl_lightning.configuration.class_path import import_class
from varrl_lightning.configuration.docstrings import definition, first_sentence
from varrl_lightning.configuration.files import shipped_configs
from varrl_lightning.registry import MASK_SOURCES, REWARDS, available

Put = Callable[[str, str, str], None]
GLOW = """
import os

class Glow:
    '''How much a picture glows (Eq. 3). Not more.

    Long.
    '''
    def __call__(self, *what): ...
"""


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Install a distribution: its rewards, and a module with a source."""

    def install(distribution: str, entries: str, source: str) -> None:
        folder = tmp_path / distribution
        (folder / f"{distribution}-1.0.dist-info").mkdir(parents=True)
        (folder / f"{distribution}-1.0.dist-info" / "entry_points.txt").write_text(f"[{REWARDS}]\n{entries}\n")
        (folder / f"{distribution}_code.py").write_text(source)
        monkeypatch.syspath_prepend(folder)

    return install


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The rows of one kind, by name."""
    assert main(["list", *arguments]) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return dict(rows)


def test_all_kinds_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys)
    assert rows.keys() >= available(REWARDS).keys() | available(MASK_SOURCES).keys() | shipped_configs().keys()
    assert [name for name, rest in rows.items() if "ERROR" in rest or "(no docstring)" in rest] == []
    assert rows["full"].split("  ")[-1] == "Every pixel counts: Mask Propagation switched off."
    assert "varrl_lightning" in rows["ocr"]
    assert rows["quickstart.yaml"].startswith("run to its result  ")


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_is_listed(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, kind)
    assert ("ocr" in rows, "boxes" in rows, "varrl_lightning.add_lora" in rows, "paper.yaml" in rows) == tuple(
        kind == known for known in KINDS
    )


def test_an_unknown_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "reward"]) == 2
    assert capsys.readouterr().err == (
        "varrl list: no kind 'reward'. Did you mean 'rewards'? There are: rewards, masks, policies, configs.\n"
    )


def test_every_public_family_is_listed_by_a_class_path_that_exists() -> None:
    paths = [path for path, *_ in policies()]
    families = {name for name in varrl_lightning.__all__ if name.endswith("Policy")} - {"VARPolicy"}
    assert {path.split(".")[1] for path in paths} == families | {"add_lora"}
    assert all(callable(import_class(path.removesuffix(".from_pretrained").removesuffix(".from_backbone"))) for path in paths)


def test_a_foreign_plugin_is_listed_and_not_imported(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("glow", "glow = glow_code:Glow", GLOW)
    row = listed(capsys, "rewards")["glow"]
    assert row.startswith("glow 1.0  ")
    assert row.endswith("  How much a picture glows (Eq. 3).")
    assert "glow_code" not in sys.modules


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ("nowhere_code:Glow", "", "there is no module 'nowhere_code'"),
        ("bad_code:Glow", "class Glow(:\n", "cannot be read: SyntaxError"),
        ("bad_code:Glow", f"import no_such_package.part\n{GLOW}", "bad_code imports no_such_package, which is not installed"),
        ("bad_code:Gloe", GLOW, "cannot be imported: AttributeError"),
        ("bad_code:Glow", "Glow = 3\n", "is a int; expected a class"),
        ("bad_code:Glow", "raise OSError('no weights')", "cannot be imported: OSError: no weights"),
        ("ok_code:Glow", GLOW, "ok 1.0 has this name too: uninstall one"),
    ],
)
def test_what_is_broken_is_listed_beside_the_rest(
    target: str, source: str, message: str, put: Put, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bad_code", raising=False)
    put("bad", f"bad = {target}", source)
    if target.startswith("ok"):
        put("ok", "bad = ok_code:Glow", GLOW)
    assert main(["list", "rewards"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("  bad ") and "ERROR: " in line and message in line]
    assert "  ocr " in out


def test_a_name_is_followed_to_where_it_is_defined(put: Put) -> None:
    put("one", "x = one_code:Shine", "from two_code import Glow as Shine\nfrom loop_code import Round\n")
    put("two", "", GLOW)
    put("loop", "", "from one_code import Round\n")
    found = definition("one_code", "Shine")
    assert found is not None
    assert found.name == "Glow"
    assert definition("one_code", "Shine.missing") is None
    assert definition("one_code", "Round") is None


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        (None, ""),
        ("Reads.", "Reads."),
        ("As Eq. 3 of Lee et al. 2024 says. `x` is\nmore.", "As Eq. 3 of Lee et al. 2024 says."),
        ("No stop\nat all\n\nNext.", "No stop at all"),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring: str | None, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


def test_nothing_heavy_is_imported() -> None:
    heavy = "{'torch', 'numpy', 'lightning'}"
    source = f"import sys; from varrl_lightning.__main__ import main; main(['list']); print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
