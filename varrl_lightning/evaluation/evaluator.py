"""Samples a policy's images at fixed noise and scores them, for validation, test and predict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.errors import RunStoppedError
from varrl_lightning.evaluation.best_of import BestOf, best_of
from varrl_lightning.evaluation.evaluate import EVALUATION_UPDATE, Evaluation, evaluate, sample_images
from varrl_lightning.evaluation.standardised import Standards, completed_standards, standardised_reward
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.rollout import Share, prompt_keys
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.rewards.base import Reward, score_groups
from varrl_lightning.rewards.groups import single_images
from varrl_lightning.strategies import Parallel
from varrl_lightning.types import Prompt, Sampling


class Evaluator:
    """Samples one image per prompt at fixed keys and scores it; several processes share the work.

    Args:
        policy: the policy that samples.
        grpo: has the rewards, which score every image, and how images are sampled, unless a call says otherwise.
        judges: further rewards by name, which score the images of validation and test, and which training never sees.
        seed: seed of the noise.
        images_at_once: most images sampled at one time; None for 64.
        average: average of the weights, which takes their place; None for the weights themselves.
    """

    def __init__(
        self,
        policy: VARPolicy,
        grpo: GRPO,
        judges: Mapping[str, Reward],
        seed: int,
        images_at_once: int | None,
        average: WeightAverage | None,
    ) -> None:
        self.policy, self.rewards, self.judges, self.sampling = policy, grpo.rewards, dict(judges), grpo.sampling
        self.seed, self.images_at_once, self.average = seed, images_at_once or 64, average
        self.collected: dict[str, Evaluation] = {}
        """Evaluations of the last validation or test, by the first part of their metrics' names."""
        self.names: set[str] = set()
        """Names of all metrics so far, also of those that had no value."""
        self.best_of: BestOf | None = None
        """How `predict` chooses among several images of a prompt; None for one image of each."""
        self.candidates: list[list[float]] = []
        """What the candidates of each prompt of `predict` were worth, in the order of the prompts."""
        self.standards: Standards = {}
        """By what `val/standardised_reward` standardises each reward; a checkpoint holds it."""
        weights = {name: term.weight for name, term in self.rewards.terms.items() if term.weight}
        self._summed = weights if grpo.credit.combine != "weighted_sum" and len(weights) > 1 else {}
        self._batches: dict[str, list[Evaluation]] = {}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the policy has the averaged weights, where there is an average (`ema_decay`)."""
        with nullcontext() if self.average is None else self.average.used(self.policy):
            yield

    def images(self, prompts: Sequence[Prompt], parallel: Parallel) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt, all of them sampled by this process; where weights are sharded, every process must call this."""
        with self.averaged(), parallel.sampling([self.policy]):
            return sample_images(self.policy, prompts, self.sampling, self.seed, self.images_at_once)

    def predict(self, prompts: Sequence[Prompt], parallel: Parallel, same_everywhere: bool) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt of a batch.

        Args:
            same_everywhere: whether all processes have this batch, of which each then samples its share.

        Raises:
            RunStoppedError: where weights are sharded, but Lightning gives the processes different numbers of batches.
        """
        if same_everywhere and self.best_of is not None:
            return self._best_images(prompts, parallel, self.best_of)
        if same_everywhere:
            return self._shared_images(prompts, parallel, self.seed)
        if parallel.world_size > 1 and not parallel.whole_everywhere:
            raise RunStoppedError(
                "weights are sharded over the processes, which sample together, but Lightning gives them different numbers of "
                "batches of this loader; predict from PromptDataModule or EvaluationBatches, by strategy ddp, or on one process"
            )
        return self.images(prompts, parallel)

    def _shared_images(
        self, prompts: Sequence[Prompt], parallel: Parallel, seed: int, sampling: Sampling | None = None
    ) -> Float[Tensor, "N 3 H W"]:
        settings = sampling or self.sampling
        share = Share.of(len(prompts), parallel.rank, parallel.world_size)
        with self.averaged(), parallel.sampling([self.policy]):
            _, parts = parallel.run_on_all(
                lambda: (None, sample_images(self.policy, prompts, settings, seed, self.images_at_once, share.items))
            )
        return torch.cat(parts)[: len(prompts)]

    def _best_images(self, prompts: Sequence[Prompt], parallel: Parallel, how: BestOf) -> Float[Tensor, "N 3 H W"]:
        share = Share.of(len(prompts), parallel.rank, parallel.world_size)
        keys = prompt_keys(self.seed, EVALUATION_UPDATE, prompts, self.policy.device)[list(share.items)]
        own = [prompts[i] for i in share.items]
        with self.averaged(), parallel.sampling([self.policy]):
            _, parts = parallel.run_on_all(lambda: (None, best_of(self.policy, own, self.sampling, keys, how, self.images_at_once)))
        self.candidates += torch.cat([part.values for part in parts])[: len(prompts)].tolist()
        return torch.cat([part.images for part in parts])[: len(prompts)]

    def evaluate(self, prompts: Sequence[Prompt], parallel: Parallel, sampling: Sampling | None = None) -> Evaluation:
        """Images and their scores; each process samples its share and is given all of them."""
        settings = sampling or self.sampling
        return self._in_shares(prompts, parallel, lambda share: [self._share_of(prompts, settings, share)])[0]

    def scores(self, prompts: Sequence[Prompt], parallel: Parallel, sampling: Sampling | None = None) -> Evaluation:
        """The same without images, so that these are not sent between processes."""
        settings = sampling or self.sampling
        return self._in_shares(prompts, parallel, lambda share: [self._share_of(prompts, settings, share).without_images()])[0]

    def probe(self, prompts: Sequence[Prompt], parallel: Parallel, sampling: Sampling | None = None) -> dict[str, Evaluation]:
        """Images of some prompts with their scores, by `reward`, and the judges' scores without images, by `judges/NAME`."""
        settings = sampling or self.sampling
        names = ["reward", *(f"judges/{name}" for name in self.judges)]
        evaluations = self._in_shares(
            prompts, parallel, lambda share: self._with_judges(prompts, settings, share, keep_images=True)
        )
        return dict(zip(names, evaluations, strict=True))

    def groups(
        self, prompts: Sequence[Prompt], size: int, parallel: Parallel, sampling: Sampling | None = None
    ) -> Float[Tensor, "P A 3 H W"]:
        """So many images of each prompt, at keys of their own that are the same in each call."""
        images = [self._shared_images(prompts, parallel, self.seed + number, sampling) for number in range(1, size + 1)]
        return torch.stack(images, dim=1)

    def validate(self, prompts: Sequence[Prompt], parallel: Parallel) -> None:
        """Collect the scores of one batch, and the judges' scores."""
        self._collect({"val": self.sampling}, prompts, parallel)

    def test(self, prompts: Sequence[Prompt], parallel: Parallel) -> None:
        """Collect the scores of one batch, by the sampler and greedily, and the judges' scores of both."""
        self._collect({"test": self.sampling, "test/greedy": self.sampling.greedy()}, prompts, parallel)

    def metrics(self, trial: bool = False) -> dict[str, float]:
        """Means over all batches that were collected, by `val/...`, `test/...`; the next validation or test begins anew.

        Those of a judge are `val/judges/NAME/...`, `test/judges/NAME/...` and `test/greedy/judges/NAME/...`. What has no value,
        since no reward gave a score, is left out. Under a `combine` that standardises, `val/standardised_reward` is what several
        trained rewards come to: see `standardised_reward`. Their standards are those of the first validation.

        Args:
            trial: whether this is Lightning's sanity check, on a few batches, by which nothing is standardised.
        """
        self.collected = {name: Evaluation.merge(parts) for name, parts in self._batches.items()}
        self._batches = {}
        metrics = {f"{name}/{k}": v for name, merged in self.collected.items() for k, v in merged.metrics().items()}
        metrics |= self._of_judges()
        if self._summed and "val" in self.collected and not trial:
            scores = self.collected["val"].scores
            self.standards = completed_standards(self.standards, {name: scores[name] for name in self._summed})
            metrics["val/standardised_reward"] = standardised_reward(scores, self._summed, self.standards)
        self.names |= metrics.keys()
        return {name: value for name, value in metrics.items() if not math.isnan(value)}

    def _of_judges(self) -> dict[str, float]:
        """How many images a judge gave no score, where there are any, and what it has counted itself."""
        metrics: dict[str, float] = {}
        for name, merged in self.collected.items():
            way, is_judge, judge = name.partition("/judges/")
            if is_judge:
                unscored = int((~merged.values.isfinite()).sum())
                metrics |= {f"{name}/unscored": float(unscored)} if unscored else {}
                metrics |= {f"{way}/judges/{judge}/{counter}": n for counter, n in self.judges[judge].counters().items()}
        return metrics

    def _share_of(self, prompts: Sequence[Prompt], sampling: Sampling, share: Sequence[int]) -> Evaluation:
        return evaluate(self.policy, self.rewards, prompts, sampling, self.seed, self.images_at_once, share)

    def _in_shares(
        self, prompts: Sequence[Prompt], parallel: Parallel, work: Callable[[Sequence[int]], list[Evaluation]]
    ) -> list[Evaluation]:
        """Evaluations that `work` makes of each process's share of the prompts, merged."""
        share = Share.of(len(prompts), parallel.rank, parallel.world_size)
        with self.averaged(), parallel.sampling([self.policy]):
            _, parts = parallel.run_on_all(lambda: (None, work(share.items)))
        return [Evaluation.merge(each).first(len(prompts)) for each in zip(*parts, strict=True)]

    def _collect(self, ways: Mapping[str, Sampling], prompts: Sequence[Prompt], parallel: Parallel) -> None:
        """Add a batch's scores to those of the earlier ones.

        Args:
            ways: how to sample, by the first part of the metrics' names.
        """
        names = [name for way in ways for name in (way, *(f"{way}/judges/{judge}" for judge in self.judges))]
        evaluations = self._in_shares(
            prompts, parallel, lambda share: [e for s in ways.values() for e in self._with_judges(prompts, s, share)]
        )
        for name, evaluation in zip(names, evaluations, strict=True):
            self._batches.setdefault(name, []).append(evaluation)

    def _with_judges(
        self, prompts: Sequence[Prompt], sampling: Sampling, share: Sequence[int], keep_images: bool = False
    ) -> list[Evaluation]:
        """The rewards' scores of a share of the prompts, and then those of each judge."""
        evaluation = self._share_of(prompts, sampling, share)
        own, groups = evaluation.without_images(), single_images(len(evaluation.images))
        evaluations = [evaluation if keep_images else own]
        for name, judge in self.judges.items():
            scores = score_groups(judge, evaluation.images, evaluation.prompts, f"judges/{name}", groups)
            judged = replace(own, values=scores.values, scores={}, texts=scores.texts, readable=scores.usable)
            evaluations.append(replace(judged, case=scores.case, reader=None))
        return evaluations
