"""The direction that variants are measured against is the gradient of E[R], where all that can be drawn can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tabular import paths
from tabular_policy import TabularPolicy
from tiny import PROMPTS, tiny_module, untrained_lettering
from torch import Tensor

from varrl_lightning.callbacks.gradient_agreement import agreement_meter, described_variants
from varrl_lightning.gradient_agreement.meter import AgreementMeter, warmed_metric
from varrl_lightning.gradient_agreement.target import reinforce, reinforce_credit
from varrl_lightning.gradient_agreement.variants import own_stages, read_variants
from varrl_lightning.grpo.credit import NormaliseOptions
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Sampling, Scores

TOP = 2
LABELS = 2


class Leaves:
    """A reward for each s_T; many of them are alike if the least is high, and then many groups are without variance."""

    def __init__(self, policy: TabularPolicy, least: float) -> None:
        drawn = torch.randn(policy.tree.states(len(policy.tree)), generator=torch.Generator().manual_seed(5))
        self.policy, self.rewards = policy, drawn.clamp(min=least)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.rewards[self.policy.leaves(images)]


def built(least: float) -> tuple[VARGRPO, TabularPolicy, list[Tensor]]:
    """A module that samples the two likeliest of three tokens, its policy, and the gradient of E[R] with respect to its tables.

    The module's own score is another distribution.
    """
    policy = TabularPolicy(((1, 2), (1, 1)), vocab_size=3, labels=LABELS, seed=4)
    reward = Leaves(policy, least)
    module = VARGRPO(
        policy,
        reward=reward,
        mask_source="full",
        m=1,
        group_size=4,
        num_continuations=1,
        alpha=0.0,
        normalise=NormaliseOptions("none", "none"),
        sampling=Sampling(top_k=TOP),
    )
    return module, policy, gradient_of_the_expected_reward(policy, reward.rewards)


def gradient_of_the_expected_reward(policy: TabularPolicy, rewards: Tensor) -> list[Tensor]:
    """By tables, mean over the labels, under the sampled distribution."""
    total = torch.zeros(())
    for label in range(LABELS):
        kept = []
        for t, logits in enumerate(policy.token_logits(label)):
            least = logits.topk(TOP, dim=-1).values[..., -1:]
            kept.append(policy.tree.factorised(logits.masked_fill(logits < least, -1e9), t))
        total = total + (paths(kept, 0, len(kept))[0].exp() * rewards).sum() / LABELS
    return list(torch.autograd.grad(total, list(policy.transformer)))


def both_labels(pairs: int) -> list[Prompt]:
    return [Prompt("p", label=label) for _ in range(pairs) for label in range(LABELS)]


def test_the_target_is_the_gradient_of_the_expected_reward_of_what_is_sampled() -> None:
    module, _, tables = built(least=0.5)
    exact = torch.cat([g.flatten() for g in tables])
    meter = agreement_meter(module, own_stages(module.grpo)[:1], metric=torch.ones(len(exact)))
    target = meter.target
    assert target is not None
    drawn = []
    for number in range(40):
        ((_, gradient),) = meter.gradients([target], both_labels(32), number)
        assert gradient is not None
        drawn.append(-gradient)
    found, error = torch.stack(drawn).mean(dim=0), torch.stack(drawn).std(dim=0) / math.sqrt(40)
    assert float(((found - exact) / (error + 1e-4)).abs().max()) < 4
    along = torch.stack(drawn) @ exact / (exact @ exact)
    error = along.std() / math.sqrt(40)
    assert float(error) < 0.04
    assert abs(float(along.mean()) - 1) < 3 * float(error)


def test_every_token_of_every_branch_weighs_the_same() -> None:
    """Also where a group has nothing to compare, and where an image has no score."""
    module, _, _ = built(least=0.5)
    target = reinforce(module.grpo, module.policy.schedule(), 4)
    rollout, scores = target.grpo.sample_and_score(module.policy, both_labels(1), target.stage, torch.tensor([1, 2]))
    (name,) = scores
    values = torch.tensor([1.0, 2.0, math.nan, 6.0, 3.0, 3.0, 3.0, 3.0])
    credit = reinforce_credit(target, rollout, {name: Scores(values)})
    torch.testing.assert_close(credit.policy_weights, torch.full((8, 3), 1 / 8))
    assert credit.advantages.tolist() == [-3.0, -1.5, 0.0, 4.5, 0.0, 0.0, 0.0, 0.0]
    assert (target.stage.start, target.stage.stop, target.stage.starts) == (0, 2, 1)
    assert target.grpo.objective.score.kind == "sampler"


def test_gains_are_those_of_the_exact_directions() -> None:
    """Of plain REINFORCE 1; of a prefix alone the part of |G| that its table holds, in the metric; a batch gains less."""
    module, _, exact = built(least=-math.inf)
    metric = torch.rand(sum(g.numel() for g in exact), generator=torch.Generator().manual_seed(1)) + 0.1
    squares = [float((g.flatten() ** 2 / p).sum()) for g, p in zip(exact, metric.split([g.numel() for g in exact]), strict=True)]
    described = {"all": {"stage": "all", "score": "sampler"}, "prefix": {"stage": "prefix", "score": "sampler"}}
    meter = agreement_meter(module, described_variants(module, described, kl=False), metric=metric)
    for _ in range(20):
        meter.add(both_labels(24))
    whole, prefix = meter.measured()
    assert whole.gain == pytest.approx(1, abs=1e-3)  # it has the images of the target
    share = math.sqrt(squares[0] / sum(squares))
    assert prefix.gain == pytest.approx(share, abs=0.05)
    assert prefix.gain == pytest.approx(share, abs=3 * prefix.gain_standard_error)
    assert prefix.relative_gain == pytest.approx(prefix.gain / whole.gain)
    assert (whole.relative_gain, whole.relative_gain_standard_error) == (1, 0)
    assert 0.9 < whole.batch_gain < 0.99
    assert prefix.relative_batch_gain == pytest.approx(prefix.batch_gain / whole.batch_gain)


def test_without_a_metric_there_is_no_gain_and_with_one_the_cosines_stay() -> None:
    module = tiny_module()
    variants = own_stages(module.grpo)

    def measured(**options: Any) -> AgreementMeter:
        meter = AgreementMeter(module.policy, variants, blocks=3, **options)
        for prompts in (PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]):
            meter.add(prompts)
        return meter

    plain = measured()
    metric = warmed_metric(plain, [PROMPTS[:2], PROMPTS[2:4]], beta2=0.95, eps=1e-8)
    with_gain, by_scale = measured(metric=metric), measured(metric=metric, per_scale=True)
    assert plain.target is None
    for before, after in zip(plain.measured(), with_gain.measured(), strict=True):
        assert math.isnan(before.batch_gain)
        assert not math.isnan(after.relative_batch_gain)
        gone: dict[str, Any] = {name: math.nan for name in vars(after) if "gain" in name}
        assert str(replace(after, **gone)) == str(before)
    rows = [row for row in by_scale.measured() if row.scale is None]
    gains = [row.relative_batch_gain for row in with_gain.measured()]
    assert [row.relative_batch_gain for row in rows] == pytest.approx(gains, rel=1e-3)
    assert all(math.isnan(row.relative_batch_gain) for row in by_scale.measured() if row.scale is not None)
    # The first variant is a prefix: what its scales do not train is left out.
    assert 0 < int(metric.isinf().sum()) < len(metric) / 2
    held = [t for sums in with_gain._gains.values() for t in sums.sums()]
    held += [t for sums in with_gain._sums.values() for t in (*sums._units, sums._sum) if t is not None]
    assert sum(t.numel() * t.element_size() for t in held) == with_gain.bytes_held


def test_the_shipped_variants_begin_with_what_they_are_compared_with() -> None:
    """Plain GRPO trains all scales, so that no weight is left out of the metric; the others have each option once or more."""
    variants = described_variants(tiny_module(untrained_lettering(), m=4), read_variants("agreement_gain"), kl=False)
    first = variants[0]
    assert (first.stage.stop, first.grpo.credit.alpha, first.grpo.mask_source.__class__.__name__) == (7, 0.0, "Full")
    assert {v.stage.continuations for v in variants if v.stage.stop == 4} == {0, 1, 2}
    normalise = [v.grpo.credit.normalise for v in variants]
    assert {n.min_std for n in normalise} == {1e-6, 0.05, 0.1}
    assert {n.advantage_eps for n in normalise} == {1e-4, 0.05, 0.2}
