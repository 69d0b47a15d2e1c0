from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varrl_lightning.commands import report
from varrl_lightning.figures.curves import curve_figures
from varrl_lightning.figures.draw import draw_figures
from varrl_lightning.figures.samples import Sample, load_samples, save_samples
from varrl_lightning.figures.tables import Metrics

RED = (207, 34, 46)


def write_metrics(run: Path, text: str) -> None:
    (run / "metrics.csv").write_text(text)


def samples(correct: bool | None, size: tuple[int, int] = (24, 64)) -> list[Sample]:
    image = np.full((*size, 3), 200, dtype=np.uint8)
    read = None if correct is None else ("STONE",) if correct else ("S。OVE", "$1 ~")
    return [Sample(image, '"STONE"', ("STONE",), read, correct, math.nan if correct is None else float(correct))] * 10


def drawn(run: Path) -> set[str]:
    return {path.name for path in (run / "figures").iterdir()}


def has_color(path: Path, color: tuple[int, int, int]) -> bool:
    return bool((pixels(path) == color).all(axis=-1).any())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_it_draws_what_the_columns_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_metrics(
        tmp_path,
        "step,reward,prefix/reward,prefix/loss,suffix/reward,suffix/loss,kl,seconds/rollout,seconds/update\n"
        "0,0.1,0.1,1,,,0.0,1,2\n1,0.3,0.1,1,0.3,1,0.1,1,2\n",
    )
    assert report.main([str(tmp_path)]) == 0
    assert drawn(tmp_path) == {"reward.png", "kl.png", "seconds.png"}
    assert str(tmp_path / "figures" / "reward.png") in capsys.readouterr().out


def test_each_stage_has_its_own_rows_only(tmp_path: Path) -> None:
    """The suffix's row repeats the prefix's last reward, as Lightning logs it."""
    write_metrics(
        tmp_path,
        "step,reward,prefix/reward,prefix/loss,suffix/reward,suffix/loss\n0,0.1,0.1,1,,\n1,0.3,0.1,1,0.3,1\n2,0.2,0.2,1,0.3,1\n",
    )
    metrics = Metrics(tmp_path / "metrics.csv")
    assert metrics.where_equal("prefix/reward", "reward").steps == [0, 2]
    assert metrics.where_equal("suffix/reward", "reward").values == [0.3]
    labels = [line.get_label() for line in curve_figures(metrics)["reward"].axes[0].lines]
    assert labels == ["prefix", "suffix"]


@pytest.mark.parametrize(
    "text",
    [
        "step,reward,kl\n0,0.5,\n",
        "step,reward,kl\n0,nan,nan\n1,0.25,nan\n2,inf,nan\n3,,\n",
        "step,reward,kl,extra\n0,1,garbage,\n,7,7,7\n",
    ],
)
def test_few_rows_and_missing_numbers_are_no_obstacle(tmp_path: Path, text: str) -> None:
    write_metrics(tmp_path, text)
    assert report.main([str(tmp_path)]) == 0
    assert drawn(tmp_path) == {"reward.png"}


def test_a_long_noisy_curve_is_smoothed_and_shown_as_well(tmp_path: Path) -> None:
    write_metrics(tmp_path, "step,reward\n" + "".join(f"{i},{i % 2}\n" for i in range(400)))
    noisy, smooth = curve_figures(Metrics(tmp_path / "metrics.csv"))["reward"].axes[0].lines
    assert set(noisy.get_ydata()) == {0.0, 1.0}
    assert np.allclose(smooth.get_ydata()[20:-20], 0.5, atol=0.05)


def test_the_numbers_of_before_and_after_frame_the_accuracy(tmp_path: Path) -> None:
    write_metrics(tmp_path, "step,val/word_accuracy\n49,0.6\n99,0.7\n")
    summary = {"word_accuracy_before": 0.5, "word_accuracy_after": 0.75, "greedy_word_accuracy_before": None, "steps": 100}
    lines = curve_figures(Metrics(tmp_path / "metrics.csv"), summary)["word_accuracy"].axes[0].lines
    assert {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in lines} == {
        "validation": ([49, 99], [0.6, 0.7]),
        "before and after": ([0, 100], [0.5, 0.75]),
    }


def test_misread_words_are_marked_red_and_only_they(tmp_path: Path) -> None:
    for step, correct in ((0, False), (9, True)):
        save_samples(tmp_path / "samples" / "raw" / f"step_{step:06d}.png", samples(correct), step)
    assert report.main([str(tmp_path)]) == 0
    picture = tmp_path / "figures" / "before_after.png"
    assert has_color(picture, RED)
    whole = pixels(picture)
    half = Image.fromarray(whole[:, whole.shape[1] // 2 :])
    half.save(tmp_path / "after.png")
    assert not has_color(tmp_path / "after.png", RED)


@pytest.mark.parametrize("size", [(24, 64), (32, 32), (96, 32)])
def test_any_shape_of_picture_fits(tmp_path: Path, size: tuple[int, int]) -> None:
    for step, correct in ((0, None), (1, False)):
        save_samples(tmp_path / "samples" / "raw" / f"step_{step:06d}.png", samples(correct, size), step)
    assert report.main([str(tmp_path)]) == 0


def test_samples_survive_the_file(tmp_path: Path) -> None:
    save_samples(tmp_path / "a.png", samples(False), 12)
    step, loaded = load_samples(tmp_path / "a.png")
    assert step == 12
    assert [(s.text, s.wanted, s.read, s.correct) for s in loaded] == [('"STONE"', ("STONE",), ("S。OVE", "$1 ~"), False)] * 10
    assert all((s.image == 200).all() and s.image.shape == (24, 64, 3) for s in loaded)


def test_prompts_changed_half_way_are_not_set_side_by_side(tmp_path: Path) -> None:
    save_samples(tmp_path / "samples" / "raw" / "step_000000.png", samples(True), 0)
    save_samples(tmp_path / "samples" / "raw" / "step_000001.png", samples(True)[:5], 1)
    assert draw_figures(tmp_path) == []


def test_the_summary_gives_the_picture_its_numbers(tmp_path: Path) -> None:
    from varrl_lightning.figures.draw import _numbers

    (tmp_path / "summary.json").write_text(json.dumps({"word_accuracy_before": 0.5, "reward_before": 1, "eval_samples": 600}))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert _numbers(summary, "before") == "\nword accuracy 0.500 (600 prompts)"
    assert _numbers({"word_accuracy_before": None, "reward_before": 0.25}, "before") == "\nreward 0.250"
    assert _numbers({}, "before") == ""


def test_what_is_wrong_with_the_folder_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder; give the folder of a run" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 1
    assert "neither metrics.csv" in capsys.readouterr().err
    (tmp_path / "samples" / "raw").mkdir(parents=True)
    for step in (0, 1):
        Image.new("RGB", (4, 4)).save(tmp_path / "samples" / "raw" / f"step_{step:06d}.png")
    assert report.main([str(tmp_path)]) == 1
    assert "holds no samples" in capsys.readouterr().err


def test_no_figure_of_pyplot_is_opened(tmp_path: Path) -> None:
    import sys

    write_metrics(tmp_path, "step,reward\n0,1\n")
    before = sys.modules.get("matplotlib.pyplot")
    report.main([str(tmp_path)])
    assert sys.modules.get("matplotlib.pyplot") is before
