"""One way to make a gradient, as a value: a tree of images, their scores, credit, and the loss, without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.grpo.credit import (
    BranchScores,
    Credit,
    CreditOptions,
    Rows,
    assign_credit,
    image_returns,
    scores_by_branch,
)
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.objective import Objective, detached, flat
from varrl_lightning.grpo.rollout import sample_tree
from varrl_lightning.grpo.stopwatch import Stopwatch
from varrl_lightning.mask_sources.base import MaskSource, check_drafts, pixel_mask
from varrl_lightning.metrics.rank_agreement import group_taus
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.groups import PartialScores, whole_groups
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import LogProbs, Prompt, Rollout, Sampling, Scores, Stage

Seen = Callable[[Rollout, Mapping[str, Scores], Float[Tensor, "N H W"] | None], None]
"""Is shown the images of a rollout, their scores by reward name, and which pixels these are about; None for all pixels."""


class MicroBatch(NamedTuple):
    """The loss of some branches of a rollout.

    Args:
        first: number of the first branch.
        loss: the losses of all micro-batches sum to the loss of the rollout.
        tokens: quantities of each token for the log, by name.
    """

    first: int
    loss: Float[Tensor, ""]
    tokens: dict[str, Float[Tensor, "R L"]]


@dataclass(frozen=True)
class GRPO:
    """One way to make a gradient: what is sampled, who scores it, which loss.

    A batch goes through `sample`, `assign` and `losses`. A variant of the method is a `dataclasses.replace` of this value:

        replace(grpo, cycle=(stage,), credit=replace(grpo.credit, alpha=0.0))

    Args:
        cycle: the stages of successive rollouts, over and over.
        rewards: weighted rewards of the images.
        mask_source: which pixels the scores are about; `registry.build` makes one of a plain function.
        sampling: how images are sampled; the objective's score follows it.
        credit: how scores become weights of tokens.
        objective: the loss, and which distribution it trains.
        noise: what the images of a group share of their noise.

    Raises:
        ValueError: when the objective's score has another sampling, or the mask source cannot do with the rewards or with drafts.
    """

    cycle: tuple[Stage, ...]
    rewards: WeightedRewards
    mask_source: MaskSource
    sampling: Sampling
    credit: CreditOptions = field(default_factory=CreditOptions)
    objective: Objective = field(default_factory=Objective)
    noise: NoiseOptions = field(default_factory=NoiseOptions)

    def __post_init__(self) -> None:
        score = self.objective.score
        if score.sampling == Sampling():
            followed = replace(self.objective, score=replace(score, sampling=self.sampling))
            object.__setattr__(self, "objective", followed)
        elif score.sampling != self.sampling:
            raise ValueError(f"objective.score.sampling must be that of the rollouts, {self.sampling}, got {score.sampling}")
        check_drafts(self.mask_source, self.cycle)
        self.mask_source.use_rewards({name: term.reward for name, term in self.rewards.terms.items()})

    def stage(self, rollouts_done: int) -> Stage:
        """The stage of the next rollout."""
        return self.cycle[rollouts_done % len(self.cycle)]

    def check_policy(self, policy: VARPolicy) -> None:
        """Check that the weights of tokens and the loss can be computed for a policy.

        Raises:
            ValueError: see `CreditOptions.check_stage` and `Objective.check_policy`.
        """
        self.objective.check_policy(policy)
        for stage in dict.fromkeys(self.cycle):
            self.credit.check_stage(stage, policy.schedule())

    def describe(self, rollouts_done: int) -> dict[str, object]:
        """The stage of the next rollout and all parts by name: what processes that train together must hold alike."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(dict.fromkeys(self.cycle))}
        rewards = {f"reward {name}": f"{_reward(t.reward)}, weight {t.weight}" for name, t in self.rewards.terms.items()}
        alternation = ", ".join(stage.name for stage in self.cycle)
        parts = {
            "stage": self.stage(rollouts_done).name,
            "mask_source": _class(self.mask_source),
            "sampling": self.sampling,
            "noise": self.noise,
        }
        return {"alternation": alternation, **stages, **vars(self.credit), **vars(self.objective), **rewards, **parts}

    def sample(
        self,
        policy: VARPolicy,
        prompts: Sequence[Prompt],
        stage: Stage,
        keys: Int[Tensor, " P"],
        *,
        images_at_once: int | None = None,
        branches: Sequence[int] | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> tuple[Rollout, BranchScores]:
        """A tree of images, and the scores of its branches with the tokens that these are about.

        Args:
            prompts: P prompts of one image size.
            keys: noise keys of the prompts, see `prompt_keys`.
            images_at_once: most images sampled and decoded at one time; None for all.
            branches: which of the P * A branches to sample; None for all.
            stopwatch: measures `rollout`, of it the `tail`s, `reward` (waiting for it), of it the `drafts` beside whole images, and
                `scoring` (all of the rewards' work).

        Raises:
            ValueError: when a group is sampled in part, but a reward compares the images of a group.
        """
        rollout, scores = self.sample_and_score_part(
            policy, prompts, stage, keys, images_at_once=images_at_once, branches=branches, stopwatch=stopwatch
        )
        return rollout, self.scores_by_branch(policy, rollout, scores)

    def sample_and_score(
        self,
        policy: VARPolicy,
        prompts: Sequence[Prompt],
        stage: Stage,
        keys: Int[Tensor, " P"],
        *,
        images_at_once: int | None = None,
        branches: Sequence[int] | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> tuple[Rollout, dict[str, Scores]]:
        """A tree of images, and the scores of its images by reward name; arguments and errors as in `sample`."""
        rollout, scores = self.sample_and_score_part(
            policy, prompts, stage, keys, images_at_once=images_at_once, branches=branches, stopwatch=stopwatch
        )
        return rollout, scores.of_images(self.rewards.terms, rollout.branches, stage)

    def sample_and_score_part(
        self,
        policy: VARPolicy,
        prompts: Sequence[Prompt],
        stage: Stage,
        keys: Int[Tensor, " P"],
        *,
        images_at_once: int | None = None,
        branches: Sequence[int] | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> tuple[Rollout, PartialScores]:
        """The same, but without the scores of groups that are sampled in part, from rewards that compare the images of a group."""
        stopwatch = stopwatch or Stopwatch()
        all_branches = range(len(prompts) * stage.branches)
        with BackgroundScoring(self.rewards, whole_groups(all_branches if branches is None else branches, stage)) as scoring:
            with stopwatch("rollout"):
                rollout = sample_tree(
                    policy, prompts, stage, self.sampling, keys, images_at_once, scoring.add, branches, stopwatch, self.noise
                )
            with stopwatch("reward"):
                scores = scoring.partial_result(partial(stopwatch.tell, "reward"))
        stopwatch.seconds["scoring"] = scoring.seconds
        if drafts := rollout.of_drafts:
            with stopwatch("drafts"):
                scores = replace(scores, drafts=self._score_again(drafts, images_at_once, stopwatch))
            for part in ("reward", "scoring"):  # nothing is sampled meanwhile
                stopwatch.seconds[part] += stopwatch.seconds["drafts"]
        return rollout, scores

    def _score_again(self, rollout: Rollout, images_at_once: int | None, stopwatch: Stopwatch) -> PartialScores:
        """The scores of images that exist already: of drafts, for which the rewards have time when the whole images are scored."""
        prompts, step = rollout.image_prompts, images_at_once or len(rollout.images)
        with BackgroundScoring(self.rewards, whole_groups(rollout.branches, rollout.stage)) as scoring:
            for first in range(0, len(prompts), step):
                scoring.add(rollout.images[first : first + step], prompts[first : first + step])
            return scoring.partial_result(partial(stopwatch.tell, "reward"))

    def scores_by_branch(
        self, policy: VARPolicy, rollout: Rollout, scores: PartialScores, seen: Seen | None = None
    ) -> BranchScores:
        """The same as `branch_scores`, with the scores of the rollout's drafts where it has any.

        Args:
            seen: is shown the scores of the images, and their pixel mask.

        Raises:
            ValueError: when the scores of a group are not known, see `PartialScores.of_images`.
        """
        names = self.rewards.terms
        found = self.branch_scores(policy, rollout, scores.of_images(names, rollout.branches, rollout.stage), seen)
        drafts = rollout.of_drafts
        if drafts is None or scores.drafts is None:
            return found
        of_drafts = scores.drafts.of_images(names, drafts.branches, drafts.stage)
        return replace(found, drafts=scores_by_branch(drafts, of_drafts, None, self.credit.mask))

    def draft_taus(self, scores: BranchScores, stage: Stage) -> tuple[Float[Tensor, "P A"], Float[Tensor, "P 2"]]:
        """The returns of a rollout's drafts, NaN where there is none, and how they rank the branches of each group: `group_taus`.

        Args:
            scores: of all P * A branches, with those of their drafts.
            stage: the rollout's.

        Raises:
            ValueError: when no drafts were scored.
        """
        if scores.drafts is None:
            raise ValueError(f"the drafts of stage {stage.name!r} were not scored: that needs with_drafts")
        weights = {name: term.weight for name, term in self.rewards.terms.items()}
        drafts = image_returns(scores.drafts, stage.of_drafts, weights, self.credit).squeeze(-1)
        return drafts, group_taus(drafts, image_returns(scores, stage, weights, self.credit))

    def branch_scores(
        self, policy: VARPolicy, rollout: Rollout, scores: Mapping[str, Scores], seen: Seen | None = None
    ) -> BranchScores:
        """Scores of images grouped by branch, with the tokens that the mask source finds them to be about.

        The mask source is shown the weighted sum; `assign` combines the rewards again, once the groups are complete.
        """
        total = self.rewards.total(scores)
        # Without any score there is nothing to ask the mask source; such branches take their group's mask, and do not count.
        scored = bool(total.usable.any())
        mask = pixel_mask(self.mask_source, rollout, total, policy) if scored else torch.zeros_like(rollout.images[:, 0])
        if seen is not None:
            seen(rollout, scores, mask)
        return scores_by_branch(rollout, scores, mask, self.credit.mask)

    def assign(self, rollout: Rollout, scores: BranchScores) -> Credit:
        """Returns, advantages and weights of the tokens of all P * A branches of a batch.

        Args:
            rollout: of some or all of these branches.
            scores: of all of them.
        """
        weights = {name: term.weight for name, term in self.rewards.terms.items()}
        masked_kl = self.objective.kl.masked
        return assign_credit(scores, rollout.schedule, rollout.stage, weights, self.credit, masked_kl)

    def learns_from(self, credit: Credit) -> bool:
        """Whether there is anything to learn from a batch, of which some image has a score.

        There is where a token has a weight, or a KL pulls back to the reference. The KL to the rollout's own policy is not enough:
        its gradient is 0 until something else has moved the policy.
        """
        return bool(credit.valid.any()) and (bool(credit.policy_weights.any()) or self.objective.kl_coef > 0)

    def losses(
        self,
        policy: VARPolicy,
        reference: Anchor | None,
        rollout: Rollout,
        rows: Rows,
        size: int,
        old: dict[int, LogProbs],
        last: bool = False,
    ) -> Iterator[MicroBatch]:
        """The loss of each micro-batch of a rollout.

        Where the score truncates, later passes keep the support of the first: the ratio of two distributions, and their KL, mean
        nothing on different ones.

        Args:
            reference: what the KL is taken to; None for no KL.
            rows: the credit of the rollout's branches.
            size: branches of a micro-batch.
            old: log-probabilities before the first update on this rollout, by first branch; filled by the first pass.
            last: whether no pass follows on this rollout, so that the first need not keep anything.
        """
        lengths = rollout.schedule.lengths[rollout.stage.start : rollout.stage.stop]
        sampled = flat(rollout.log_probs)
        for part, new in self.log_probs(policy, rollout, size, reference, old):
            before = old.get(part.start) or detached(new)
            if not last:
                old[part.start] = before
            loss, tokens = self.objective(new, before, sampled[part], rows[part], lengths)
            yield MicroBatch(part.start, loss, tokens)

    def log_probs(
        self, policy: VARPolicy, rollout: Rollout, size: int, reference: Anchor | None, old: Mapping[int, LogProbs] | None = None
    ) -> Iterator[tuple[slice, LogProbs]]:
        """Log-probabilities of the trained scales of a rollout by teacher forcing, `size` branches at a time.

        Args:
            old: those of the first pass on this rollout, by first branch, whose support is kept; None or empty in that pass.
        """
        stage = rollout.stage
        owners = [branch // stage.branches for branch in rollout.branches]
        prompt_rows = sorted(set(owners))
        cond = policy.encode_prompts([rollout.prompts[i] for i in prompt_rows])
        for first in range(0, len(owners), size):
            part = slice(first, first + size)
            tokens = [t[part] for t in rollout.tokens]
            index = torch.tensor([prompt_rows.index(owner) for owner in owners[part]], device=policy.device)
            options: dict[str, Any] = {"score": self.objective.score, "reference": reference}
            if old and first in old:
                options["support"] = old[first].support
            yield part, policy(tokens, cond.at(index), stage.start, stage.stop, **options)


def _reward(reward: Reward) -> str:
    return _class(reward) + (" of whole groups" if reward.whole_groups else "")


def _class(x: object) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
