"""Is what a run begins with what it is compared with? The reference of the KL, and the policy with its adapter off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from varrl_lightning.commands.doctor_checks import Finding
from varrl_lightning.commands.doctor_gaps import Gaps, bound_of, compare, largest_gap, log_probs, within_bound
from varrl_lightning.module import VARGRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import adapter_off, base_tensors, has_adapter, is_adapter
from varrl_lightning.types import Rollout
from varrl_lightning.weights.fingerprint import SAMPLED, checksums

_SPREAD = 0.02
"""Standard deviation of the numbers that stand in B while the adapter is tried: as large as a long training makes them."""


def reference_is_policy(model: VARGRPO, rollouts: Sequence[Rollout], expected: str = "") -> Finding:
    """Check that the reference gives every token the policy's probability before the first step, so that the KL begins at 0.

    Args:
        expected: why it may differ, in words; empty where it must not.
    """
    if model.reference is None:
        return Finding("reference", True, "there is no KL (kl_coef 0), and so no reference")
    gaps: Gaps = {}
    kl = 0.0
    for rollout in rollouts:
        stage = rollout.stage
        cond = model.policy.encode_prompts(rollout.prompts).repeat(stage.branches)
        options = {"score": model.grpo.objective.score, "reference": model.reference}
        found = model.policy(rollout.tokens, cond, stage.start, stage.stop, **options)
        assert found.reference_log_prob is not None
        assert found.kl is not None
        compare(gaps, rollout, found.log_prob, _by_token(found.reference_log_prob, found.log_prob))
        kl = max(kl, *(float(x.detach().max().nan_to_num(nan=torch.inf)) for x in found.kl))
    advice = (
        "From scale {} on the reference is another model than the policy, and the KL pulls towards it from the first step on. "
        "Leave model.reference out: then it is a frozen copy of the policy, or the policy with its adapter off."
    )
    same, figure, advice = within_bound("difference to the policy", gaps, bound_of(model.policy), advice)
    figure += f"; KL of a token up to {kl:.1e}"
    return (
        Finding("reference", True, f"{figure}; as expected {expected}") if expected else Finding("reference", same, figure, advice)
    )


def _by_token(scores: Sequence[Tensor], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities of tokens, where they are given bit by bit."""
    return [x.sum(-1) if x.dim() > token.dim() else x for x, token in zip(scores, tokens, strict=True)]


def adapter_is_neutral(model: VARGRPO, rollout: Rollout, expected: str = "") -> Finding:
    """Check that an adapter begins as zero, works when on, leaves the base alone when off, and that the base does not train.

    The base is the policy with B = 0. That the adapter works, and is off when it is off, is tried with random numbers in B.

    Args:
        expected: why the adapter may differ from the base, in words; empty where it must not.
    """
    policy, score = model.policy, model.grpo.objective.score
    if not has_adapter(policy):
        return Finding("adapter", True, "the policy has no adapter")

    def scored() -> list[Tensor]:
        return log_probs(policy, rollout, score)

    before = checksums(base_tensors(policy), SAMPLED)
    begin = scored()
    with _with_b(policy, 0.0):
        base = scored()
    with _with_b(policy, _SPREAD):
        on = scored()
        with adapter_off(policy):
            off = scored()
        again = scored()
    figures = {"start": largest_gap(begin, base), "off": largest_gap(off, base), "on": largest_gap(on, base)}
    wrong = list(_faults(policy, figures, largest_gap(on, again), before, expected))
    figure = (
        f"difference to the base alone: at the start {figures['start']:.1e}, off {figures['off']:.1e}, on with random numbers "
        f"{figures['on']:.1e} (bound {bound_of(policy):.0e})"
    )
    return Finding("adapter", not wrong, figure + (f"; as expected {expected}" if expected else ""), "\n".join(wrong))


def _faults(policy: VARPolicy, gaps: Mapping[str, float], after: float, before: Mapping[str, str], expected: str) -> Iterator[str]:
    bound = bound_of(policy)
    if gaps["start"] > bound and not expected:
        yield (
            "The adapter is not zero at the start: it was not reset, or is another run's. Build the policy by add_lora, whose B "
            "begins as 0; to begin with a trained adapter, name its folder as add_lora's `adapter`."
        )
    if gaps["off"] > bound:
        yield "With the adapter off the policy is not the base: the reference of the KL is wrong. See what the layers do besides."
    if gaps["on"] <= bound:
        yield "The adapter changes nothing when it is on: its layers are not those that the policy runs. Name other `targets`."
    if after > bound:
        yield "The adapter did not come back on after it was off."
    now = checksums(base_tensors(policy), SAMPLED)
    if changed := sorted(name for name in now if now[name] != before[name]):
        yield f"Scoring changed the base weights: {_some(changed)}. Nothing may write to them; do not merge the adapter into them."
    trained = [name for name, p in policy.transformer.named_parameters() if p.requires_grad and not is_adapter(name)]
    if trained:
        yield (
            f"{len(trained)} base weights train beside the adapter: {_some(trained)}. Checkpoints hold the adapter alone, and the "
            "reference would move with them. Let add_lora be the last to set requires_grad."
        )


@contextmanager
def _with_b(policy: VARPolicy, spread: float) -> Iterator[None]:
    """Inside of it, B of every adapted layer has random numbers of this standard deviation; all are put back."""
    held = {p: p.detach().clone() for name, p in policy.transformer.named_parameters() if is_adapter(name) and "lora_B" in name}
    drawn = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for p in held:
                p.copy_(spread * torch.randn(p.shape, generator=drawn))
        yield
    finally:
        with torch.no_grad():
            for p, value in held.items():
                p.copy_(value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
