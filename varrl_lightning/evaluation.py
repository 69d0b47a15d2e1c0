"""Draw one image per prompt at fixed keys and score it: validation, test, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.metrics.text import NormalizedEditDistance, WordAccuracy
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.rollout import prompt_keys
from varrl_lightning.types import Prompt, Sampling, Scores

EVALUATION_UPDATE = -1
"""Stands where a training rollout has its number in the noise keys, so that evaluation never shares draws with training."""


@dataclass(frozen=True)
class Evaluation:
    """Images of prompts and what the rewards said of them.

    Args:
        images: one per prompt; none after `without_images`.
        values: weighted sum of the rewards of each image; NaN where none applied.
        texts: the words that were read in each image, when a reward reads.
    """

    prompts: Sequence[Prompt]
    images: Float[Tensor, "_N 3 H W"]
    values: Float[Tensor, " N"]
    scores: dict[str, Scores]
    texts: Sequence[Sequence[str]] | None

    def without_images(self) -> Evaluation:
        """The scores alone, to be kept while the images are not."""
        return replace(self, images=self.images.new_zeros(0, 3, 1, 1), scores={})

    @staticmethod
    def merge(parts: Sequence[Evaluation]) -> Evaluation:
        """Several evaluations of different prompts as one; per-reward scores are left out."""
        texts = [p.texts for p in parts]
        return Evaluation(
            prompts=[prompt for p in parts for prompt in p.prompts],
            images=torch.cat([p.images for p in parts]),
            values=torch.cat([p.values for p in parts]),
            scores={},
            texts=None if any(t is None for t in texts) else [words for t in texts if t is not None for words in t],
        )

    def metrics(self) -> dict[str, float]:
        """Mean reward, and word accuracy and NED by CVTG-2K's definition when a reward reads."""
        found = {"reward": float(self.values.nanmean())}
        if self.texts is not None:
            wanted = [list(p.words) for p in self.prompts]
            for name, metric in (("word_accuracy", WordAccuracy()), ("ned", NormalizedEditDistance())):
                metric.update(wanted, self.texts)
                found[name] = float(metric.compute())
        return found


@torch.no_grad()
def draw(
    policy: VARPolicy, prompts: Sequence[Prompt], sampling: Sampling, seed: int, images_at_once: int = 64
) -> Float[Tensor, "N 3 H W"]:
    """One image per prompt; what is drawn depends on the seed and the prompt's id alone.

    Raises:
        ValueError: when the prompts ask for several image sizes.
    """
    if len({p.size for p in prompts}) > 1:
        raise ValueError("prompts of one size are needed, to stack their images; draw each size by itself")
    images = []
    keys = prompt_keys(seed, EVALUATION_UPDATE, prompts, policy.device)
    for first in range(0, len(prompts), images_at_once):
        rows = slice(first, first + images_at_once)
        cond = policy.encode_prompts(prompts[rows])
        state = policy.begin(cond, sampling, keys[rows])
        latent = policy.sample(state, len(cond.schedule)).latent
        images.append(policy.decode_latent(latent).float().clamp(0, 1))
    return torch.cat(images)


def evaluate(
    policy: VARPolicy,
    rewards: WeightedRewards,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    images_at_once: int = 64,
) -> Evaluation:
    """Draw one image per prompt and score it with every reward."""
    images = draw(policy, prompts, sampling, seed, images_at_once)
    scores = rewards.score_all(images, prompts)
    texts = next((s.texts for s in scores.values() if s.texts is not None), None)
    return Evaluation(prompts, images, rewards.total(scores).values, scores, texts)
