"""A few real groups of each stage, sampled and scored as in training: what several checks of `varrl doctor` look at."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varrl_lightning.data import EvaluationBatches
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

AT_ONCE = 2
"""Prompts of a batch."""
GROUPS, MOST = 4, 16
"""Groups of a stage that are sampled at least, and at most, while all of them are constant."""
SECONDS = 20.0
"""Time in all, after which no stage gets a further batch; each has one."""


@dataclass(frozen=True)
class Trial:
    """One batch of groups of a stage.

    Args:
        rollout: with its images.
        scores: of them, by reward.
        credit: as training would give it.
        seconds: by part of a step: `rollout`, and `reward`, which is waiting for it.
    """

    rollout: Rollout
    scores: dict[str, Scores]
    credit: Credit
    seconds: dict[str, float]

    @property
    def varies(self) -> list[bool]:
        """Of each group, whether its branches differ in their returns."""
        groups: Tensor = self.credit.active.view(len(self.rollout.prompts), -1).any(dim=1)
        return [bool(x) for x in groups]


@torch.no_grad()
def tried(model: VARGRPO, prompts: Sequence[Prompt], clock: Callable[[], float] = time.monotonic) -> dict[Stage, list[Trial]]:
    """Groups of each different stage of the cycle, on the same prompts.

    Args:
        prompts: those of training; some are drawn.
        clock: tells seconds.

    Raises:
        RewardError: when a reward fails.
    """
    sample = random.Random(model.seed).sample(list(prompts), min(MOST, len(prompts)))
    batches = EvaluationBatches(sample, AT_ONCE).batches
    begun, trials = clock(), dict[Stage, list[Trial]]()
    for stage in dict.fromkeys(model.grpo.cycle):
        made: list[Trial] = []
        for number, batch in enumerate(batches):
            groups = [varies for trial in made for varies in trial.varies]
            enough = len(groups) >= GROUPS and any(groups)
            if made and (enough or clock() - begun > SECONDS):
                break
            made.append(_trial(model, stage, batch, number))
        trials[stage] = made
    return trials


def _trial(model: VARGRPO, stage: Stage, prompts: Sequence[Prompt], number: int) -> Trial:
    keys, stopwatch = prompt_keys(model.seed, number, prompts, model.policy.device), Stopwatch()
    rollout, scores = model.grpo.sample_and_score(
        model.policy, prompts, stage, keys, images_at_once=model.images_at_once, stopwatch=stopwatch
    )
    credit = model.grpo.assign(rollout, model.grpo.branch_scores(model.policy, rollout, scores))
    return Trial(rollout, scores, credit, stopwatch.seconds)
