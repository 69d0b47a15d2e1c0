"""examples/quickstart.ipynb: its code is the package's, its outputs are there and small, and it runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import varrl_lightning

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
MOST_BYTES = 300_000
MOST_MINUTES = 20
"""The notebook takes about two on a quiet machine."""


def cells(kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def accuracies(cell: dict[str, Any]) -> list[float]:
    """The numbers in what a cell has printed."""
    printed = "".join(text for output in cell["outputs"] if output["output_type"] == "stream" for text in output["text"])
    return [float(number) for number in re.findall(r"\d\.\d\d", printed)]


def test_its_code_is_python_and_names_what_exists() -> None:
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells("code")))
    names = [
        alias.name for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and x.module == "varrl_lightning" for alias in x.names
    ]

    assert names
    assert set(names) <= set(varrl_lightning.__all__)


def test_its_outputs_are_there_and_small() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    outputs = [output for cell in cells("code") for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3  # before, the reward, after
    before, after = accuracies(cells("code")[-1])
    assert after > before + 0.1


@pytest.mark.slow
@pytest.mark.timeout(60 * MOST_MINUTES)
def test_it_runs_and_the_model_learns() -> None:
    nbclient = pytest.importorskip("nbclient", reason="pip install 'varrl-lightning[notebook]'")
    pytest.importorskip("ipykernel", reason="pip install 'varrl-lightning[notebook]'")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60 * MOST_MINUTES, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    before, after = accuracies(notebook.cells[-2])
    assert after > before + 0.1
