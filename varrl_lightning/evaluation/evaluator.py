"""The part of a LightningModule that draws and scores: validation, test, predict, and calls by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.data import EvaluationBatches, TrainingBatches
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.evaluation.evaluate import Evaluation, draw, evaluate
from varrl_lightning.grpo.rollout import Share
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.rewards.base import Reward, score_images
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.strategies import Parallel, parallel_of
from varrl_lightning.types import Prompt, Sampling


class Evaluating(L.LightningModule):
    """Draws one image per prompt at fixed keys; several processes share the work."""

    policy: VARPolicy
    rewards: WeightedRewards
    judge: Reward | None
    sampling: Sampling
    eval_seed: int
    images_at_once: int | None
    average: WeightAverage | None
    rollouts_done: int

    def __init__(self) -> None:
        super().__init__()
        self._parallel: Parallel | None = None
        self._batch_scores: dict[str, list[Evaluation]] = {}
        self.collected: dict[str, Evaluation] = {}

    @property
    def parallel(self) -> Parallel:
        """How the Trainer's processes work together; one process without a Trainer."""
        strategy = None if self._trainer is None else self._trainer.strategy
        if self._parallel is None or self._parallel.strategy is not strategy:
            self._parallel = parallel_of(self._trainer)
        return self._parallel

    def _prompts_of_all(self, batch: Any) -> list[Prompt]:
        """The prompts of one update: the batch that all processes were given, or else what they were given together.

        Raises:
            RunStoppedError: when a loader that gives every process the same has given them different prompts.
        """
        own, given = self.parallel.collect(lambda: (as_prompts(batch),) * 2)
        if all(prompts == given[0] for prompts in given):
            return own
        if isinstance(self.trainer.train_dataloader, TrainingBatches) and self.trainer.training:
            ranks = ", ".join(str(rank) for rank, prompts in enumerate(given) if prompts != given[0])
            raise RunStoppedError(
                f"prompt order: rank {ranks} was given other prompts than rank 0 in rollout {self.rollouts_done}. Give all "
                "processes the same prompt file and seed."
            )
        return [prompt for prompts in given for prompt in prompts]

    def forward(self, prompts: Any) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt (of any form that a batch may have), RGB in [0, 1], at the fixed keys of evaluation.

        This process draws all of them; under a strategy that shards weights, every process must call this.
        """
        with self.averaged(), self.parallel.sampling([self.policy]):
            return draw(self.policy, as_prompts(prompts), self.sampling, self.eval_seed, self.images_at_once or 64)

    def evaluate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> Evaluation:
        """Draw and score one image per prompt at fixed keys, so that two calls differ by the policy alone.

        Several processes share the work: each must call this, and each is given the whole.
        """
        return self._in_shares(prompts, lambda share: [self._evaluated(prompts, sampling or self.sampling, share)])[0]

    def scored(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> Evaluation:
        """The same without the images, which are not sent from process to process."""
        settings = sampling or self.sampling
        return self._in_shares(prompts, lambda share: [self._evaluated(prompts, settings, share).without_images()])[0]

    def _evaluated(self, prompts: Sequence[Prompt], sampling: Sampling, share: Sequence[int]) -> Evaluation:
        images_at_once = self.images_at_once or 64
        return evaluate(self.policy, self.rewards, prompts, sampling, self.eval_seed, images_at_once, share)

    def _in_shares(self, prompts: Sequence[Prompt], work: Callable[[Sequence[int]], list[Evaluation]]) -> list[Evaluation]:
        """Evaluations of the prompts whose numbers each process is given, put together."""
        share = Share.of(len(prompts), self.parallel.rank, self.parallel.world_size)
        with self.averaged(), self.parallel.sampling([self.policy]):
            _, parts = self.parallel.collect(lambda: (None, work(share.items)))
        return [Evaluation.merge(each).first(len(prompts)) for each in zip(*parts, strict=True)]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the scores of one batch."""
        prompts = self._prompts_of_all(batch)
        evaluated = self._in_shares(prompts, lambda share: [self._evaluated(prompts, self.sampling, share).without_images()])
        self._collect("val", evaluated[0])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the scores of one batch, by the sampler and greedily, and the judge's of both."""
        prompts = self._prompts_of_all(batch)
        settings = (self.sampling, self.sampling.greedy())
        evaluated = self._in_shares(prompts, lambda share: [e for s in settings for e in self._judged(prompts, s, share)])
        names = [name for way in ("test", "test/greedy") for name in (way, f"{way}/judge")]
        for name, evaluation in zip(names if self.judge is not None else names[::2], evaluated, strict=True):
            self._collect(name, evaluation)

    def _judged(self, prompts: Sequence[Prompt], sampling: Sampling, share: Sequence[int]) -> list[Evaluation]:
        """What the rewards say of some prompts, and what the judge says where there is one."""
        evaluation = self._evaluated(prompts, sampling, share)
        found = [evaluation.without_images()]
        if self.judge is not None:
            scores = score_images(self.judge, evaluation.images, evaluation.prompts, "judge")
            found.append(replace(found[0], values=scores.values, texts=scores.texts, scores={}, readable=scores.usable))
        return found

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the policy has the averaged weights, where there is an average (`ema_decay`)."""
        with nullcontext() if self.average is None else self.average.used(self.policy):
            yield

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt of the batch."""
        # Lightning gives the processes different numbers of batches of somebody's own loader: they cannot be drawn together.
        if not isinstance(self.trainer.predict_dataloaders, EvaluationBatches):
            if self.parallel.world_size > 1 and not self.parallel.whole_everywhere:
                raise RunStoppedError(
                    "weights are sharded over the processes, which draw together, but Lightning gives them different numbers of "
                    "batches of this loader; predict from PromptDataModule or EvaluationBatches, by strategy ddp, or on one process"
                )
            images: Tensor = self.forward(batch)
            return images
        prompts = as_prompts(batch)
        share = Share.of(len(prompts), self.parallel.rank, self.parallel.world_size)
        with self.averaged(), self.parallel.sampling([self.policy]):
            _, parts = self.parallel.collect(
                lambda: (None, draw(self.policy, prompts, self.sampling, self.eval_seed, self.images_at_once or 64, share.items))
            )
        return torch.cat(parts)[: len(prompts)]

    def on_validation_epoch_end(self) -> None:
        """Log `val/reward`, `val/word_accuracy`, `val/ned`."""
        self._log_collected()

    def on_test_epoch_end(self) -> None:
        """Log `test/...`, `test/greedy/...` and what the judge said of both."""
        self._log_collected()

    def _collect(self, name: str, evaluation: Evaluation) -> None:
        self._batch_scores.setdefault(name, []).append(evaluation)

    def _log_collected(self) -> None:
        self.collected = {name: Evaluation.merge(parts) for name, parts in self._batch_scores.items()}
        for name, merged in self.collected.items():
            self.log_dict({f"{name}/{k}": v for k, v in merged.metrics().items()}, prog_bar=True, sync_dist=True)
        self._batch_scores = {}
