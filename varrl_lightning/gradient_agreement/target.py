"""The direction that variants are measured against: an estimate of the gradient of the expected reward, without any bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from varrl_lightning.algorithms.advantages import leave_one_out
from varrl_lightning.algorithms.vmr import combine_rewards
from varrl_lightning.gradient_agreement.variants import Variant
from varrl_lightning.grpo.credit import Credit, CreditOptions
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.objective import Objective
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Rollout, Score, Scores, Stage

NAME = "gradient of the expected reward"


def reinforce(grpo: GRPO, schedule: Schedule, branches: int) -> Variant:
    """REINFORCE with a leave-one-out baseline, of whole images drawn independently, under the distribution that is sampled.

    All scales count, r_1 too, all tokens alike, whatever the options of `grpo` are; the rewards and the sampling are its own.

    Args:
        branches: images of a prompt, at least 2.
    """
    objective = Objective(score=Score("sampler", grpo.sampling))
    stage = Stage(0, len(schedule), branches, name=NAME)
    return Variant(NAME, replace(grpo, cycle=(stage,), mask_source=Full(), credit=CreditOptions(alpha=0.0), objective=objective))


def reinforce_credit(variant: Variant, rollout: Rollout, scores: Mapping[str, Scores]) -> Credit:
    """The weights of tokens with which the loss of a rollout has, in expectation, the gradient of -E[R].

    A_i / R for each token of branch i of R, A_i its reward less the mean of the others of its group. No group is left out and the
    number of branches that count is never a divisor, since a weight that depends on the rewards would be a bias.

    Args:
        scores: of the images, by reward name. An image without a usable score counts nowhere.
    """
    shape, rows = (-1, rollout.stage.branches, 1), len(rollout.branches)
    values = {name: of_reward.values.view(shape).float() for name, of_reward in scores.items()}
    usable = {name: of_reward.usable.view(shape) for name, of_reward in scores.items()}
    rewards, valid = combine_rewards(values, usable, {name: term.weight for name, term in variant.grpo.rewards.terms.items()})
    returns, known = rewards.squeeze(-1), valid.squeeze(-1)
    ones = torch.ones(rows, rollout.schedule.span(rollout.stage.start, rollout.stage.stop), device=rewards.device)
    return Credit(
        rewards=rewards,
        valid=valid,
        returns=torch.where(known, returns, torch.nan),
        advantages=leave_one_out(returns, known).flatten(),
        active=known.flatten(),
        mask=ones,
        policy_weights=ones / rows,
        kl_weights=torch.zeros_like(ones),
    )
