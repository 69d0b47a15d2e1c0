"""The best checkpoint is chosen by what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.callbacks.running import Watched, datamodule, small_module, trainer
from tests.tiny import PROMPTS, LeftBright
from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.callbacks.best_metric import deciding_metric
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.figures.tables import Metrics
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Scores

IMAGES = 2
"""Images of a validation; of a training step there are more."""


class Scripted:
    """In the n-th validation, the n-th mean of these with that deviation; reads the words where it says so."""

    def __init__(self, means: Sequence[float], deviation: float = 0.0, right: Sequence[bool] = ()) -> None:
        self.means, self.deviation, self.right, self.validations = means, deviation, right, 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        if len(images) != IMAGES:
            return Scores(images.mean(dim=(1, 2, 3)), texts=[[""]] * len(images) if self.right else None)
        place, self.validations = self.validations, self.validations + 1
        signs = torch.tensor([1.0, -1.0])
        texts = [list(p.words) if self.right[place] else [""] for p in prompts] if self.right else None
        return Scores(self.means[place] + self.deviation * signs, texts=texts)


def weighed(**rewards: tuple[Any, float]) -> dict[str, Any]:
    return {name: {"reward": reward, "weight": weight} for name, (reward, weight) in rewards.items()}


def best_step(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["varrl"]["rollouts_done"])


def fit(module: VARGRPO, folder: Path, steps: int = 3, ckpt_path: str | None = None) -> None:
    run = trainer(folder, [SafeStop(), Checkpoints()], max_steps=steps, val_check_interval=1, logger=False)
    run.fit(module, datamodule=datamodule(folder / "data"), ckpt_path=ckpt_path)


def test_a_reader_that_is_not_trained_does_not_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = Scripted([0.0] * 3, right=[True, False, False])
    fit(small_module(reward=weighed(ocr=(reader, 0), light=(Scripted([0.1, 0.9, 0.5]), 1))), tmp_path)
    assert best_step(tmp_path) == 2
    assert Metrics(tmp_path / "metrics.csv")["val/word_accuracy"].values == [1, 0, 0]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best.ckpt is")]
    assert said == ["best.ckpt is the checkpoint with the highest val/reward: the reward that is trained"]


def test_standardised_rewards_are_not_summed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the raw sum the second is best, where a wide reward gains a third of its deviation, and a narrow one nothing."""

    def module(first: int) -> VARGRPO:
        wide, narrow = Scripted([500.0, 530.0, 500.0][first:], 100.0), Scripted([3.0, 3.0, 4.0][first:], 1.0)
        rewards = weighed(watched=(Scripted([9.0, 0.0, 0.0][first:]), 0), wide=(wide, 1), narrow=(narrow, 2))
        return small_module(reward=rewards, combine="standardised_sum")

    fit(module(0), tmp_path)
    logged = Metrics(tmp_path / "metrics.csv")
    assert logged["val/reward"].values == pytest.approx([506, 536, 508])
    assert logged["val/standardised_reward"].values == pytest.approx([0, 0.3, 2])
    assert best_step(tmp_path) == 3
    assert "the highest val/standardised_reward: the sum of the trained rewards, each standardised" in capsys.readouterr().out
    resumed = tmp_path / "resumed"
    fit(module(0), resumed, steps=2)
    fit(module(2), resumed, ckpt_path=str(resumed / "checkpoints" / "last.ckpt"))
    assert Metrics(resumed / "metrics.csv")["val/standardised_reward"].values == pytest.approx([0, 0.3, 2])
    assert best_step(resumed) == 3


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1.0, 0.0), "val/word_accuracy"), ((0.0, 1.0), "val/reward"), ((-1.0, 1.0), "val/reward"), ((0.1, 1.0), "val/word_accuracy")],
)
def test_word_accuracy_decides_where_a_reader_is_rewarded(weights: tuple[float, float], expected: str) -> None:
    module = small_module(reward=weighed(ocr=(Watched(), weights[0]), light=(LeftBright(), weights[1])))
    module.evaluator.validate(PROMPTS[:2], module.parallel)
    assert deciding_metric(module, module.evaluator.metrics()).name == expected


def test_the_words_that_count_are_those_of_a_reader_that_is_trained() -> None:
    blind = Scripted([0.0, 0.0], right=[False])
    module = small_module(reward=weighed(blind=(blind, 0), sees=(Scripted([0.0], right=[True]), 1)))
    module.evaluator.validate(PROMPTS[:IMAGES], module.parallel)
    metrics = module.evaluator.metrics()
    assert metrics["val/word_accuracy"] == 1
    assert "'sees'" in deciding_metric(module, metrics).reason


def test_monitor_overrides_with_any_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewards = weighed(light=(Scripted([0.1, 0.9, 0.5]), 1), dark=(Scripted([0.0, 0.0, 7.0]), 0))
    fit(small_module(reward=rewards, monitor="val/rewards/dark"), tmp_path)
    assert best_step(tmp_path) == 3
    assert "the highest val/rewards/dark: it is model.monitor" in capsys.readouterr().out


def test_a_judge_may_decide(tmp_path: Path) -> None:
    judges = [Scripted([0.0, 0.0, 0.0], right=[False, True, False])]
    fit(small_module(reward=LeftBright(), evaluate_with=judges, monitor="val/judges/Scripted/word_accuracy"), tmp_path)
    assert best_step(tmp_path) == 2


def test_an_unknown_monitor_is_told_with_the_names_that_exist(tmp_path: Path) -> None:
    module = small_module(reward=LeftBright(), monitor="val/rewrad")
    with pytest.raises(
        RunStoppedError, match=r"'val/rewrad' is logged. Did you mean 'val/reward'\? There are: .*val/reward.*--ckpt_path"
    ):
        fit(module, tmp_path)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    judges = {"dark": Scripted([0.5]), "reads": Scripted([0.5], right=[True])}
    module = small_module(reward=LeftBright(), evaluate_with=judges, monitor="val/judges/raeds/word_accuracy")
    with pytest.raises(RunStoppedError, match=r"Did you mean 'val/judges/reads/word_accuracy'\? .*val/judges/dark/reward, .*ned"):
        fit(module, tmp_path / "judges")
    module = small_module(reward=LeftBright(), evaluate_with=LeftBright(), monitor="test/judges/LeftBright/reward")
    with pytest.raises(RunStoppedError, match=r"'test/judges/LeftBright/reward' is logged. Did you mean 'val/judges/LeftBright"):
        fit(module, tmp_path / "test")
    module = small_module(reward=LeftBright(), monitor="sufix/reward")
    with pytest.warns(UserWarning, match="'sufix/reward' is logged.*There are: .*prefix/reward.*best.ckpt is not saved"):
        fit(module, tmp_path / "warned", steps=1)
    assert not (tmp_path / "warned" / "checkpoints" / "best.ckpt").exists()


def test_the_best_so_far_is_compared_with_its_own_metric_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    fit(small_module(reward=Scripted([5.0, 6.0])), tmp_path, steps=2)
    fit(small_module(reward=Scripted([4.0])), tmp_path, ckpt_path=last)
    assert best_step(tmp_path) == 2
    both = weighed(a=(Scripted([1.0]), 1), b=(Scripted([0.5]), 0))
    capsys.readouterr()
    fit(small_module(reward=both, monitor="val/rewards/b"), tmp_path, steps=4, ckpt_path=last)
    assert best_step(tmp_path) == 4
    assert "chosen by val/reward, which does not compare with val/rewards/b" in capsys.readouterr().out
