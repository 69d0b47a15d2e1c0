"""The numbers of README and site are those of their files; and what `docs/numbers.py` makes of results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def numbers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("numbers_of_docs", ROOT / "docs" / "numbers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_have_the_numbers_of_the_files(numbers: ModuleType) -> None:
    assert numbers.main(["--check"]) == 0, "run: python docs/numbers.py"


def _recipe(values: list[float]) -> dict[str, Any]:
    spread = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    return {"seeds": [0, 1], "updates": 9, "images": 288, "sampled": {"word_accuracy": spread}, "greedy": {"word_accuracy": spread}}


@pytest.fixture
def made_up(numbers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one page and the results of a comparison."""
    difference = {"mean": 0.05, "t_interval": [-0.01, 0.11], "verdict": "cannot be told", "inferiority": "not inferior"}
    pairs = [("prefix_k0", "grpo"), ("prefix_k0", "paper_k2")]
    found = {
        "measure": "word_accuracy",
        "baseline": "grpo",
        "margin": 0.02,
        "missing": ["final-grpo-s2"],
        "axes": {
            "time": {
                "recipes": {"grpo": _recipe([0.5, 0.75]), "prefix_k0": _recipe([1.0, 1.0]), "paper_k2": _recipe([0.25, 0.25])},
                "differences": [{"ours": a, "theirs": b, "seeds": [0, 1], "sampled": difference} for a, b in pairs],
            },
            "updates": {"recipes": {"grpo": _recipe([0.5, 0.75])}, "differences": []},
            "images": {"recipes": {}, "differences": []},
        },
    }
    recipes = {"grpo": {"label": "GRPO"}, "paper_k2": {"label": "the paper's"}, "prefix_k0": {"label": "drafts"}}
    for name, text in (
        ("examples/comparison/results.json", json.dumps(found)),
        ("configs/comparison.yaml", yaml.safe_dump({"recipes": recipes})),
        ("README.md", "# A\n\n<!-- numbers: comparison -->\n\nstale\n\n<!-- /numbers -->\n\nrest\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(numbers, "ROOT", tmp_path)
    monkeypatch.setattr(numbers, "PAGES", ("README.md",))
    return tmp_path / "README.md"


def test_results_become_tables(numbers: ModuleType, made_up: Path) -> None:
    assert numbers.main([]) == 0
    text = made_up.read_text()
    assert "**1 final runs are missing.**" in text
    assert "| GRPO | 2 | 9 | 288 | .625 (.500 to .750) | .625 |  |  |" in text
    assert "| drafts | 2 | 9 | 288 | 1.000 (1.000 to 1.000) | 1.000 | +.050 (-.010 to +.110) | cannot be told |" in text
    assert (
        "- drafts, minus the paper's: +.050 (-.010 to +.110), 2 seeds: cannot be told. By a margin of .020: not inferior." in text
    )
    assert text.count("**At equal") == 1, "an axis without runs of two recipes has no table"
    assert text.startswith("# A\n\n<!-- numbers: comparison -->\n\n")
    assert text.endswith("\n\n<!-- /numbers -->\n\nrest\n")
    assert "stale" not in text
    assert numbers.main(["--check"]) == 0
    assert numbers.main([]) == 0
    assert made_up.read_text() == text


def test_a_number_that_was_changed_by_hand_is_found(numbers: ModuleType, made_up: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made_up.read_text()
    assert numbers.main(["--check"]) == 1
    assert "README.md has other numbers than its files; run: python docs/numbers.py" in capsys.readouterr().err
    assert made_up.read_text() == before


def test_a_block_of_an_unknown_name_is_an_error(numbers: ModuleType, made_up: Path) -> None:
    made_up.write_text("<!-- numbers: speed -->\n\n<!-- /numbers -->\n")
    with pytest.raises(KeyError, match="speed"):
        numbers.main([])
