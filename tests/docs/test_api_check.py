"""docs/hooks/api_check.py finds public names that are missing or not explained; the build of the site calls it."""

from __future__ import annotations

import ast
import importlib.util
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import varrl_lightning

ROOT = Path(__file__).parent.parent.parent
PAGES = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
SHOWN = set(re.findall(r"^::: ([\w.]+)$", PAGES, flags=re.MULTILINE))


def hook() -> Any:
    spec = importlib.util.spec_from_file_location("api_check", ROOT / "docs" / "hooks" / "api_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks for its module by name.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "api_check", module)
        spec.loader.exec_module(module)
    return module


CHECK = hook()


def test_every_public_name_is_explained_and_on_a_page() -> None:
    inventory = SHOWN | {name.path for name in CHECK.public_names() if name.home.rpartition(".")[0] in SHOWN}
    assert CHECK.faults(inventory) == []


def test_the_public_names_are_those_that_can_be_imported() -> None:
    homes = {name.home for name in CHECK.public_names()}
    exported = {name: getattr(varrl_lightning, name) for name in varrl_lightning.__all__ if name != "__version__"}
    assert {f"{value.__module__}.{name}" for name, value in exported.items()} - homes == set()
    known = {"rewards.ocr.OCRReward", "mask_sources.boxes.Boxes", "learning_rates.WarmupCosine", "errors.ConfigError"}
    assert {f"varrl_lightning.{name}" for name in known} | {"varrl_hpsv3.reward.HPSv3"} <= homes


def test_a_name_that_is_on_no_page_is_a_fault() -> None:
    everything = {name.path for name in CHECK.public_names()}
    (fault,) = CHECK.faults(everything - {"varrl_lightning.VARGRPO"})
    assert fault == "varrl_lightning.VARGRPO is on no page of docs/api: add '::: varrl_lightning.VARGRPO' to one"


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "x.A has no docstring"),
        (
            "A.\n\nArgs:\n    one: first.\n    two: second.\n    three: third.",
            "x.A explains arguments that it does not have: three",
        ),
        ("A.\n\nArgs:\n    one: first, which is\n        long: very.", "x.A explains some arguments and leaves out: two"),
        ("A.\n\nArgs:\n    one, two: both.", None),
        ("A.", None),
    ],
)
def test_faults_of_a_docstring(docstring: str | None, fault: str | None) -> None:
    node = ast.parse("class A:\n    def __init__(self, one, *, two=1): ...").body[0]
    assert list(CHECK.Public("x.A", "x.A", node, docstring).faults()) == ([] if fault is None else [fault])


def test_the_inventory_of_a_site_is_read(tmp_path: Path) -> None:
    (tmp_path / "objects.inv").write_bytes(b"# header with zlib.\n" + zlib.compress(b"a.B py:class 1 api/#$ -\n"))
    assert CHECK.in_inventory(tmp_path / "objects.inv") == {"a.B"}


def test_the_picture_of_the_site_is_that_of_the_quickstart() -> None:
    ours, theirs = (
        np.asarray(Image.open(ROOT / path).convert("RGB"), dtype=float)
        for path in ("docs/figures/quickstart.png", "examples/figures/quickstart.png")
    )
    assert ours.shape == theirs.shape, "run docs/figures/quickstart.py"
    assert abs(ours - theirs).mean() < 3, "run docs/figures/quickstart.py"
