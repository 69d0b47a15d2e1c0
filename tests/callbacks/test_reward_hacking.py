"""The alarm about a reward that rises while a judge falls. Costs twenty seconds."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_module, weights
from torch import Tensor

from tests.callbacks.running import prompts_file, trainer
from varrl_lightning.callbacks import default_callbacks
from varrl_lightning.callbacks.checkpoints import Checkpoints
from varrl_lightning.callbacks.observation import samplers
from varrl_lightning.callbacks.reward_hacking import RewardHacking
from varrl_lightning.data import PromptDataModule
from varrl_lightning.metrics.hacking import Change, HackingWatch
from varrl_lightning.metrics.image_statistics import group_diversity, image_statistics
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Scores

WORDS = tuple(f"WORD{letter}" for letter in "ABCDEFGHIJKL")


class Dark:
    """Likes dark pictures, and reads a word too many in them."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = 1 - images.mean(dim=(1, 2, 3))
        return Scores(values, texts=[[*prompt.words, "MORE"] for prompt in prompts])


class Bright:
    """Likes bright ones: whatever `Dark` gains, it loses."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images.mean(dim=(1, 2, 3))


def run(
    folder: Path, watching: RewardHacking | None, judge: Any, steps: int = 12, used_alike: bool = True, **options: Any
) -> VARGRPO:
    """Train to please `Dark`, and validate after every four steps."""
    folder.mkdir(parents=True, exist_ok=True)
    data = PromptDataModule(
        train=prompts_file(folder / "train.jsonl", ["LIGHT", "WATER", "EARTH", "SMALL"]),
        validation=prompts_file(folder / "validation.jsonl", WORDS),
        batch_size=2,
    )
    module = tiny_module(
        reward=Dark(),
        evaluate_with=None if judge is None else {"judge": judge},
        mask_source="full",
        group_size=4,
        alternation=["prefix"],
        m=3,
        num_continuations=1,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05),
    )
    if used_alike:
        module.policy.default_sampling = module.sampling
    callbacks = [Checkpoints(4)] if watching is None else [watching, Checkpoints(4)]
    settings = {"val_check_interval": 4, "check_val_every_n_epoch": None, **options}
    trainer(folder, callbacks, max_steps=steps, **settings).fit(module, data)
    return module


def test_a_reward_that_is_gamed_trips_the_alarm(tmp_path: Path) -> None:
    watching = RewardHacking(prompts=12, groups=3, group_size=3)
    with pytest.warns(
        UserWarning, match=r"at step 8 the training reward has risen by .* but judges/judge has fallen by .*please the reward"
    ):
        run(tmp_path / "run", watching, Bright())
    written = json.loads((tmp_path / "run" / "alarms.json").read_text())
    assert written == watching.records
    assert watching.alarms == [alarm["text"] for alarm in written]
    assert (written[0]["name"], written[0]["step"]) == ("judges/judge", 8)
    assert written[0]["rise"]["mean"] > 0 > written[0]["fall"]["mean"]
    assert len(written) == 1 + any(alarm["name"] == "diversity" for alarm in written)
    logged = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(",")
    wanted = {f"hacking/{name}/change" for name in ("reward", "judges/judge", "diversity")}
    wanted |= {f"hacking/{name}/mean" for name in ("dark", "edges", "sharpness", "file_size", "extra_characters")}
    assert wanted | {"hacking/alarms", "hacking/seconds"} <= set(logged)


def test_an_honest_run_does_not_and_training_is_the_same(tmp_path: Path) -> None:
    watching = RewardHacking(prompts=12, groups=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "at step")
        watched = run(tmp_path / "one", watching, Dark())
    assert watching.watch.changes["reward"].rises
    assert watching.watch.changes["judges/judge"].rises
    assert not watching.alarms
    assert not (tmp_path / "one" / "alarms.json").exists()
    assert torch.equal(weights(watched), weights(run(tmp_path / "other", None, Dark())))


@pytest.mark.filterwarnings("ignore:at step")
def test_it_stops_the_run_where_asked(tmp_path: Path) -> None:
    stopped = run(tmp_path, RewardHacking(prompts=12, groups=0, stop=True), Bright(), steps=40)
    assert stopped.rollouts_done == 8


@pytest.mark.filterwarnings("ignore:at step")
def test_a_resumed_run_compares_with_its_first_check(tmp_path: Path) -> None:
    first = RewardHacking(prompts=12, groups=0)
    run(tmp_path, first, Bright(), steps=4)
    assert not first.alarms
    again = RewardHacking(prompts=12, groups=0)
    again.load_state_dict(first.state_dict())
    assert again.watch.lasted == {"judges/judge": 1}
    values = torch.linspace(0, 1, 12)
    (alarm,) = again.watch.check(
        8, first.watch.first["reward"] + values, {"judges/judge": first.watch.first["judges/judge"] - values}
    )
    assert alarm.step == 8


@pytest.mark.filterwarnings("ignore:at step")
def test_without_a_judge_the_default_one_does_nothing(tmp_path: Path) -> None:
    (default,) = (callback for callback in default_callbacks() if isinstance(callback, RewardHacking))
    module = run(tmp_path, default, None, steps=4)
    assert not default.watch.first
    assert module.rollouts_done == 4
    assert list(samplers(module)) == [""]
    module.sampling = replace(module.sampling, temperature=0.5)
    assert samplers(module) == {"": module.sampling, "deployed/": module.policy.default_sampling}


@pytest.mark.filterwarnings("ignore:at step")
def test_the_way_the_policy_is_used_is_watched_where_training_samples_otherwise(tmp_path: Path) -> None:
    watching = RewardHacking(prompts=12, groups=2, group_size=2)
    run(tmp_path, watching, Bright(), steps=4, used_alike=False)
    names = {"reward", "judges/judge", "diversity"}
    assert set(watching.watch.first) == names | {f"deployed/{name}" for name in names}


@pytest.mark.filterwarnings("ignore:at step")
def test_alarms_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "alarms.json").write_text('[{"step": 99}]')
    again = RewardHacking(prompts=12, groups=0)
    again.records = [{"step": 2}]
    again.on_train_start(trainer(tmp_path, []), tiny_module())
    assert json.loads((tmp_path / "alarms.json").read_text()) == [{"step": 2}]


@pytest.mark.parametrize("wrong", [{"prompts": 1}, {"groups": -1}, {"group_size": 1}, {"patience": 0}])
def test_values_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
        RewardHacking(**wrong)


def test_one_bad_check_is_no_alarm_and_prompts_without_a_number_do_not_count() -> None:
    low, high = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([0.8, 0.9, 1.0, 1.1])
    watch = HackingWatch(patience=2)
    found = [
        len(watch.check(step, reward, {"judge": judge}))
        for step, (reward, judge) in enumerate([(low, high), (high, low), (high, high), (high, low), (high, low), (high, low)])
    ]
    assert found == [0, 0, 0, 0, 1, 0]
    # The judge falls, but so does the reward.
    watch = HackingWatch(patience=1)
    watch.check(0, high, {"judge": high})
    assert watch.check(1, low, {"judge": low}) == []
    partly = Change.of(torch.tensor([0.0, math.nan, 1.0]), torch.tensor([1.0, 5.0, 2.0]))
    assert (partly.mean, partly.standard_error) == (1.0, 0.0)
    assert math.isnan(Change.of(torch.tensor([1.0]), torch.tensor([2.0])).mean)


def test_diversity_must_be_lost_for_the_most_part() -> None:
    reward, first = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([0.9, 1.0, 1.1, 1.0])
    for left, alarms in ((0.5, []), (0.3, ["deployed/diversity"])):
        watch = HackingWatch(patience=1)
        watch.check(0, reward, {"deployed/diversity": first})
        assert [alarm.name for alarm in watch.check(1, reward + 1, {"deployed/diversity": left * first})] == alarms


def test_statistics_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, flat = torch.rand(3, 16, 16, generator=generator), torch.full((3, 16, 16), 0.5)
    found = image_statistics(torch.stack([noise, flat]))
    assert found["edges"][0] > 0.1 > found["edges"][1] == 0
    assert found["sharpness"][0] > 0.1 > found["sharpness"][1] == 0
    assert (found["dark"][1], found["contrast"][1], found["colours"][1]) == (0, 0, 0)
    counts = torch.bincount(((noise * 4).long() * torch.tensor([16, 4, 1])[:, None, None]).sum(0).flatten(), minlength=64) / 256
    assert float(found["colours"][0]) == pytest.approx(float(-(counts[counts > 0] * counts[counts > 0].log2()).sum()), abs=1e-5)
    groups = torch.stack([torch.stack([noise, noise]), torch.stack([noise, flat])])
    assert group_diversity(groups)[0] == 0
    assert float(group_diversity(groups)[1]) == pytest.approx(float((noise - flat).square().mean().sqrt()), abs=1e-5)
