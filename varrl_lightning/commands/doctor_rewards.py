"""What each reward and judge gives and takes, and whether the branches of a group differ in it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_trials import Trial
from varrl_lightning.errors import RewardError
from varrl_lightning.rewards.base import Reward, score_images
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Rollout, Scores, Stage

IMAGES = 8
"""Images that each of them scores twice."""
SAME = 0.01
"""Share of the spread over images by which two scores of one image may differ; a batch's rounding is far below it."""
MOST_CONSTANT = 0.5
"""Share of groups without a difference above which is warned."""


def rewards_score(rewards: WeightedRewards, judges: Mapping[str, Reward], rollout: Rollout) -> Finding:
    """Check that each reward and each judge scores a few images, and alike when it is asked again; measure its time."""
    figures: list[str] = []
    wrong: list[str] = []
    remarks: list[str] = []
    asked = [("reward", name, term.reward, term.weight != 0) for name, term in rewards.terms.items()]
    asked += [("judge", name, judge, False) for name, judge in judges.items()]
    for kind, name, reward, needed in asked:
        what = f"{kind} {name!r}"
        try:
            seconds, first, second = _asked_twice(reward, rollout, name)
        except (RewardError, RuntimeError) as error:
            figures.append(f"the {what} failed")
            wrong.append(str(error))
            continue
        figures.append(f"the {what} {_said(first)}, {1000 * seconds:.1f} ms an image")
        if not first.usable.any():
            (wrong if needed else remarks).append(f"The {what} gave no score (None or NaN) to any of {len(first.values)} images.")
        elif _differ(first, second):
            remarks.append(
                f"The {what} is not deterministic: the same images have other scores when it is asked again, up to "
                f"{_differ(first, second):.2g} apart. That is noise in every advantage: fix its seed, switch its dropout off, "
                "or ask a judge at temperature 0."
            )
    return Finding("rewards", not wrong, "\n      ".join(figures), "\n".join([*wrong, *remarks]))


def _asked_twice(reward: Reward, rollout: Rollout, name: str) -> tuple[float, Scores, Scores]:
    """Seconds an image, and the scores of the same images from two calls."""
    count = rollout.stage.images_per_prompt if reward.whole_groups else min(IMAGES, len(rollout.images))
    images, prompts = rollout.images[:count], rollout.image_prompts[:count]
    reward.prepare()
    if not reward.whole_groups:
        score_images(reward, images[:1], prompts[:1], name)  # engines load on the first call
    start = time.perf_counter()
    first = score_images(reward, images, prompts, name)
    seconds = (time.perf_counter() - start) / count
    return seconds, first, score_images(reward, images, prompts, name)


def _said(scores: Scores) -> str:
    values = scores.values[scores.usable]
    count = f"scores {len(values)} of {len(scores.values)} images"
    return f"{count} {float(values.min()):.3f} to {float(values.max()):.3f}" if len(values) else count


def _differ(first: Scores, second: Scores) -> float:
    """The largest difference between two scores of one image; 0 where it is small against the spread over images."""
    if not torch.equal(first.usable, second.usable):
        return math.inf
    values = first.values[first.usable]
    gap = float((values - second.values[second.usable]).abs().max())
    spread = float(values.std(correction=0))
    return gap if gap > max(SAME * spread, 1e-6 * max(float(values.abs().max()), 1.0)) else 0.0


def groups_vary(trials: Mapping[Stage, Sequence[Trial]], rewards: WeightedRewards) -> Finding:
    """Check that the branches of some group differ in their return, as without a difference nothing is learnt."""
    shares, constant = [], False
    for stage, made in trials.items():
        varies = [x for trial in made for x in trial.varies]
        shares.append(f"{stage.name}: branches differ in {sum(varies)} of {len(varies)} groups")
        constant = constant or sum(varies) < (1 - MOST_CONSTANT) * len(varies)
    every = [x for made in trials.values() for trial in made for x in trial.varies]
    said = [line for name, term in rewards.terms.items() if term.weight for line in _alike(name, trials)]
    figure = "; ".join([*shares, *said])
    if not any(every):
        return Finding(
            "variance",
            False,
            figure,
            "The returns of each group are all alike, so that nothing is learnt. Call the reward on two different images; give "
            "prompts that the model sometimes answers well and sometimes not; raise the temperature or group_size.",
        )
    advice = (
        "Most groups teach nothing: easier or harder prompts, a larger group_size, or a higher temperature." if constant else ""
    )
    return Finding("variance", True, figure, advice)


def _alike(name: str, trials: Mapping[Stage, Sequence[Trial]]) -> list[str]:
    """What is said of a reward that gave one number, or none, to all images."""
    scores = [trial.scores[name] for made in trials.values() for trial in made]
    values: Tensor = torch.cat([of_trial.values[of_trial.usable] for of_trial in scores])
    if not len(values):
        return [f"the reward {name!r} scored no image"]
    if float(values.max() - values.min()) > 0:
        return []
    return [f"the reward {name!r} is constant: {float(values[0]):.3f} for every image"]
