"""The notebook: as it is committed, and run from top to bottom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
MOST_BYTES = 300_000
GAIN = 0.1
"""The least gain in word accuracy, of 99 prompts of unseen words."""


def _outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook["cells"] if cell["cell_type"] == "code" for output in cell["outputs"]]


def _printed(notebook: Any) -> str:
    return "".join("".join(output.get("text", ())) for output in _outputs(notebook))


def _pictures(notebook: Any) -> int:
    return sum("image/png" in output.get("data", {}) for output in _outputs(notebook))


def _gain(printed: str) -> float:
    row = re.search(r"^word_accuracy +([\d.]+) -> ([\d.]+)$", printed, re.MULTILINE)
    assert row is not None, printed
    return float(row[2]) - float(row[1])


def test_the_committed_notebook_shows_a_run_from_top_to_bottom() -> None:
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {output["output_type"] for output in _outputs(notebook)} <= {"stream", "display_data"}, "an error, or a stray value"
    assert {output.get("name", "stdout") for output in _outputs(notebook)} == {"stdout"}, "a warning"
    assert _pictures(notebook) == 3
    assert _gain(_printed(notebook)) >= GAIN
    assert "/home/" not in json.dumps(notebook)
    assert "/tmp/" not in json.dumps(notebook)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_trains(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="needs the extra 'notebook'")
    nbclient = pytest.importorskip("nbclient", reason="needs the extra 'notebook'")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra 'notebook'")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert _pictures(notebook) == 3
    assert _gain(_printed(notebook)) >= GAIN
