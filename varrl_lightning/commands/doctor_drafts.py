"""May one train on drafts (K = 0)? Do they rank the branches of a group as whole images of the same branches do?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.stages import calibration
from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.metrics.rank_agreement import LEAST_GROUPS, LEVEL, TRUSTED, DraftAgreement
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.types import Prompt, Stage

GROUPS, MOST = 16, 64
"""Prompts of which a group is sampled at least, if there are as many, and at most, while it cannot be told."""
BRANCHES = 8
"""Most branches of such a group; each gives one draft and two whole images."""
SECONDS = 120.0
"""Time after which no other group is begun, unless another is given."""


def draft_stages(cycle: Sequence[Stage]) -> list[Stage]:
    """A calibration of each different stage of a cycle that scores drafts; none where K is at least 1."""
    return list(dict.fromkeys(calibration(stage) for stage in cycle if stage.scores_drafts))


def drafts_rank_branches(
    policy: VARPolicy,
    grpo: GRPO,
    prompts: Sequence[Prompt],
    stage: Stage,
    seed: int,
    images_at_once: int | None,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Finding:
    """Check that drafts rank the branches of a group as whole images do: `TRUSTED` of the ceiling, by the whole interval.

    Args:
        prompts: those of training; some are drawn.
        stage: a calibration, see `draft_stages`.
        seed: of the prompts and of all noise.
        seconds: after which no other group is begun.
        clock: tells seconds.
    """
    if stage.starts == 1:
        stage = replace(stage, branches=min(stage.branches, BRANCHES))
    taus: list[Tensor] = []
    begun = clock()
    for number in torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))[:MOST].tolist():
        prompt = prompts[number]
        keys = prompt_keys(seed, 0, [prompt], policy.device)
        _, scores = grpo.sample(policy, [prompt], stage, keys, images_at_once=images_at_once)
        taus.append(grpo.draft_taus(scores, stage)[1])
        told = len(taus) >= GROUPS and DraftAgreement.of(torch.cat(taus)).verdict != "cannot be told"
        if told or clock() - begun > seconds:
            break
    return _judged(torch.cat(taus), stage)


def _judged(taus: Float[Tensor, "P 2"], stage: Stage) -> Finding:
    found = DraftAgreement.of(taus)
    without_order = int((taus[:, 1].isfinite() & taus[:, 0].isnan()).sum())
    figure = f"tau-b of a draft with a whole image {found.tau:.2f}, of two whole images {found.ceiling:.2f} (the ceiling)"
    if found.enough:
        figure += f": {found.ratio:.2f} of it, {LEVEL:.0%} interval {found.low:.2f} to {found.high:.2f}"
    figure += f"; {found.groups} of {len(taus)} groups of {stage.branches} branches had an order"
    if without_order:
        figure += f", in {without_order} others the drafts alone had none"
    if found.verdict == "as whole images":
        return Finding("draft", True, f"drafts rank the branches as whole images do: {figure}")
    if found.verdict == "worse" or without_order > len(taus) / 2:
        return Finding(
            "draft",
            False,
            f"drafts rank the branches worse than whole images do: {figure}",
            f"They should reach {TRUSTED} of the ceiling: what raises the reward of drafts need not raise that of images. Take "
            "num_continuations 1, or a larger m.",
        )
    if found.groups < LEAST_GROUPS:
        why = f"it takes {LEAST_GROUPS} groups"
    else:
        why = f"{TRUSTED} is within the interval" if found.enough else "two whole images do not agree either"
    return Finding(
        "draft",
        True,
        f"it cannot be told whether drafts rank the branches as whole images do: {figure}",
        f"Too little to tell, since {why}. With calibrate_every, training goes on measuring and warns; with num_continuations 1 "
        "the question does not arise.",
    )
