"""Sample one image per prompt at fixed keys and score it: validation, test, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from varrl_lightning.evaluation.tables import Results
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.metrics.scores import CategoryMean, MeanScore
from varrl_lightning.metrics.text import Form, NormalizedEditDistance, WordAccuracy
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.prompts.benchmarks import benchmark_of, categories_of
from varrl_lightning.rewards.groups import single_images
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Case, Prompt, Sampling, Scores

ALONE: dict[str, Any] = {"sync_on_compute": False}
"""The evaluations of all processes are already merged here, perhaps by one process alone: metrics must not wait for others."""
EVALUATION_UPDATE = -1
"""Takes the place of a training rollout's number in the noise keys, so that evaluation never shares noise with training."""


@dataclass(frozen=True)
class Evaluation:
    """Images of prompts and their scores.

    Args:
        images: one per prompt; none after `without_images`.
        values: weighted sum of the rewards of each image; NaN where no reward applied.
        scores: scores of each reward, by its name.
        texts: the words that a reward read in each image; None when no reward reads.
        readable: images that this reward scored; others count neither as right nor as wrong. None for all images.
        case: the case in which this reward compares words, and so do word accuracy and NED.
        reader: the name of this reward.
    """

    prompts: Sequence[Prompt]
    images: Float[Tensor, "_N 3 H W"]
    values: Float[Tensor, " N"]
    scores: dict[str, Scores]
    texts: Sequence[Sequence[str]] | None
    readable: Bool[Tensor, " N"] | None = None
    case: Case = "lower"
    reader: str | None = None

    def without_images(self) -> Evaluation:
        """The same scores, with the images dropped to save memory."""
        scores = {name: Scores(s.values, s.components, valid=s.valid) for name, s in self.scores.items()}
        return replace(self, images=self.images.new_zeros(0, 3, 1, 1), scores=scores)

    def first(self, n: int) -> Evaluation:
        """The evaluation of the first n prompts."""
        scores = {name: each.rows(range(n)) for name, each in self.scores.items()}
        return Evaluation(
            prompts=self.prompts[:n],
            images=self.images[:n],
            values=self.values[:n],
            scores=scores,
            texts=None if self.texts is None else self.texts[:n],
            readable=None if self.readable is None else self.readable[:n],
            case=self.case,
            reader=self.reader,
        )

    @staticmethod
    def merge(parts: Sequence[Evaluation]) -> Evaluation:
        """Several evaluations of different prompts as one."""
        read = any(p.texts is not None for p in parts)
        return Evaluation(
            prompts=[prompt for p in parts for prompt in p.prompts],
            images=torch.cat([p.images for p in parts]),
            values=torch.cat([p.values for p in parts]),
            scores={name: Scores.join([p.scores[name] for p in parts]) for name in parts[0].scores},
            texts=[words for p in parts for words in (p.texts or [()] * len(p.prompts))] if read else None,
            readable=torch.cat([p.was_read() for p in parts]) if read else None,
            case=next((p.case for p in parts if p.texts is not None), "lower"),
            reader=next((p.reader for p in parts if p.texts is not None), None),
        )

    def was_read(self) -> Bool[Tensor, " N"]:
        """For each image, whether a reward has read it."""
        if self.texts is None:
            return torch.zeros(len(self.prompts), dtype=torch.bool, device=self.values.device)
        return torch.ones_like(self.values, dtype=torch.bool) if self.readable is None else self.readable

    def metrics(self) -> dict[str, float]:
        """Means over the images: the total reward, each of several rewards; if one reads, word accuracy and NED."""
        metrics = {"reward": _mean(self.values)}
        if self.texts is not None:
            metrics |= self._words_read(self.case)
            unread = int((~self.was_read()).sum())
            if unread:
                metrics["unread"] = float(unread)
        if len(self.scores) > 1 or "clip_score" in self.scores:
            means = {name: _mean(_known(s)) for name, s in self.scores.items()}
            metrics |= {name if name == "clip_score" else f"rewards/{name}": mean for name, mean in means.items()}
        return metrics

    def _words_read(self, form: Form) -> dict[str, float]:
        """Word accuracy and NED of the images that were read."""
        rows = self.was_read().nonzero().flatten().tolist()
        wanted, read = [list(self.prompts[i].words) for i in rows], [(self.texts or ())[i] for i in rows]
        metrics = {"word_accuracy": WordAccuracy(form, **ALONE), "ned": NormalizedEditDistance(form=form, **ALONE)}
        for metric in metrics.values():
            metric.update(wanted, read)
        return {name: float(metric.compute()) for name, metric in metrics.items()}

    def results(self) -> Results:
        """The metrics, and means by category of the reward `hpsv3`, or of the weighted sum where there is no such reward.

        For CVTG-2K's prompts also word accuracy and NED by the benchmark's own definition, for the paper's table.
        """
        categories, by_category = categories_of(self.prompts), {}
        if categories:
            score = self.scores.get("hpsv3")
            metric = CategoryMean(categories, **ALONE)
            metric.update(self.values if score is None else _known(score, "mu"), [p.category for p in self.prompts])
            by_category = {name: float(mean) for name, mean in metric.compute().items()}
        strict = self.texts is not None and benchmark_of(self.prompts) == "CVTG-2K"
        cvtg = {f"cvtg_{name}": value for name, value in self._words_read("cvtg").items()} if strict else {}
        return Results(self.metrics() | cvtg, by_category, hpsv3="hpsv3" in self.scores)


def _known(scores: Scores, component: str | None = None) -> Float[Tensor, " N"]:
    """The values, or those of the named component if it exists; NaN where there is no score."""
    values = scores.values if component is None else scores.components.get(component, scores.values)
    return values.masked_fill(~scores.usable, torch.nan)


def _mean(values: Float[Tensor, " N"]) -> float:
    metric = MeanScore(**ALONE)
    metric.update(values)
    return float(metric.compute())


@torch.no_grad()
def sample_images(
    policy: VARPolicy,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    seed: int,
    images_at_once: int = 64,
    share: Sequence[int] | None = None,
) -> Float[Tensor, "N 3 H W"]:
    """One image per prompt, which depends on the seed and the prompt's id alone.

    Args:
        share: numbers of the prompts that this process samples; all when None.

    Raises:
        ValueError: when the prompts ask for several image sizes.
    """
    if len({p.size for p in prompts}) > 1:
        raise ValueError("prompts of one size are needed, to stack their images; sample each size by itself")
    images = []
    keys = prompt_keys(seed, EVALUATION_UPDATE, prompts, policy.device)
    share = range(len(prompts)) if share is None else share
    for first in range(0, len(share), images_at_once):
        rows = list(share[first : first + images_at_once])
        cond = policy.encode_prompts([prompts[i] for i in rows])
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
    share: Sequence[int] | None = None,
) -> Evaluation:
    """Sample one image per prompt and score it with every reward; `share` as in `sample_images`.

    A reward that compares the images of a group is called with each image by itself: a prompt has no other, and what it says does
    not depend on the other prompts or on how many processes share them.
    """
    images = sample_images(policy, prompts, sampling, seed, images_at_once, share)
    prompts = prompts if share is None else [prompts[i] for i in share]
    scores = rewards.score_all(images, prompts, single_images(len(images)))
    values, name = rewards.total(scores).values, _reader(scores, rewards)
    if name is None:
        return Evaluation(prompts, images, values, scores, None)
    reader = scores[name]
    return Evaluation(prompts, images, values, scores, reader.texts, reader.usable, reader.case, name)


def _reader(scores: Mapping[str, Scores], rewards: WeightedRewards) -> str | None:
    """The reward whose words count: of those that read, the first that is trained, else the first."""
    names = [name for name, each in scores.items() if each.texts is not None]
    return next((name for name in names if rewards.terms[name].weight > 0), names[0] if names else None)
