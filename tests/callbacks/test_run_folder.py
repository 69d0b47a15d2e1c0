"""One whole run with everything that the command line adds, and what it leaves and shows."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.callbacks.running import EVALUATION_WORDS, datamodule, small_module, trainer
from tests.tiny import LeftBright
from varrl_lightning.callbacks import Checkpoints, SafeStop, SampleGrids, Summary, default_callbacks
from varrl_lightning.callbacks.summary import seconds_since_process_start
from varrl_lightning.figures.samples import load_samples, sample_files, save_samples
from varrl_lightning.figures.tables import Metrics
from varrl_lightning.loggers import run_loggers
from varrl_lightning.types import Prompt


@dataclass
class Finished:
    folder: Path
    module: Any
    before: dict[str, float]
    output: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    module = small_module(kl_coef=0.01)
    before = module.evaluate([Prompt(f'"{word}"') for word in EVALUATION_WORDS]).metrics()
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    capture.setattr("sys.stdout", Recorder(lines))
    fit = trainer(
        folder, default_callbacks(), max_steps=5, val_check_interval=3, logger=run_loggers(folder), enable_progress_bar=True
    )
    fit.fit(module, datamodule=datamodule(folder / "data"))
    capture.undo()
    return Finished(folder, module, before, "".join(lines))


class Recorder:
    """Standard output that is no terminal."""

    def __init__(self, written: list[str]) -> None:
        self.write = written.append

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_everything_lies_in_the_run_folder(run: Finished) -> None:
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    expected = {"metrics.csv", "summary.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    expected |= {f"samples/step_{step:06d}.png" for step in (0, 3, 5)}
    figures = ("reward", "word_accuracy", "kl", "entropy", "grad_norm", "seconds", "before_after")
    expected |= {f"figures/{name}.png" for name in figures}
    assert expected <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert not [name for name in names if name.endswith(".part")]


def test_the_summary_has_the_numbers_of_before_and_after(run: Finished) -> None:
    summary = run.summary
    for name in ("word_accuracy", "ned", "reward"):
        assert summary[f"{name}_before"] == pytest.approx(run.before[name], abs=1e-6)
    prompts = [Prompt(f'"{word}"') for word in EVALUATION_WORDS]
    after = run.module.evaluate(prompts).metrics()
    greedy = run.module.evaluate(prompts, run.module.sampling.greedy()).metrics()
    assert summary["reward_after"] == pytest.approx(after["reward"], abs=1e-6)
    assert summary["reward_after"] != summary["reward_before"]
    assert summary["greedy_word_accuracy_after"] == pytest.approx(greedy["word_accuracy"], abs=1e-6)
    assert (summary["eval_samples"], summary["seed"], summary["steps"]) == (4, 0, 5)
    assert summary["versions"]["torch"] == torch.__version__
    assert {"python", "lightning", "varrl-lightning", "rapidocr", "onnxruntime"} <= set(summary["versions"])


def test_wall_seconds_are_counted_from_the_start_of_the_process(run: Finished) -> None:
    # Importing torch and Lightning alone takes longer than this, and was over before any clock of ours could start.
    assert 1.0 < run.summary["wall_seconds"] <= seconds_since_process_start()


def test_the_console_ends_with_the_table_and_the_picture(run: Finished) -> None:
    end = run.output[run.output.index("4 prompts before and after 5 steps") :]
    assert "word accuracy, greedy" in end
    assert f"{run.summary['word_accuracy_before']:.3f}" in end
    assert end.splitlines()[-1] == f"Picture     {run.folder / 'figures' / 'before_after.png'}"


def test_piped_output_has_one_line_a_step_and_no_bar(run: Finished) -> None:
    steps = [line for line in run.output.splitlines() if line.startswith("step ")]
    assert len(steps) == 5
    assert steps[3].startswith("step 4/5  suffix ")
    assert "reward " in steps[3]
    assert "validation " in steps[3]
    assert "\r" not in run.output
    assert "\x1b" not in run.output


def test_the_csv_has_a_row_for_every_step_and_validation(run: Finished) -> None:
    metrics = Metrics(run.folder / "metrics.csv")
    assert metrics["reward"].steps == [0, 1, 2, 3, 4]
    assert metrics["val/word_accuracy"].steps == [2]


def test_samples_show_the_same_prompts_each_time_and_what_was_read(run: Finished) -> None:
    files = sample_files(run.folder)
    loaded = [load_samples(path) for path in files]
    assert [step for step, _ in loaded] == [0, 3, 5]
    for _, samples in loaded:
        assert [s.wanted for s in samples] == [(word,) for word in EVALUATION_WORDS]
        assert all(s.correct == (s.read == s.wanted) for s in samples)
    images = run.module.evaluate([Prompt(f'"{word}"') for word in EVALUATION_WORDS]).images
    expected = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    assert all((s.image == e).all() for s, e in zip(loaded[-1][1], expected, strict=True))


def test_pictures_are_of_a_size_to_be_looked_at(run: Finished) -> None:
    for path in (run.folder / "figures" / "before_after.png", run.folder / "samples" / "step_000005.png"):
        with Image.open(path) as picture:
            width, height = picture.size
        assert 400 < width < 3000
        assert 100 < height < 3000


def test_a_resumed_run_keeps_the_numbers_of_its_own_start(run: Finished, tmp_path: Path) -> None:
    module = small_module(kl_coef=0.01)
    fit = trainer(tmp_path, default_callbacks(), max_steps=6, val_check_interval=3, enable_progress_bar=True)
    fit.fit(module, datamodule=datamodule(tmp_path / "data"), ckpt_path=str(run.folder / "checkpoints" / "last.ckpt"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    for name in ("word_accuracy", "greedy_word_accuracy", "ned", "reward"):
        assert summary[f"{name}_before"] == run.summary[f"{name}_before"]
    assert summary["reward_after"] != run.summary["reward_after"]


def test_the_figures_show_the_last_steps_too(tmp_path: Path) -> None:
    fit = trainer(tmp_path, [Summary(), SafeStop()], max_steps=1, enable_checkpointing=False, logger=run_loggers(tmp_path))
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    assert (tmp_path / "figures" / "reward.png").is_file()


def test_a_new_run_does_not_mix_with_what_another_has_left(tmp_path: Path) -> None:
    for steps in (4, 2):
        fit = trainer(tmp_path, [SampleGrids(), Summary(), SafeStop()], max_steps=steps, enable_checkpointing=False)
        fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"))
    names = sorted(path.name for path in (tmp_path / "samples").glob("*.png"))
    assert names == ["step_000000.png", "step_000002.png"]
    assert [path.name for path in sample_files(tmp_path)] == names
    kept = tmp_path / "earlier" / "1"
    assert [path.name for path in sample_files(kept)] == [f"step_00000{step}.png" for step in (0, 3, 4)]
    assert json.loads((kept / "summary.json").read_text())["steps"] == 4
    assert (kept / "figures" / "before_after.png").is_file()


def test_a_resumed_run_redraws_only_what_it_repeats(run: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    save_samples(folder / "samples" / "raw" / "step_000099.png", load_samples(sample_files(folder)[0])[1], 99)
    fit = trainer(folder, default_callbacks(), max_steps=6, enable_progress_bar=True)
    fit.fit(small_module(), datamodule=datamodule(tmp_path / "data"), ckpt_path=str(folder / "checkpoints" / "last.ckpt"))
    assert [path.stem for path in sample_files(folder)] == [f"step_{step:06d}" for step in (0, 3, 5, 6)]


def test_a_reward_that_does_not_read_leaves_the_words_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = small_module(reward=LeftBright())
    fit = trainer(tmp_path, [SampleGrids(), Summary(), SafeStop(), Checkpoints()], max_steps=1)
    fit.fit(module, datamodule=datamodule(tmp_path / "data"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["word_accuracy_before"] is None
    assert summary["greedy_word_accuracy_after"] is None
    assert math.isfinite(summary["reward_after"])
    assert "word accuracy" not in capsys.readouterr().out
    assert all(s.correct is None for s in load_samples(sample_files(tmp_path)[0])[1])


def test_without_test_prompts_it_takes_those_of_validation(tmp_path: Path) -> None:
    data = datamodule(tmp_path / "data")
    data.paths["test"] = None
    trainer(tmp_path, [Summary(), SafeStop()], max_steps=1, enable_checkpointing=False).fit(small_module(), datamodule=data)
    assert json.loads((tmp_path / "summary.json").read_text())["eval_samples"] == 2


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    callbacks = [c for c in default_callbacks() if not isinstance(c, Checkpoints)]
    trainer(tmp_path / "run", [*callbacks, Checkpoints(1)], fast_dev_run=True, enable_progress_bar=True).fit(
        small_module(), datamodule=datamodule(tmp_path / "data")
    )
    assert not (tmp_path / "run").exists()
