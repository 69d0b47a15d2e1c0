from __future__ import annotations

from pathlib import Path

import pytest

from tests.callbacks.running import datamodule, small_module, trainer
from varrl_lightning.callbacks import Monitors


def steps(callback: Monitors, count: int, **metrics: float) -> list[str]:
    """What is said in some steps with these metrics."""
    return [advice for _ in range(count) for advice in callback.look(metrics)]


HEALTHY = {"reward": 0.5, "reward_std_batch": 0.1, "frac_reward_zero_std": 0.2, "sampler_gap": 0.1}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"reward": 0.0, "reward_std_batch": 0.0, "frac_reward_zero_std": 1.0}, "every reward was 0"),
        ({"reward": 91.31956, "reward_std_batch": 8e-6, "frac_reward_zero_std": 1.0}, "the reward was 91.3196 for every image"),
        ({"frac_reward_zero_std": 1.0}, "all images of a group had the same reward"),
        ({"sampler_gap": -1.5}, "by -1.50 nats per token"),
    ],
)
def test_a_lasting_bad_sign_is_said_once(bad: dict[str, float], said: str) -> None:
    callback = Monitors(patience=5)
    assert steps(callback, 4, **(HEALTHY | bad)) == []
    found = steps(callback, 20, **(HEALTHY | bad))
    assert len(found) == 1
    assert said in found[0]


def test_drafts_that_rank_worse_are_said_at_once_and_only_when_it_is_sure() -> None:
    callback = Monitors(patience=5)
    sure = {"draft/tau": 0.3, "draft/ceiling": 0.6, "draft/ratio": 0.5, "draft/ratio_high": 0.69}
    assert steps(callback, 9, **(HEALTHY | sure | {"draft/ratio_high": 0.7})) == []
    assert steps(callback, 1, **(HEALTHY | sure | {"draft/ratio_high": float("nan")})) == []
    (found,) = steps(callback, 9, **(HEALTHY | sure))
    assert "tau-b 0.30 against a ceiling of 0.60, at most 0.69 of it with 95% confidence (alarm under 0.7)" in found


def test_it_is_said_once_even_when_it_comes_back() -> None:
    callback = Monitors(patience=2)
    bad = HEALTHY | {"frac_reward_zero_std": 1.0}
    assert len(steps(callback, 2, **bad) + steps(callback, 1, **HEALTHY) + steps(callback, 5, **bad)) == 1


def test_a_real_run_is_watched(tmp_path: Path) -> None:
    def nothing(images, prompts):
        return images.new_zeros(len(images))

    fit = trainer(tmp_path, [Monitors(patience=2)], 2, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="every reward was 0 in the last 2 steps"):
        fit.fit(small_module(reward=nothing, score="sampler"), datamodule=datamodule(tmp_path / "data"))


def test_a_constant_reward_is_said_within_ten_updates(tmp_path: Path) -> None:
    def constant(images, prompts):
        return images.new_full((len(images),), 91.31956)

    fit = trainer(tmp_path, [Monitors()], 10, enable_checkpointing=False, limit_val_batches=0)
    with pytest.warns(UserWarning, match="the reward was 91.3196 for every image"):
        fit.fit(small_module(reward=constant, score="sampler"), datamodule=datamodule(tmp_path / "data"))


def test_an_interrupted_bad_sign_is_not_said() -> None:
    callback = Monitors(patience=5)
    for _ in range(5):
        assert steps(callback, 4, **(HEALTHY | {"frac_reward_zero_std": 1.0})) == []
        assert steps(callback, 1, **HEALTHY) == []


def test_a_healthy_run_or_one_without_the_metrics_is_left_alone() -> None:
    callback = Monitors(patience=2)
    assert steps(callback, 10, **HEALTHY) == []
    assert steps(callback, 10) == []
    assert steps(callback, 10, reward=float("nan"), sampler_gap=float("nan")) == []


def test_it_refuses_no_patience() -> None:
    with pytest.raises(ValueError, match="patience must be at least 1"):
        Monitors(patience=0)
