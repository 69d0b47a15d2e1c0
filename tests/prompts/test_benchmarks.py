"""Benchmark prompt sets as they are published, and tables of results."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from rich.console import Console

from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.evaluation.tables import Results, tables, write_results
from varrl_lightning.figures.pairs import category_figures, choose_pairs
from varrl_lightning.metrics.paper import HPSV3_CATEGORIES, TABLE_1, TABLE_2
from varrl_lightning.prompts.benchmarks import CVTG_FILES, benchmark_of, categories_of, load_benchmark
from varrl_lightning.prompts.files import PromptFileError
from varrl_lightning.types import Prompt

NAN = math.nan


# --- prompt sets ------------------------------------------------------------------------------------------------------------


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def cvtg(folder: Path) -> Path:
    """The benchmark's layout: eight files; the index begins anew in each."""
    for name in CVTG_FILES:
        entries = [
            {"index": i, "prompt": f"{name} {i} a 'Hot Tea' and 'Go!'", "carrier_list": ["cup"], "sentence_list": ["x"]}
            for i in (7, 8)
        ]
        write(folder / name, {"data_list": entries})
    write(folder / "CVTG" / "2_combined.json", {"data_list": [{"index": 0, "prompt": "another 'form' of the same"}]})
    return folder


def test_cvtg_as_published(tmp_path: Path) -> None:
    prompts = load_benchmark(cvtg(tmp_path))
    assert len(prompts) == 16  # not the combined file
    assert len({p.id for p in prompts}) == 16
    assert prompts[0] == Prompt("CVTG/2.json 7 a 'Hot Tea' and 'Go!'", id="CVTG/2/7", words=("Hot Tea", "Go!"), category="CVTG/2")
    assert prompts[-1].id == "CVTG-Style/5/8"
    assert benchmark_of(prompts) == "CVTG-2K"
    assert categories_of(prompts) == tuple(name.removesuffix(".json") for name in CVTG_FILES)
    assert load_benchmark(tmp_path / "CVTG-Style" / "3.json") == [p for p in prompts if p.category == "CVTG-Style/3"]


def test_cvtg_words_are_the_benchmarks_and_not_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", {"data_list": [{"index": 0, "prompt": "It doesn't say 'OPEN', it says \"SHUT\""}]})
    assert load_benchmark(path)[0].words == ("t say ",)
    assert Prompt("It doesn't say 'OPEN', it says \"SHUT\"").words == ("OPEN", "SHUT")


def test_half_of_cvtg_is_refused(tmp_path: Path) -> None:
    (cvtg(tmp_path) / "CVTG" / "4.json").unlink()
    with pytest.raises(PromptFileError, match=r"is CVTG-2K without CVTG/4\.json; to read a part of it, give its file"):
        load_benchmark(tmp_path)


def test_lists_by_category(tmp_path: Path) -> None:
    one = write(
        tmp_path / "one" / "test.json", [{"prompt": "a rose", "category": "plants"}, {"caption": "rice", "category": "Food"}]
    )
    prompts = load_benchmark(one)
    assert prompts == [Prompt("a rose", id="test/0", category="Plants"), Prompt("rice", id="test/1", category="Food")]
    assert benchmark_of(prompts) == "HPSv3"
    assert categories_of(prompts) == ("Plants", "Food")
    for name in ("natural_scenery", "animals"):
        write(tmp_path / "many" / f"{name}.json", [f"{name} 1", f"{name} 2"])
    prompts = load_benchmark(tmp_path / "many")
    assert [p.category for p in prompts] == ["Animals"] * 2 + ["Natural Scenery"] * 2
    assert prompts[3].id == "natural_scenery/1"
    mine = load_benchmark(write(tmp_path / "mine.json", ["a dog"]))
    assert benchmark_of(mine) is None
    assert mine[0].category == "mine"


def test_our_own_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"text": "a \\"GO\\" sign", "category": "Design"}\n{"text": "b"}\n', encoding="utf-8")
    prompts = load_benchmark(path)
    assert prompts == [Prompt('a "GO" sign', category="Design"), Prompt("b")]
    assert benchmark_of(prompts) is None
    assert categories_of(prompts) == ()
    assert load_benchmark("builtin:lettering/test.jsonl")
    assert benchmark_of([]) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, r'expected a list of prompts, or \{"data_list": \[\.\.\.\]\} that is not empty'),
        ([], "expected a list of prompts"),
        ({"data_list": []}, "expected a list of prompts"),
        ([{"text": "a"}, {"image": "x.png"}], "entry 1: expected a text, or an object with one under prompt or text or caption"),
        ([" "], "entry 0: expected a text"),
        ([{"text": "a", "category": 3}], "entry 0: 'category' must be a string, got 3"),
        ({"data_list": [{"index": 0, "prompt": "nothing quoted"}]}, "entry 0: CVTG-2K's words stand between single quotes"),
    ],
)
def test_malformed_sets_are_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PromptFileError, match=message):
        load_benchmark(write(tmp_path / "x.json", content))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(PromptFileError, match=r"cannot read the prompts in .*x\.json"):
        load_benchmark(tmp_path / "x.json")
    with pytest.raises(PromptFileError, match=r"cannot read the prompts in .*y\.json"):
        load_benchmark(tmp_path / "y.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptFileError, match=r"holds no benchmark: expected \*\.json files"):
        load_benchmark(tmp_path / "empty")


# --- tables -----------------------------------------------------------------------------------------------------------------


def test_cvtg_beside_table_1() -> None:
    results = {
        "sampler": Results({"reward": 1.25, "ned": 0.75, "word_accuracy": 0.5, "mine": 2.0}, {}),
        "greedy": Results({"clip_score": 0.8}, {}),
    }
    measured, beside = tables(results, "CVTG-2K", images=2000)
    assert measured.columns == ("Word Accuracy", "NED", "CLIPScore", "Reward", "mine")
    assert measured.title == "Measured, 2000 images"
    assert list(beside.rows)[:13] == list(TABLE_1)
    assert beside.rows["NextFlow-RL"] == (0.7841, 0.9081, 0.8224)
    assert beside.rows["sampler (this run)"][:2] == (0.5, 0.75)
    assert math.isnan(beside.rows["sampler (this run)"][2])
    assert beside.ours == {"sampler (this run)", "greedy (this run)"}
    lines = beside.markdown().splitlines()
    assert lines[0].startswith("## CVTG-2K, 2000 images, beside Table 1 of arXiv 2601.02256")
    assert "| | Word Accuracy | NED | CLIPScore |" in lines
    assert "| NextFlow-RL | 0.7841 | 0.9081 | 0.8224 |" in lines
    assert "| **sampler (this run)** | **0.5000** | **0.7500** | - |" in lines


def test_hpsv3_beside_table_2() -> None:
    means = {"All": 9.0, **{c: float(i) for i, c in enumerate(HPSV3_CATEGORIES)}, "Others": NAN}
    _, beside = tables({"NextFlow": Results({"reward": 9.0}, means, hpsv3=True)}, "HPSv3")
    assert beside.columns == ("All", *HPSV3_CATEGORIES)
    assert beside.rows["NextFlow"] == TABLE_2["NextFlow"]  # the paper's keeps its place
    assert beside.rows["NextFlow (this run)"][:3] == (9.0, 0.0, 1.0)
    assert "| **9.00** | **0.00** |" in beside.markdown()
    assert beside.markdown().rstrip().endswith("| - |")


def test_other_sets_get_their_own_categories_and_no_paper() -> None:
    found = tables({"a": Results({"reward": 1.0}, {"All": 1.0, "cats": 2.0}), "b": Results({}, {"All": 2.0, "dogs": 3.0})})
    assert [t.title for t in found] == ["Measured", "Reward by category"]
    assert found[1].columns == ("All", "cats", "dogs")
    assert list(found[1].rows) == ["a", "b"]
    assert tables({"a": Results({"reward": 1.0}, {})})[1:] == []
    with pytest.raises(ValueError, match="there are no results to show"):
        tables({})


def test_files_and_console(tmp_path: Path) -> None:
    found = tables({"sam|pler": Results({"reward": NAN, "ned": 0.5}, {})}, "CVTG-2K")
    as_json, as_markdown = write_results(tmp_path / "run", found, {"seed": 3, "checkpoint": None})
    content = json.loads(as_json.read_text(encoding="utf-8"))
    assert content["about"] == {"seed": 3, "checkpoint": None}
    assert content["tables"][0]["rows"] == {"sam|pler": {"NED": 0.5, "Reward": None}}
    assert content["tables"][1]["ours"] == ["sam|pler (this run)"]
    assert content["tables"][1]["rows"]["AnyText"] == {"Word Accuracy": 0.1804, "NED": 0.4675, "CLIPScore": 0.7432}
    text = as_markdown.read_text(encoding="utf-8")
    assert text.startswith("# Test results\n\n- seed: 3\n- checkpoint: None\n\n## Measured\n")
    assert "| **sam\\|pler (this run)** | - | **0.5000** | - |" in text
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(found[1].rich())
    console.file.close()
    shown = console.export_text()
    assert "AnyText" in shown
    assert "0.1804" in shown
    assert "sam|pler (this run)" in shown


# --- pairs ------------------------------------------------------------------------------------------------------------------


def evaluation(prompts: list[Prompt], level: float) -> Evaluation:
    n = len(prompts)
    images = torch.full((n, 3, 6, 8), level) + torch.arange(n)[:, None, None, None] / 100
    return Evaluation(prompts, images, torch.arange(n) + level, {}, None)


def prompts_of(per_category: int) -> list[Prompt]:
    return [Prompt(f"{c} {i}", category=c.lower()) for i in range(per_category) for c in reversed(HPSV3_CATEGORIES)]


def test_two_of_each_category_at_random_but_always_the_same() -> None:
    prompts = prompts_of(9)
    chosen = choose_pairs(prompts)
    assert tuple(chosen) == HPSV3_CATEGORIES
    for name, places in chosen.items():
        assert len(set(places)) == 2
        assert all(prompts[i].category == name.lower() for i in places)
    turned = choose_pairs(prompts[::-1])
    assert {c: [prompts[i].id for i in p] for c, p in chosen.items()} == {
        c: [prompts[::-1][i].id for i in p] for c, p in turned.items()
    }
    assert choose_pairs(prompts, seed=1) != chosen
    first = {c: [i for i, p in enumerate(prompts) if p.category == c.lower()][:2] for c in HPSV3_CATEGORIES}
    assert chosen != first
    assert len(choose_pairs(prompts[:12])["Food"]) == 1


def test_the_figures_show_each_pair_before_and_after() -> None:
    prompts = prompts_of(3)
    before, after = evaluation(prompts, 0.1), evaluation(prompts, 0.5)
    figures = category_figures(before, after)
    assert len(figures) == 2  # six categories each, as Figs. 9 and 10
    chosen = choose_pairs(prompts)
    names = list(chosen)
    for number, figure in enumerate(figures):
        axes = np.array(figure.axes).reshape(6, 6)
        for line, name in zip(axes, names[6 * number : 6 * number + 6], strict=True):
            assert line[0].texts[0].get_text() == name.replace(" ", "\n")
            for pair, place in enumerate(chosen[name]):
                for axis, side in zip(line[3 * pair : 3 * pair + 2], (before, after), strict=True):
                    pixels = axis.images[0].get_array()
                    assert pixels.shape == (6, 8, 3)
                    np.testing.assert_array_equal(pixels, (side.images[place] * 255).round().permute(1, 2, 0).byte().numpy())
                    assert axis.get_title() == f"{float(side.values[place]):.2f}"
    canvas = FigureCanvasAgg(figures[0])
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 10


def test_large_images_are_averaged_not_skipped() -> None:
    prompt = Prompt("x", category="Food")
    checks = (torch.arange(800)[:, None] + torch.arange(800)[None]).remainder(2).float().expand(1, 3, 800, 800)
    one = Evaluation([prompt], checks, torch.tensor([NAN]), {}, None)
    (figure,) = category_figures(one, one)
    pixels = figure.axes[0].images[0].get_array()
    assert pixels.shape == (266, 266, 3)
    assert abs(float(pixels.mean()) - 127.5) < 15
    assert pixels.std() < 60


def test_pairs_that_cannot_be_drawn() -> None:
    prompts = prompts_of(1)
    full = evaluation(prompts, 0.1)
    with pytest.raises(ValueError, match="evaluations of the same prompts, in the same order"):
        category_figures(full, evaluation(prompts[::-1], 0.1))
    with pytest.raises(ValueError, match="got 12 and 0 images of 12 prompts; expected all"):
        category_figures(full, full.without_images())
    with pytest.raises(ValueError, match="pairs by category need prompts that all have a 'category'"):
        choose_pairs([*prompts, Prompt("x")])
    with pytest.raises(ValueError, match="per_category must be at least 1, got 0"):
        choose_pairs(prompts, 0)
