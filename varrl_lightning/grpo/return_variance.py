"""Rewards of sampled groups and what these cost: of what a stage's variance comes, and what its continuations are worth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.variance_components import BranchCosts, VarianceSums
from varrl_lightning.grpo.credit import Credit
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.types import Prompt, Rollout, Stage

TIMED = 3
"""Updates that are timed; of all times the median counts, since the first ones load and allocate."""


def branch_costs(seconds: Mapping[str, float], stage: Stage, branches: int) -> BranchCosts:
    """Seconds of a branch without continuations and of one continuation, from the clocks of a step.

    A tail costs its sampling and decoding, and the time that the step waits for its score: scoring that goes on beside the sampler
    costs nothing. All else of the rollout is the branch's, and so is the update. Drafts beside whole images are neither's.

    Args:
        seconds: of `rollout`, of it the `tail`s, of `reward` (waiting for it), of it any `drafts`, and of `update`.
        stage: with at least one continuation.
        branches: number of branches that they were measured on.
    """
    own = max(seconds["rollout"] - seconds["tail"], 0.0) + seconds["update"]
    scoring = max(seconds["reward"] - seconds.get("drafts", 0.0), 0.0)
    return BranchCosts(own / branches, (seconds["tail"] + scoring) / (branches * stage.continuations))


class ReturnMeter:
    """Samples groups of a stage without training on them, and keeps their rewards and what they cost.

    Args:
        policy: samples, and is scored again to time an update; its weights stay as they are.
        grpo: its rewards score the images; their noise is independent here, whatever it is in training.
        stage: how groups are sampled.
        seed: seed of the noise; two meters of one seed sample the same branches where their stages differ in continuations alone.
        reference: what the KL is taken to; None for no KL.
        images_at_once: most images sampled at one time; None for all.
        micro_batch_size: branches in one backward pass.
    """

    def __init__(
        self,
        policy: VARPolicy,
        grpo: GRPO,
        stage: Stage,
        seed: int,
        *,
        reference: Anchor | None = None,
        images_at_once: int | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        self.grpo = replace(grpo, noise=NoiseOptions())
        self.policy, self.stage, self.seed, self.reference = policy, stage, seed, reference
        self.images_at_once, self.micro_batch_size = images_at_once, micro_batch_size
        self._rewards: list[Tensor] = []
        self._costs: list[BranchCosts] = []
        self._updates: list[float] = []

    @torch.no_grad()
    def add(self, prompts: Sequence[Prompt], *, update: bool = True) -> None:
        """Sample and score a group of each prompt, all of one image size.

        Args:
            update: whether to time an update, unless enough were; without one, costs are those of rollouts alone.
        """
        stopwatch, branches = Stopwatch(), len(prompts) * self.stage.branches
        keys = prompt_keys(self.seed, 0, prompts, self.policy.device)
        rollout, scores = self.grpo.sample_and_score(
            self.policy, prompts, self.stage, keys, images_at_once=self.images_at_once, stopwatch=stopwatch
        )
        total = self.grpo.rewards.total(scores)
        shape = (len(prompts), self.stage.branches, -1)
        self._rewards.append(total.values.float().masked_fill(~total.usable, torch.nan).view(shape).cpu())
        if not self.stage.scores_drafts:
            self._costs.append(branch_costs(stopwatch.seconds | {"update": 0.0}, self.stage, branches))
        if update and len(self._updates) < TIMED:
            credit = self.grpo.assign(rollout, self.grpo.branch_scores(self.policy, rollout, scores))
            self._updates.append(self._seconds_of_update(rollout, credit) / branches)

    def _seconds_of_update(self, rollout: Rollout, credit: Credit) -> float:
        """Seconds of the forward and backward passes of an update. The optimizer's step is left out: it costs little, and moves."""
        rows = len(rollout.branches)
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        self.policy.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with torch.enable_grad():
            credited = credit.rows(rollout.branches, rows)
            size = self.micro_batch_size or rows
            for part in self.grpo.losses(self.policy, self.reference, rollout, credited, size, {}, last=True):
                part.loss.backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        return seconds

    @property
    def rewards(self) -> Float[Tensor, "P A K"]:
        """The rewards of all groups so far, NaN where there is no score; of drafts, K is 1."""
        return torch.cat(self._rewards)

    @property
    def sums(self) -> VarianceSums:
        """What the components of their variance are estimated from."""
        return VarianceSums.of(self.rewards)

    @property
    def costs(self) -> BranchCosts:
        """Seconds of a branch and of one continuation, medians over the batches so far; not of a stage that scores drafts."""
        update = statistics.median(self._updates) if self._updates else 0.0
        branch, tail = (statistics.median(parts) for parts in zip(*self._costs, strict=True))
        return BranchCosts(branch + update, tail)
