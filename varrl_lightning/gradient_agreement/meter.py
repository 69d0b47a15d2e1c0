"""Gradient agreement: the mean cosine between gradients of independent batches, for several variants at once.

Where it is higher, a step of the same length goes further in the direction that all batches share. It does not tell whether that
direction is a good one: the gain does, against the gradient of the expected reward, in the metric in which Adam steps. Both compare
methods by the batch, not by the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.algorithms.gradient_cosine import GradientSums
from varrl_lightning.algorithms.gradient_gain import GainSums, Kind, adam_metric
from varrl_lightning.data import TrainingBatches
from varrl_lightning.gradient_agreement.measured import Measured, Scale
from varrl_lightning.gradient_agreement.target import reinforce, reinforce_credit
from varrl_lightning.gradient_agreement.variants import Variant
from varrl_lightning.grpo.credit import Credit, Rows
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.objective import Objective, detached, flat
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.rewards.groups import whole_groups
from varrl_lightning.types import LogProbs, Prompt, Rollout, Sampling, Scores, Stage

LEAST = 3
"""The smallest number of batches for which a cosine has a standard error."""
WARMING = 10**6
"""Number of the first batch that warms an AdamW state, as far as noise is concerned: measured batches count from 0."""


class AgreementMeter:
    """Accumulates the gradients of successive batches, for each variant on the same prompts and noise.

    The gradient is that of the policy term (of the complete loss if a variant has a KL) before clipping, by the code that trains.
    Variants that sample alike share the images: those of the most continuations serve variants that take fewer, since the k-th
    continuation of a branch depends on its key alone; those that score drafts share theirs. Variants that also train the same
    distribution share a forward pass.

    The policy does not change, and no random generator is used. With D trained parameters of 4 bytes each, memory holds
    (blocks + 1) D for every variant, besides one gradient for each variant that shares a forward pass; with `per_scale` this is
    multiplied by 1 + the number of its scales. With a metric there are blocks D more for every variant and for G.

    G is estimated in each batch by `reinforce`, with the sampling and the rewards of the first variant, and multiplied with
    gradients of other batches alone.

    Args:
        policy: the policy whose gradients are measured.
        variants: the variants; all are compared with the first.
        reference: what the KL is taken to, in variants that have a KL.
        micro_batch_size: branches of a micro-batch; None for all.
        images_at_once: most images sampled at one time; None for all.
        seed: seed of the noise, which training never uses.
        blocks: number of blocks of batches that the jackknife leaves out in turn; single batches where there are no more of them.
        per_scale: whether each scale's part of the loss is measured too, by a separate backward pass.
        parameters: pattern of names of trained parameters, as in `blocks.*.mlp.*`; None for all.
        metric: P of the gain, of `warmed_metric`; None for no gain.

    Raises:
        ValueError: when the pattern fits no trained parameter.
    """

    def __init__(
        self,
        policy: VARPolicy,
        variants: Sequence[Variant],
        reference: Anchor | None = None,
        *,
        micro_batch_size: int | None = None,
        images_at_once: int | None = None,
        seed: int = 0,
        blocks: int = 20,
        per_scale: bool = False,
        parameters: str | None = None,
        metric: Float[Tensor, " D"] | None = None,
    ) -> None:
        self.policy, self.variants, self.reference = policy, list(variants), reference
        self.micro_batch_size, self.images_at_once = micro_batch_size, images_at_once
        self.seed, self.per_scale = seed, per_scale
        self.batches = 0
        """Batches measured so far."""
        self._parameters = trained_parameters(policy, parameters)
        branches = max(v.stage.branches for v in self.variants)
        self.target = None if metric is None else reinforce(self.variants[0].grpo, policy.schedule(), branches)
        """What G is estimated by; None without a metric."""
        self._sums = {(v.name, scale): GradientSums(blocks) for v in self.variants for scale in self._scales(v)}
        if len(self._sums) != sum(len(self._scales(v)) for v in self.variants):
            raise ValueError(f"variants need different names, got {', '.join(v.name for v in self.variants)}")
        self._gains: dict[str, GainSums] = {}
        if self.target is not None and metric is not None:
            self._gains = {v.name: GainSums(blocks, metric) for v in (self.target, *self.variants)}

    def _scales(self, variant: Variant) -> list[Scale]:
        every = self.per_scale and variant is not self.target
        return [None, *(range(variant.stage.start, variant.stage.stop) if every else ())]

    @property
    def size(self) -> int:
        """D, entries of a gradient."""
        return sum(p.numel() for p in self._parameters)

    @property
    def bytes_held(self) -> int:
        """Bytes of all sums once every block has a batch."""
        held = sum(sums.blocks + 1 for sums in self._sums.values()) + sum(sums.blocks for sums in self._gains.values())
        return 4 * self.size * held

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Measure one batch.

        Args:
            prompts: of one image size.
        """
        variants, target = self.variants, None
        if self.target is not None:
            variants = [self.target, *variants]  # first, so that its gradient is there when the others are multiplied with it
        for (name, scale), gradient in self.gradients(variants, prompts, self.batches):
            if self.target is not None and name == self.target.name:
                target = gradient
            else:
                self._sums[name, scale].add(self.batches, gradient)
            if scale is None and name in self._gains:
                self._gains[name].add(self.batches, gradient, target)
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        """The sums so far as plain values, for a file: those of `load_state_dict`, of a meter made alike."""
        held = {"batches": self.batches, "cosines": {key: sums.state_dict() for key, sums in self._sums.items()}}
        return held | {"gains": {name: sums.state_dict() for name, sums in self._gains.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the sums of another meter."""
        for key, sums in self._sums.items():
            sums.load_state_dict(state["cosines"][key])
        for name, gains in self._gains.items():
            gains.load_state_dict(state["gains"][name])
        self.batches = int(state["batches"])

    def gradients(
        self, variants: Sequence[Variant], prompts: Sequence[Prompt], number: int
    ) -> Iterator[tuple[tuple[str, Scale], Float[Tensor, " D"] | None]]:
        """The gradients of variants in one batch, by variant and scale; None where nothing has a weight.

        Args:
            number: of the batch, from 0, on which its noise depends.
        """
        keys = prompt_keys(self.seed, -1 - number, prompts, self.policy.device)  # updates count from 0
        for family in _families(variants):
            K = max(v.stage.continuations for v in family)
            stage = replace(family[0].stage, continuations=K)
            rollout, scores = family[0].grpo.sample_and_score(self.policy, prompts, stage, keys, images_at_once=self.images_at_once)
            credits = [self._credit(v, rollout, scores) for v in family]
            yield from self._gradients(family, credits, rollout).items()

    def _credit(self, variant: Variant, rollout: Rollout, scores: Mapping[str, Scores]) -> Credit:
        if variant is self.target:
            return reinforce_credit(variant, rollout, scores)
        part, part_scores = _first_continuations(rollout, scores, variant.stage)
        if variant.grpo.rewards.whole_groups and variant.stage.continuations < rollout.stage.continuations:
            # Such a reward has compared more images than this variant has.
            groups = whole_groups(part.branches, variant.stage).values()
            part_scores = variant.grpo.rewards.score_all(part.images, part.image_prompts, groups)
        return variant.grpo.assign(part, variant.grpo.branch_scores(self.policy, part, part_scores))

    def _gradients(
        self, family: Sequence[Variant], credits: Sequence[Credit], rollout: Rollout
    ) -> dict[tuple[str, Scale], Float[Tensor, " D"] | None]:
        """The gradient of each variant of one family; None where nothing has a weight."""
        gradients: dict[tuple[str, Scale], Tensor | None] = {(v.name, scale): None for v in family for scale in self._scales(v)}
        weighted = [
            (v, c) for v, c in zip(family, credits, strict=True) if bool(c.policy_weights.any()) or v.grpo.objective.kl_coef > 0
        ]
        for score in dict.fromkeys(v.grpo.objective.score for v, _ in weighted):
            alike = [(v, c.rows(rollout.branches, len(rollout.branches))) for v, c in weighted if v.grpo.objective.score == score]
            for key, gradient in self._sharing_a_pass(alike, rollout):
                before = gradients[key]
                gradients[key] = gradient if before is None else before.add_(gradient)
        if self.per_scale:
            for v, _ in weighted:
                if v is self.target:
                    continue
                parts = [part for scale in self._scales(v)[1:] if (part := gradients[v.name, scale]) is not None]
                gradients[v.name, None] = torch.stack(parts).sum(dim=0)
        return gradients

    def _sharing_a_pass(
        self, alike: Sequence[tuple[Variant, Rows]], rollout: Rollout
    ) -> Iterator[tuple[tuple[str, Scale], Float[Tensor, " D"]]]:
        """Gradients of variants with the same `Score`, micro-batch by micro-batch: of the complete loss, or of each scale."""
        grpo = alike[0][0].grpo
        reference = self.reference if any(v.grpo.objective.kl_coef > 0 for v, _ in alike) else None
        size = self.micro_batch_size or len(rollout.branches)
        lengths = rollout.schedule.lengths[rollout.stage.start : rollout.stage.stop]
        sampled = flat(rollout.log_probs)
        with torch.enable_grad():
            for part, new in grpo.log_probs(self.policy, rollout, size, reference):
                terms = [(v, rows[part], scale) for v, rows in alike for scale in (self._scales(v)[1:] or [None])]
                for left, (v, rows, scale) in zip(reversed(range(len(terms))), terms, strict=True):
                    counted = rows if scale is None else only_scale(rows, scale - v.stage.start, lengths)
                    loss = _loss(v.grpo.objective, new, sampled[part], counted, lengths)
                    gradients = torch.autograd.grad(loss, self._parameters, retain_graph=left > 0, allow_unused=True)
                    yield (v.name, scale), _as_vector(gradients, self._parameters)

    def measured(self) -> list[Measured]:
        """Measurements so far, variant by variant, each for all scales and then scale by scale."""
        sums = {key: each.compute() for key, each in self._sums.items()}
        gains = self._measured_gains()
        rows = []
        for v in self.variants:
            for scale in self._scales(v):
                agreement, first = sums[v.name, scale], sums.get((self.variants[0].name, scale))
                cosine, above = agreement.estimate(), None if first is None else agreement.above(first)
                rows.append(
                    Measured(
                        variant=v.name,
                        stage=v.stage,
                        scale=scale,
                        cosine=cosine.value,
                        standard_error=cosine.standard_error,
                        difference=float("nan") if above is None else above.value,
                        difference_standard_error=float("nan") if above is None else above.standard_error,
                        signal=agreement.signal,
                        length=agreement.length,
                        batches=self._sums[v.name, scale].batches,
                        left_out=self._sums[v.name, scale].left_out,
                        **(gains.get(v.name, {}) if scale is None else {}),
                    )
                )
        return rows

    def _measured_gains(self) -> dict[str, dict[str, float]]:
        """The fields of `Measured` that are about gains, by variant."""
        if self.target is None:
            return {}
        target, first = self._gains[self.target.name], None
        fields: dict[str, dict[str, float]] = {}
        for v in self.variants:
            gain = self._gains[v.name].compute(target)
            first = first or gain
            kinds: tuple[tuple[str, Kind], ...] = (("gain", "mean"), ("batch_gain", "batch"))
            fields[v.name] = {}
            for name, kind in kinds:
                for field, estimate in ((name, gain.estimate(kind)), (f"relative_{name}", gain.relative(kind, first))):
                    fields[v.name] |= {field: estimate.value, f"{field}_standard_error": estimate.standard_error}
        return fields


def warmed_metric(meter: AgreementMeter, batches: Iterable[Sequence[Prompt]], beta2: float, eps: float) -> Float[Tensor, " D"]:
    """P of an AdamW that has seen gradients of the first variant in some batches, of noise that no measured batch has.

    Nothing moves, so that the state is one at the weights that are measured; and the same for all variants: that of a checkpoint
    may never have seen what its own recipe did not train.

    Args:
        beta2, eps: of the AdamW; see `adam_metric`.

    Raises:
        ValueError: when no batch has a gradient.
    """
    numbered = enumerate(batches, start=WARMING)
    found = (found for number, prompts in numbered for found in meter.gradients(meter.variants[:1], prompts, number))
    return adam_metric((gradient for (_, scale), gradient in found if scale is None), beta2, eps)


def trained_parameters(policy: VARPolicy, pattern: str | None = None) -> list[nn.Parameter]:
    """Parameters that require a gradient and whose names within the transformer match a pattern.

    Raises:
        ValueError: when no name matches; lists some of the names.
    """
    trained = {name.removeprefix("transformer."): p for name, p in policy.named_parameters() if p.requires_grad}
    matching = [p for name, p in trained.items() if pattern is None or fnmatchcase(name, pattern)]
    if not matching:
        raise ValueError(f"no trained parameter has a name like {pattern!r}; there are: {', '.join(list(trained)[:8])}, ...")
    return matching


def independent_batches(prompts: Sequence[Prompt], batches: int, size: int, seed: int, least: int = LEAST) -> list[list[Prompt]]:
    """`batches` batches of one image size each; no prompt is repeated before the set is exhausted.

    Raises:
        ValueError: when there are too few prompts for a batch, or fewer batches than `least`.
    """
    if batches < least:
        raise ValueError(f"batches must be at least {least}, to have a standard error, got {batches}")
    if size < 1:
        raise ValueError(f"prompts per batch must be at least 1, got {size}")
    stream = TrainingBatches(prompts, size, seed)
    passes = -(-batches // max(len(stream), 1))
    return [batch for number in range(passes) for batch in stream.epoch(number)][:batches]


def _families(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Variants that share images: of one stage but for the number of continuations, if any, of one sampling and one noise."""
    families: dict[tuple[Stage, Sampling, NoiseOptions], list[Variant]] = {}
    for v in variants:
        stage = replace(v.stage, continuations=min(v.stage.continuations, 1), name="")
        families.setdefault((stage, v.grpo.sampling, v.grpo.noise), []).append(v)
    return list(families.values())


def _first_continuations(rollout: Rollout, scores: Mapping[str, Scores], stage: Stage) -> tuple[Rollout, dict[str, Scores]]:
    """The rollout of a stage that has fewer continuations, and the scores of its images."""
    K = rollout.stage.continuations
    if stage.continuations == K:
        return replace(rollout, stage=stage), dict(scores)
    kept = [row for row in range(len(rollout.images)) if row % K < stage.continuations]
    part = replace(
        rollout,
        stage=stage,
        images=rollout.images[kept],
        tail_tokens=[tokens[kept] for tokens in rollout.tail_tokens],
        keys=None if rollout.keys is None else rollout.keys[kept],
    )
    return part, {name: of_reward.rows(kept) for name, of_reward in scores.items()}


def only_scale(rows: Rows, scale: int, lengths: Sequence[int]) -> Rows:
    """The same credit with weight on one scale of the stage alone: the losses of all scales add up to the loss."""
    on = torch.zeros(sum(lengths), device=rows.mask.device)
    on[sum(lengths[:scale]) : sum(lengths[: scale + 1])] = 1.0
    return replace(rows, policy_weights=rows.policy_weights * on, kl_weights=rows.kl_weights * on)


def _loss(objective: Objective, new: LogProbs, sampled: Tensor, rows: Rows, lengths: Sequence[int]) -> Float[Tensor, ""]:
    """The loss of the first update on a rollout: the policy is still the one that sampled it."""
    if objective.kl_coef == 0:
        new = replace(new, kl=None, reference_log_prob=None)
    loss, _ = objective(new, detached(new), sampled, rows, lengths)
    return loss


def _as_vector(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Float[Tensor, " D"]:
    parts = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
    return torch.cat([part.flatten().float() for part in parts])
