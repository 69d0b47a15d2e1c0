"""Several updates on one rollout take their ratios and KLs over the tokens that the first pass was normalised over."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tabular_policy import TabularPolicy
from tiny import LeftBright, tiny_loader, tiny_module, tiny_trainer
from torch import Tensor

from varrl_lightning import GRPO, Objective, Sampling, Score
from varrl_lightning.algorithms.sampling import guided_logits, truncate
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.memory import Forecast, Simulation
from varrl_lightning.policies.scoring import packed, packed_bytes, unpacked
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import LogProbs, Prompt, Rollout, Stage

GRIDS = ((1, 1), (1, 2), (1, 2))
SAMPLINGS = {
    "top-k": Sampling(top_k=2),
    "top-p": Sampling(top_p=0.6),
    "both, guided and cool": Sampling(cfg=2.0, top_k=4, top_p=0.8, temperature=0.7),
}


def logits_of(policy: TabularPolicy, rollout: Rollout, sampling: Sampling) -> list[Tensor]:
    """Guided logits over the temperature of each trained token, by the policy's public parts."""
    cond = policy.encode_prompts([rollout.prompts[0]] * len(rollout.branches))
    stage, schedule = rollout.stage, rollout.schedule
    scales = []
    for half in (cond.tensors, cond.unconditional):
        features = policy.span_features(half, rollout.tokens, stage.start, stage.stop, schedule)
        scales.append([policy.logits(x) for x in features])
    if sampling.cfg is not None:
        scales[0] = [
            guided_logits(c, u, sampling.cfg, policy.guidance, t, len(schedule))  # type: ignore[arg-type]
            for t, (c, u) in enumerate(zip(*scales, strict=True), start=stage.start)
        ]
    return [x / sampling.temperature for x in scales[0]]  # type: ignore[operator]


def moved(policy: TabularPolicy, by: float) -> TabularPolicy:
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(by * torch.randn_like(p))
    return policy


@pytest.mark.parametrize("bits", [None, 3], ids=["tokens", "bits"])
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_later_passes_are_normalised_over_the_first_ones_tokens(sampling: Sampling, bits: int | None) -> None:
    if bits is not None:  # a bit has two values
        sampling = replace(sampling, top_k=0, top_p=0.6)
    policy = TabularPolicy(GRIDS, vocab_size=8, bits=bits, chunk_tokens=3)
    reference = moved(copy.deepcopy(policy), 0.3).requires_grad_(False)
    stage = Stage(0, 3, 4)
    rewards = WeightedRewards({"left": WeightedReward(LeftBright())})
    grpo = GRPO((stage,), rewards, Full(), sampling, objective=Objective(Score("sampler"), kl_coef=0.1))
    prompts = [Prompt("a")]
    rollout, scores = grpo.sample(policy, prompts, stage, prompt_keys(0, 0, prompts, policy.device))
    rows = grpo.assign(rollout, scores).rows(rollout.branches, len(rollout.branches))
    before = logits_of(policy, rollout, sampling)
    old: dict[int, LogProbs] = {}
    list(grpo.losses(policy, reference, rollout, rows, 3, old))
    moved(policy, 1.0)
    found = [micro_batch.tokens for micro_batch in grpo.losses(policy, reference, rollout, rows, 3, old)]

    log_prob, entropy, kl = [], [], []
    supports_moved = False
    for scale, (then, now, anchor) in enumerate(
        zip(before, logits_of(policy, rollout, sampling), logits_of(reference, rollout, sampling), strict=True)
    ):
        tokens = rollout.tokens[scale]
        support = truncate(then, sampling.top_k, sampling.top_p, keep=tokens).isfinite()
        supports_moved |= not torch.equal(support, truncate(now, sampling.top_k, sampling.top_p, keep=tokens).isfinite())
        p, q = (x.masked_fill(~support, -torch.inf).log_softmax(dim=-1) for x in (now, anchor))
        each = [p.gather(-1, tokens[..., None]).squeeze(-1), -(p.exp() * p).nansum(-1), (p.exp() * (p - q)).nansum(-1)]
        for column, values in zip((log_prob, entropy, kl), each, strict=True):
            column.append(values if bits is None else values.sum(-1))
    assert supports_moved
    sampled = torch.cat(rollout.log_probs, dim=1)
    torch.testing.assert_close(sampled - torch.cat([t["sampler_gap"] for t in found]), torch.cat(log_prob, dim=1))
    torch.testing.assert_close(torch.cat([t["entropy"] for t in found]), torch.cat(entropy, dim=1))
    torch.testing.assert_close(torch.cat([t["kl"] for t in found]), torch.cat(kl, dim=1))


@pytest.mark.parametrize("shape", [(5, 1), (5, 8), (3, 13), (4, 64), (2, 5, 2), (2, 8, 2)])
def test_a_support_survives_being_packed(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    support = torch.rand(shape) > 0.5
    bits = packed(support)
    assert bits.shape == (shape[0], packed_bytes(shape[1], shape[1] if len(shape) == 3 else None))
    assert torch.equal(unpacked(bits, support.shape), support)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:.*does not have many workers.*")
def test_the_updates_of_a_run_share_a_support() -> None:
    """A single update keeps none, nor does a score over the whole vocabulary."""
    passed: list[Any] = []

    def supports(**options: Any) -> list[Any]:
        module = tiny_module(optimizer=lambda p: torch.optim.SGD(p, lr=1e3), max_grad_norm=None, alternation=["suffix"], **options)
        forward, passed[:] = module.policy.forward, []

        def spy(*args: Any, support: Any = None, **named: Any) -> LogProbs:
            found = forward(*args, support=support, **named)
            passed.append((support, found.support))
            return found

        module.policy.forward = spy  # type: ignore[method-assign]
        tiny_trainer(max_steps=options.get("updates_per_rollout", 1)).fit(module, tiny_loader())
        return list(passed)

    (none, first), (second, _) = supports(score="sampler", updates_per_rollout=2)
    assert none is None
    assert second is first
    assert [given for given, _ in supports(score="sampler")] == [None]
    assert supports(score="corrected", updates_per_rollout=2) == [(None, None)] * 2


def test_the_forecast_counts_what_is_kept() -> None:
    policy, stage = TabularPolicy(GRIDS, vocab_size=11), Stage(1, 3, 4)
    rewards = WeightedRewards({"left": WeightedReward(LeftBright())})
    grpo = GRPO((stage,), rewards, Full(), Sampling(top_k=2), objective=Objective(Score("sampler")))
    simulation = Simulation(policy, grpo)
    simulation.read(Prompt("a"))

    def kept(updates: int) -> int:
        forecast = Forecast(policy, simulation, (stage,), torch.optim.AdamW, 2, updates_per_rollout=updates)
        return forecast.update(stage, 1).parts["rollout"]

    rows, tokens = 8, 4
    assert kept(3) - kept(1) == rows * tokens * 2  # 11 bits are two bytes
    simulation.objective = replace(grpo.objective, score=Score("model", grpo.sampling))
    assert kept(3) == kept(1)
