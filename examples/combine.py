"""What `combine` does with rewards of different scale: 20 updates of the embedded model under each.

    python examples/combine.py [--updates 20] [--prompts 4] [--validated 16]

Trains by three rewards: the OCR reward (up to 2), the size as a JPEG file in kilobytes (a penalty) and the sharpness. Prints for
each `combine` and reward, on the same 16 validation prompts before and after: the mean, the spread (the standard deviation within a
prompt's images), and the reward's share in the variance of the advantages.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning import GRPO, CreditOptions, LetteringPolicy, Objective, Prompt, Score
from varrl_lightning.algorithms.stages import prefix_stage
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.weighted import WeightedRewards

COMBINES = ("weighted_sum", "standardised_sum", "gdpo")
OCR = {"class_path": "ocr", "init_args": {"detect": False, "max_line_width": 96, "min_confidence": 0.5}}
REWARDS = {"ocr": {"reward": OCR, "weight": 1.0}, "jpeg_size": -1.0, "sharpness": 1.0}
BRANCHES = 8


@dataclass(frozen=True)
class Measured:
    """A reward's mean, its spread within a prompt's images, and its share in the variance of the advantages."""

    mean: float
    spread: float
    share: float


def shares(
    returns: Mapping[str, Float[Tensor, "P A"]], weights: Mapping[str, float], advantages: Float[Tensor, "P A"], standardised: bool
) -> dict[str, float]:
    """The share of each reward in the variance of the advantages; together they are 1.

    An advantage is a sum of terms, one of each reward, over a number that the branches of a group have in common:

        t_n = w_n (V_n - mean_group V_n) [/ std_group V_n],   share_n = cov(t_n, A) / var(A)

    A share below 0 says that the advantages go against this reward.

    Args:
        returns: V of each reward; with one image a branch, the reward itself.
        standardised: whether each is divided by its spread within the group.
    """
    terms = {}
    for name, values in returns.items():
        centred = values.double() - values.double().mean(dim=1, keepdim=True)
        spread = centred.std(dim=1, keepdim=True) if standardised else 1.0
        terms[name] = weights[name] * torch.nan_to_num(centred / spread)
    total, of_group = sum(terms.values()), advantages.double().square().sum(dim=1)
    within = {name: (t * total).sum(dim=1) / total.square().sum(dim=1).clamp(min=1e-12) for name, t in terms.items()}
    return {name: float((share * of_group).sum() / of_group.sum()) for name, share in within.items()}


def measure(grpo: GRPO, policy: VARPolicy, prompts: Sequence[Prompt]) -> dict[str, Measured]:
    """All measures on groups of images of these prompts, always with the same noise."""
    rollout, scores = grpo.sample(policy, prompts, grpo.cycle[0], prompt_keys(1, 0, prompts, policy.device))
    returns = {name: values.view(-1, BRANCHES) for name, values in scores.values.items()}
    weights = {name: term.weight for name, term in grpo.rewards.terms.items()}
    advantages = grpo.assign(rollout, scores).advantages.view(-1, BRANCHES)
    of = shares(returns, weights, advantages, standardised=grpo.credit.combine != "weighted_sum")
    return {name: Measured(float(v.mean()), float(v.std(dim=1).mean()), of[name]) for name, v in returns.items()}


def train(
    combine: str, updates: int, prompts_at_once: int = 4, validated: int = 16
) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """The measures before and after some updates under one `combine`."""
    policy, stage = LetteringPolicy.from_pretrained(), prefix_stage(T=7, m=4, A=BRANCHES, K=1, first_scale="shared")
    sampling, rewards = policy.default_sampling, WeightedRewards.from_spec(REWARDS)
    credit = CreditOptions(alpha=0.6, combine=combine)  # type: ignore[arg-type]
    grpo = GRPO((stage,), rewards, Boxes(), sampling, credit, Objective(Score("sampler", sampling)))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    validation = load_prompts("builtin:lettering/validation.jsonl")[:validated]
    prompts = load_prompts("builtin:lettering/train.jsonl")
    before = measure(grpo, policy, validation)
    for update in range(updates):
        batch = prompts[update * prompts_at_once :][:prompts_at_once]
        rollout, scores = grpo.sample(policy, batch, stage, prompt_keys(0, update, batch, policy.device))
        rows = grpo.assign(rollout, scores).rows(rollout.branches, real=len(rollout.branches))
        for micro_batch in grpo.losses(policy, None, rollout, rows, size=32, old={}):
            micro_batch.loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return before, measure(grpo, policy, validation)


def table(combine: str, before: Mapping[str, Measured], after: Mapping[str, Measured]) -> str:
    """The measures of one `combine`, a line for each reward."""
    lines = [f"{combine:<18}{'mean':>20}{'spread':>20}{'share':>18}"]
    for name, first in before.items():
        last = after[name]
        mean, spread = f"{first.mean:.3g} -> {last.mean:.3g}", f"{first.spread:.3g} -> {last.spread:.3g}"
        lines.append(f"  {name:<16}{mean:>20}{spread:>20}{f'{first.share:.1%} -> {last.share:.1%}':>18}")
    return "\n".join(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20, help="under each `combine`")
    parser.add_argument("--prompts", type=int, default=4, help="of an update")
    parser.add_argument("--validated", type=int, default=16, help="prompts of which the measures are")
    arguments = parser.parse_args()
    for combine in COMBINES:
        print(table(combine, *train(combine, arguments.updates, arguments.prompts, arguments.validated)), flush=True)


if __name__ == "__main__":
    main()
