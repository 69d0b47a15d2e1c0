"""Measures how the gradients of a policy's scales relate: one backward pass for each scale of a probe batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from varrl_lightning.algorithms.scale_conflict import ConflictSums, ScaleConflict
from varrl_lightning.algorithms.stages import FirstScale, full_stage
from varrl_lightning.gradient_agreement.meter import AgreementMeter
from varrl_lightning.gradient_agreement.variants import Variant, own_stages
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.types import Prompt


class ConflictMeter:
    """Accumulates the gradients of each scale's share of the loss over probe batches.

    The share of a scale is the part of the loss that its tokens make, in the stage of the cycle that trains it: its sum over the
    scales is the loss of training, before clipping of the gradient. A cycle of prefix and suffix gives the prefix's scales from the
    one stage and the suffix's from the other. A scale that no stage trains has no gradient.

    A batch costs a rollout, its rewards and one forward pass for each stage, and a backward pass for each scale.

    Args:
        policy: whose gradients are measured; it does not change.
        grpo: the method; its cycle says which stage trains a scale.
        reference: what the KL is taken to, where `kl`.
        blocks: number of blocks of batches that the jackknife leaves out in turn.
        kl: whether the loss includes the KL.
        options: further arguments of `AgreementMeter`.
    """

    def __init__(
        self, policy: VARPolicy, grpo: GRPO, reference: Anchor | None = None, *, blocks: int = 8, kl: bool = False, **options: Any
    ) -> None:
        self.variants: list[Variant] = own_stages(grpo, kl)
        self.meter = AgreementMeter(policy, self.variants, reference, per_scale=True, blocks=blocks, **options)
        self.sums = ConflictSums(len(policy.schedule()), blocks)
        self.batches = 0
        self.trained = sorted({t for v in self.variants for t in range(v.stage.start, v.stage.stop)})
        """The scales that a stage trains, from 0."""

    @property
    def bytes_held(self) -> int:
        """Bytes of all sums once every block has a batch."""
        return 4 * self.meter.size * len(self.trained) * self.sums.blocks

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Measure one batch of prompts of one image size."""
        gradients: dict[int, Any] = {}
        for (_, scale), gradient in self.meter.gradients(self.variants, prompts, self.batches):
            if scale is not None and gradients.get(scale) is None:
                gradients[scale] = gradient
        self.sums.add(self.batches, [gradients.get(t) for t in range(self.sums.scales)])
        self.batches += 1

    def measured(self) -> ScaleConflict:
        """What the batches so far say."""
        return self.sums.compute()


def over_all_scales(grpo: GRPO, policy: VARPolicy, first_scale: FirstScale = "trained") -> GRPO:
    """The same method as plain GRPO over all scales, whose gradient any m splits in two.

    Each scale is trained on the terminal reward of as many images as the first stage has branches.
    """
    return replace(grpo, cycle=(full_stage(len(policy.schedule()), grpo.cycle[0].branches, first_scale),))
