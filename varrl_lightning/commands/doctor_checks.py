"""The checks of `varrl doctor`: each examines one thing and reports it in one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from varrl_lightning.commands.doctor_gaps import TWO_PATHS, Gaps, compare, log_probs, same_path, within_bound
from varrl_lightning.errors import RewardError
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import base_tensors
from varrl_lightning.registry import MASK_SOURCES, build
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.groups import whole_groups
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.training.guards import Guards
from varrl_lightning.training.reader_guard import advice, checked_readers, stops
from varrl_lightning.types import Prompt, Rollout, Score, Scores
from varrl_lightning.weights.fingerprint import checksums

_NO_SPREAD = 1e-6
_LEAST_WITHIN = 0.05
"""Of the standard deviation over all images; below it a group's images hardly differ in what the reward looks at."""
_DECIDED_BEFORE = (
    "A prompt's images are nearly alike to the reward, and other prompts' are not: what it looks at is decided before the branches "
    "part, by the prompt or by r_1. A reward of colour or brightness needs first_scale: trained."
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        check: name of the check.
        passed: whether the check passed; False also when it could not be made.
        figure: the measurement, in words.
        advice: what to do; empty when nothing is to be done. A check that passed with advice is a warning.
        seconds: that the check took.
    """

    check: str
    passed: bool
    figure: str
    advice: str = ""
    seconds: float = 0.0

    @property
    def level(self) -> str:
        """`pass`, `FAIL`, or `warn` for a check that passed with advice."""
        return ("warn" if self.advice else "pass") if self.passed else "FAIL"


def plugins_load(reward: Any, mask_source: Any) -> Finding:
    """Check that the rewards and the mask source are installed, and can be imported and built."""
    rewards = WeightedRewards.from_spec(reward)
    source = build(MASK_SOURCES, mask_source)
    terms = ", ".join(f"{name} ({type(term.reward).__name__}, weight {term.weight:g})" for name, term in rewards.terms.items())
    return Finding("plugins", True, f"rewards: {terms}; mask source: {type(source).__name__}")


def weights_are_strict(load: Callable[[], VARPolicy]) -> Finding:
    """Check that all weights are loaded: two loads, from different states of the random generator, give the same weights."""
    torch.manual_seed(1)
    first = _checksums(load())
    torch.manual_seed(2)
    second = _checksums(load())
    random = sorted(name for name in first if first[name] != second[name])
    if not random:
        return Finding("weights", True, f"{len(first)} tensors, all of them loaded")
    shown = ", ".join(random[:4]) + (", ..." if len(random) > 4 else "")
    return Finding(
        "weights",
        False,
        f"{len(random)} of {len(first)} tensors are random: {shown}",
        "They differ from one load to the next, so no file holds them. Build the policy by its from_pretrained, and have that load "
        "every key strictly.",
    )


def _checksums(policy: VARPolicy) -> dict[str, str]:
    """Checksums of every tensor of a policy and of its frozen parts, by name."""
    frozen = {f"{part}.{name}": t for part, module in policy.frozen_parts.items() for name, t in module.state_dict().items()}
    # An adapter is left out: it begins with random weights, multiplied by zeros.
    return checksums({f"transformer.{name}": t for name, t in base_tensors(policy).items()} | frozen)


def sample_stages(policy: VARPolicy, grpo: GRPO, prompts: Sequence[Prompt], seed: int, images_at_once: int | None) -> list[Rollout]:
    """One rollout of each different stage of the cycle."""
    keys = prompt_keys(seed, 0, prompts, policy.device)
    stages = dict.fromkeys(grpo.cycle)
    return [sample_tree(policy, prompts, stage, grpo.sampling, keys, images_at_once, noise=grpo.noise) for stage in stages]


def ratio_is_one(policy: VARPolicy, grpo: GRPO, rollouts: Sequence[Rollout], micro_batch_size: int | None) -> Finding:
    """Check that before the first step the ratio of new to old probability is 1, however branches are cut into micro-batches."""
    gaps: Gaps = {}
    for rollout in rollouts:
        uncut = log_probs(policy, rollout, grpo.objective.score)
        rows = len(rollout.prompts) * rollout.stage.branches
        with torch.enable_grad():  # the path of training: logits are recomputed
            parts = log_probs(policy, rollout, grpo.objective.score, micro_batch_size or max(rows // 2, 1))
        compare(gaps, rollout, uncut, parts)
    advice = "Two passes over the same tokens disagree. Look for dropout, batch statistics, or less than fp32 in the policy."
    return Finding("ratio", *within_bound("|log ratio| of sampled tokens", gaps, same_path(policy.device), advice))


def sampler_is_teacher_forcing(policy: VARPolicy, grpo: GRPO, rollouts: Sequence[Rollout]) -> Finding:
    """Check that teacher forcing gives each token the probability with which it was sampled, scale by scale."""
    gaps: Gaps = {}
    for rollout in rollouts:
        compare(gaps, rollout, rollout.log_probs, log_probs(policy, rollout, Score("sampler", grpo.sampling)))
    advice = "It begins at scale {}. Compare what scale_features gives there for one scale and for all: cache, positions, latent."
    return Finding("sampler", *within_bound("difference to teacher forcing", gaps, TWO_PATHS, advice))


def dropout_is_off(policy: VARPolicy, grpo: GRPO, rollout: Rollout) -> Finding:
    """Check that no part of the policy is in training mode, and that two passes give identical results."""
    policy.train()
    training = [name or "the policy itself" for name, module in policy.named_modules() if module.training]
    score = grpo.objective.score
    passes = zip(log_probs(policy, rollout, score), log_probs(policy, rollout, score), strict=True)
    same = all(torch.equal(a, b) for a, b in passes)
    return Finding(
        "dropout",
        not training and same,
        f"{len(training)} modules in training mode, two passes {'are' if same else 'are not'} identical",
        ""
        if not training and same
        else f"In training mode: {', '.join(training[:4]) or 'none'}. Keep the policy in eval mode, without any kind of dropout.",
    )


def reader_reads(rewards: WeightedRewards, judges: Mapping[str, Reward], prompts: Sequence[Prompt], guards: Guards) -> Finding:
    """Check that what reads text, judges too, can read the words of the prompts, drawn plainly."""
    if guards.reader_check == "ignore":
        return Finding("reader", True, "not checked: guards.reader_check is ignore")
    checks = checked_readers(rewards, prompts, guards, judges)
    figure = "\n      ".join(f"the {check}" for check in checks) or "no reward reads text"
    passed = not any(stops(check, guards) for check in checks)
    return Finding("reader", passed, figure, "\n".join(dict.fromkeys(filter(None, map(advice, checks)))))


def reward_runs(rewards: WeightedRewards, rollout: Rollout) -> Finding:
    """Check that the rewards score a rollout, and measure how long that takes."""
    try:
        images, prompts = rollout.images, rollout.image_prompts
        groups = list(whole_groups(rollout.branches, rollout.stage).values())
        first = rollout.stage.images_per_prompt if rewards.whole_groups else 1
        rewards.score_all(images[:first], prompts[:first])  # engines load on the first call
        start = time.perf_counter()
        scores = rewards.total(rewards.score_all(images, prompts, groups))
        took = (time.perf_counter() - start) / len(rollout.images)
    except RewardError as error:
        return Finding("reward", False, "it failed", str(error))
    usable = scores.values[scores.usable]
    count = f"{len(usable)} of {len(scores.values)} images scored, {1000 * took:.1f} ms an image"
    if len(usable) < 2:
        return Finding("reward", False, count, "A group needs two scores. See why the reward gives None or NaN.")
    overall, within = float(usable.std()), _within_groups(scores, groups)
    spread = f"mean {usable.mean():.3f}, standard deviation {overall:.3f}, within a prompt's images {within:.3f}"
    if overall <= _NO_SPREAD:
        return Finding("reward", True, f"{count}; {spread}; all alike: from such a group nothing is learnt")
    return Finding("reward", True, f"{count}; {spread}", _DECIDED_BEFORE if within < _LEAST_WITHIN * overall else "")


def _within_groups(scores: Scores, groups: Iterable[range]) -> float:
    """The standard deviation within a group, mean over the groups with two scores or more; 0 without one."""
    usable = [scores.values[g.start : g.stop][scores.usable[g.start : g.stop]] for g in groups]
    spreads = [float(values.std()) for values in usable if len(values) > 1]
    return sum(spreads) / len(spreads) if spreads else 0.0
