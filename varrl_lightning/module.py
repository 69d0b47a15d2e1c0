"""VARGRPO: the LightningModule that aligns a next-scale generator with a reward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from torch import Tensor
from torch.optim import Optimizer

from varrl_lightning.algorithms.losses import Ratio
from varrl_lightning.checkpoints.hparams import AnswersOldArguments, check_overrides, plain_arguments, readable_checkpoint
from varrl_lightning.checkpoints.run_state import FrozenWeights, RunState, read_state, saved_tensors, write_state
from varrl_lightning.configuration.specs import Specified, built
from varrl_lightning.data import EvaluationBatches
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.evaluation.evaluator import Evaluator
from varrl_lightning.grpo.arguments import built_credit, built_cycle, built_noise, built_objective, built_sampling, built_score
from varrl_lightning.grpo.credit import BranchScores, Combine, CreditOptions, MaskOptions, NormaliseOptions
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.noise import NoiseOptions
from varrl_lightning.grpo.objective import KLOptions, Objective
from varrl_lightning.grpo.rollout import Share, prompt_keys
from varrl_lightning.grpo.stopwatch import Observer, Stopwatch
from varrl_lightning.memory import MicroBatchSize, explain_out_of_memory
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.state import Anchor
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.registry import MASK_SOURCES, build
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.strategies import Parallel, parallel_of
from varrl_lightning.strategies.consistency import RankConsistency
from varrl_lightning.training.argument_checks import check_arguments, check_judged, check_prompts, check_scales
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.training.guards import Guards
from varrl_lightning.training.judge_and_reference import built_judges, built_reference
from varrl_lightning.training.observers import RolloutObservers
from varrl_lightning.training.shared_batch import batches_of, prompts_of_all, share_of_branches
from varrl_lightning.training.shared_rollout import sample_on_all
from varrl_lightning.training.step_log import StepLog, step_metrics
from varrl_lightning.training.trainer_checks import check_dtype, check_trainer, check_training, silence_expected_warnings
from varrl_lightning.training.updater import LRSchedulerFactory, OptimizerFactory, Updater, paper_optimizer
from varrl_lightning.types import Prompt, Rollout, Sampling, SamplingChanges, Score, Stage

if TYPE_CHECKING:
    from typing_extensions import Self


class VARGRPO(AnswersOldArguments, L.LightningModule):
    """GRPO on next-scale generators with a middle return, per-scale weights and propagated masks (arXiv 2601.02256).

    A training step is one stage of the cycle: sample a tree of images, score them, turn scores into weights of tokens, update.

    In your own Trainer, batches are whatever `prompts.batches.as_prompts` reads; different batches of several processes form one
    update. A checkpoint restores weights, optimizer, schedule and counters, and the noise of a rollout follows from the counters. A
    DataLoader resumes exactly if it has `state_dict` and `load_state_dict`, or at the end of an epoch if its order does not depend
    on a generator's state; any other begins its epoch again.

    Arguments may be plain specs, as in a configuration: `{"class_path": ..., "init_args": ...}` for an object, a mapping of its
    fields for a dataclass. Specs are kept in checkpoints, so that `load_from_checkpoint(path)` needs nothing more; an argument that
    was an object has to be given again. Loading imports what the checkpoint names: load only checkpoints of people you trust.

    Args:
        policy: the generator; everything in its `transformer` that requires a gradient is trained.
        reference: anchor of the KL; None for a frozen copy of the policy as given, or for the policy with its adapter off.
        reward: a plugin's name, a class path, `{class_path, init_args}`, an object, or several: `{name: weight}`.
        mask_source: which pixels the reward is about: a plugin's name, or as for `reward`; `full` masks nothing.
        m: the middle step: a number of scales, or a resolution such as `256px`; T means plain GRPO.
        group_size: A, branches per prompt, >= 2; None for 16, unless images_per_prompt is given.
        images_per_prompt: in place of group_size: A = images / max(K, 1) in a prefix, A = images in any other stage.
        num_continuations: K, continuations of a branch in the prefix stage; with 0, a branch's reward is its draft's, the first m
            scales decoded at full size: an exact gradient of E[R(draft)], a biased one of E[R].
        calibrate_every: with K = 0, every n-th prefix update scores A drafts and 2 A images, and trains on these; None for never.
        eta: temperature of the middle return (Eq. 10), > 0.
        alpha: decay exponent of k_t = 1 / (h_t w_t)^alpha (Eq. 9).
        alternation: the cycle of stages, by name; `prefix*300` repeats.
        suffix_starts: different s_m per prompt in the suffix stage; divides its branches.
        first_scale: r_1 is `trained`, or not: sampled once per prompt and `shared`, or sampled `per_branch`.
        stages: all stages of the cycle spelled out, in place of m and alternation; sizes given beside must be those of one of them.
        combine: several rewards: `weighted_sum` (V of the sum), `standardised_sum` (of each V over its group's std), or `gdpo`.
        kl_coef: coefficient of the KL to the reference; 0 needs no reference.
        kl: how the KL is taken, see `KLOptions`: `estimator`, `old_coef`, `masked`.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        ratio: the probability that the ratio is of: `token`, `scale_mean`, `scale_sum`, `sequence_mean` (GSPO), `bit` (bitwise).
        updates_per_rollout: optimizer steps on one rollout, >= 1.
        normalise: divisors of advantages and weights, see `NormaliseOptions`: `advantages`, `tokens`, `constant`, `advantage_eps`,
            `min_std`.
        mask: how pixels become weights of tokens, see `MaskOptions`: `propagation`, `missing`, `outside`, `dilation`, `threshold`.
        score: which distribution is trained: `model`, `sampler`, `guided`, `corrected`, or a `Score`.
        noise: what images of a group share of their noise, see `NoiseOptions`: `continuations`, `branches`.
        sampling: how rollouts and evaluations are sampled: a complete `Sampling`, or changes to the policy's default.
        optimizer: makes an optimizer of parameters; the paper's AdamW when None.
        lr_scheduler: makes a schedule of an optimizer, which is stepped once per rollout.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        micro_batch_size: branches in one backward pass; None for all; `auto` for as many as the device's memory holds with a tenth
            to spare, predicted when training starts. It does not change what is computed.
        images_at_once: most images sampled and decoded at one time, at least those of one branch; None for all (64 in evaluation).
        seed: seed of all noise in training.
        eval_seed: seed of the noise in validation, test and before/after pictures.
        evaluate_with: rewards of validation and test that training never sees: one, a list, or a mapping of names to rewards;
            `auto` is Tesseract where it is installed and the OCR reward is in use; None for none.
        ema_decay: validation, test, predict and all pictures use an exponential moving average of the trained weights with this
            decay, in (0, 1), for example 0.99; None for the weights themselves. See `WeightAverage`.
        guards: what stops a run, see `Guards`: `max_bad_steps`, `equal_batches`, `check_ranks_every_n_steps`, `cut_prompts`,
            `reader_check`, `font`.
        monitor: the logged metric whose highest value makes best.ckpt; None for what is trained, see `callbacks.Checkpoints`.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(
        self,
        policy: Specified[VARPolicy],
        reference: Specified[VARPolicy] | None = None,
        reward: Any = "ocr",
        mask_source: Any = "boxes",
        m: int | str = "256px",
        group_size: int | None = None,
        images_per_prompt: int | None = None,
        num_continuations: int = 2,
        calibrate_every: int | None = None,
        eta: float = CreditOptions.eta,
        alpha: float = CreditOptions.alpha,
        alternation: Sequence[str] = ("prefix", "prefix", "prefix", "suffix"),
        suffix_starts: int = 1,
        first_scale: Literal["trained", "shared", "per_branch"] = "trained",
        stages: Sequence[Specified[Stage]] | None = None,
        combine: Combine = CreditOptions.combine,
        kl_coef: float = Objective.kl_coef,
        kl: Specified[KLOptions] = KLOptions(),  # noqa: B008  frozen
        clip_low: float = Objective.clip_low,
        clip_high: float = Objective.clip_high,
        ratio: Ratio = Objective.ratio,
        updates_per_rollout: int = 1,
        normalise: Specified[NormaliseOptions] = NormaliseOptions(),  # noqa: B008
        mask: Specified[MaskOptions] = MaskOptions(),  # noqa: B008
        score: str | Specified[Score] = "model",
        noise: Specified[NoiseOptions] = NoiseOptions(),  # noqa: B008
        sampling: Specified[SamplingChanges | Sampling] | None = None,
        optimizer: Specified[OptimizerFactory] | None = None,
        lr_scheduler: Specified[LRSchedulerFactory] | None = None,
        max_grad_norm: float | None = 1.0,
        micro_batch_size: int | Literal["auto"] | None = None,
        images_at_once: int | None = None,
        seed: int = 0,
        eval_seed: int = 0,
        evaluate_with: Any = "auto",
        ema_decay: float | None = None,
        guards: Specified[Guards] = Guards(),  # noqa: B008
        monitor: str | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        self.policy: VARPolicy = built("policy", VARPolicy, policy)
        self.guards: Guards = built("guards", Guards, guards)
        check_arguments(locals())
        credit = built_credit(eta, alpha, combine, mask, normalise)
        self.sampling = built_sampling(sampling, self.policy.default_sampling)
        self.sampling.check(len(self.policy.schedule()))
        objective = built_objective(built_score(score, self.sampling), clip_low, clip_high, ratio, kl_coef, kl)
        sizes = (m, group_size, images_per_prompt, num_continuations, calibrate_every)
        self.cycle = built_cycle(self.policy, stages, *sizes, alternation, suffix_starts, first_scale)
        self.rewards = WeightedRewards.from_spec(reward)
        source, shared = build(MASK_SOURCES, mask_source), built_noise(noise, self.cycle, self.policy)
        self.grpo = GRPO(self.cycle, self.rewards, source, self.sampling, credit, objective, shared)
        self.grpo.check_policy(self.policy)
        self.judges = built_judges(evaluate_with, self.rewards)
        self.optimizer_factory = built("optimizer", OptimizerFactory, optimizer) or paper_optimizer
        self.lr_scheduler_factory = built("lr_scheduler", LRSchedulerFactory, lr_scheduler)
        self.micro_batches = MicroBatchSize(
            micro_batch_size, self.policy, self.grpo, self.optimizer_factory, images_at_once, updates_per_rollout
        )
        self.seed, self.eval_seed, self.images_at_once = seed, eval_seed, images_at_once
        self.ema_decay, self.monitor = ema_decay, monitor
        # A tuple keeps the frozen reference out of the module tree.
        self._reference: tuple[Anchor | None] = (built_reference(reference, self.policy) if kl_coef > 0 else None,)
        self.average = None if ema_decay is None else WeightAverage(self.policy, ema_decay)
        self.counters, self.frozen = RunCounters(), FrozenWeights(self.policy, self.reference)
        self.updater = Updater(
            self.policy, self.reference, self.grpo, self.counters, self.average, updates_per_rollout, max_grad_norm, self.guards
        )
        self.evaluator = Evaluator(self.policy, self.grpo, self.judges, eval_seed, images_at_once, self.average)
        self._step_log, self.observers = StepLog(self.grpo), RolloutObservers()
        self._parallel: Parallel | None = None
        self.observer: Observer | None = None  # is told how far a training step is

    @property
    def reference(self) -> Anchor | None:
        """The frozen anchor of the KL, if there is one."""
        return self._reference[0]

    @property
    def rollouts_done(self) -> int:
        """Training steps so far."""
        return self.counters.rollouts_done

    @property
    def updates_done(self) -> int:
        """Optimizer steps so far."""
        return self.counters.updates_done

    @property
    def micro_batch_size(self) -> int | Literal["auto"] | None:
        """Branches in one backward pass: `auto` until a number is chosen for it; None for all."""
        return self.micro_batches.asked

    @property
    def parallel(self) -> Parallel:
        """How the Trainer's processes work together; one process without a Trainer."""
        strategy = None if self._trainer is None else self._trainer.strategy
        if self._parallel is None or self._parallel.strategy is not strategy:
            self._parallel = parallel_of(self._trainer)
        return self._parallel

    # --- one batch: prompts -> rollout -> scores -> credit -> update --------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Train on one stage: a rollout, whose branches the processes share, and `updates_per_rollout` optimizer steps on it."""
        stage, prompts = self.grpo.stage(self.rollouts_done), self._prompts_of_all(batch)
        check_scales(prompts, self.policy)
        share = share_of_branches(len(prompts), stage, self.grpo.mask_source, self.parallel)
        self.micro_batches.choose(prompts, self.trainer, self.parallel)
        stopwatch = Stopwatch(self.observer)
        rollout, scores = self._sample(prompts, stage, share, stopwatch)
        credit = self.grpo.assign(rollout, scores)
        self.observers.credited(credit)
        with stopwatch("update"), explain_out_of_memory("micro_batch_size", size := self.micro_batches.number):
            metrics = self.updater.update(self, self.parallel, rollout, credit, share.real, stopwatch, micro_batch_size=size)
        metrics |= step_metrics(self.grpo, rollout, scores, credit, stopwatch.seconds, self.updater.skipped, self.counters)
        metrics |= self._step_log.variance.metrics(stage, credit, stopwatch.seconds)
        self._step_log.log(self, stage, metrics | self.micro_batches.metrics, len(prompts))
        self.counters.rollouts_done += 1
        self.updater.stop_if_steps_keep_failing()  # last, so that a complete step is saved

    def _prompts_of_all(self, batch: Any) -> list[Prompt]:
        counters = self.counters if self._trainer is None or self._trainer.training else RunCounters()  # of a loader of evaluation
        return prompts_of_all(batch, self.parallel, batches_of(self._trainer, self.guards.equal_batches), counters, self.policy)

    def _sample(self, prompts: Sequence[Prompt], stage: Stage, share: Share, stopwatch: Stopwatch) -> tuple[Rollout, BranchScores]:
        """Sample this process's part of a rollout, and score all of it together with the others."""
        keys = prompt_keys(self.seed, self.rollouts_done, prompts, self.policy.device)
        parallel, at_once, seen = self.parallel, self.images_at_once, self.observers.scored
        explained = partial(explain_out_of_memory, "images_at_once", at_once)
        return sample_on_all(self.grpo, self.policy, prompts, stage, keys, share, parallel, at_once, stopwatch, explained, seen)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient, or drop it when it is not finite."""
        self.updater.before_optimizer_step(self.trainer, self.parallel, optimizer)

    def configure_optimizers(self) -> Any:
        """Make the optimizer of all that requires a gradient, and its schedule, which is stepped once per rollout."""
        optimizer = self.optimizer_factory([p for p in self.policy.parameters() if p.requires_grad])
        return optimizer if self.lr_scheduler_factory is None else ([optimizer], [self.lr_scheduler_factory(optimizer)])

    # --- images at fixed noise ----------------------------------------------------------------------------------------------

    def forward(self, prompts: Any) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt (of any form that a batch may have), RGB in [0, 1], at the fixed keys of evaluation.

        This process samples all of them; under a strategy that shards weights, every process must call this.
        """
        return self.evaluator.images(as_prompts(prompts), self.parallel)

    def evaluate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> Evaluation:
        """Sample and score one image per prompt at fixed keys, so that two calls differ by the policy alone.

        Several processes share the work: each must call this, and each gets the complete evaluation.
        """
        return self.evaluator.evaluate(prompts, self.parallel, sampling)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the scores of one batch, and the judges' scores."""
        self.evaluator.validate(self._prompts_of_all(batch), self.parallel)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Collect the scores of one batch, sampled and greedy, and the judges' scores of both."""
        self.evaluator.test(self._prompts_of_all(batch), self.parallel)

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt of the batch.

        Raises:
            RunStoppedError: where weights are sharded, but Lightning gives the processes different numbers of batches.
        """
        same_everywhere = isinstance(self.trainer.predict_dataloaders, EvaluationBatches)
        return self.evaluator.predict(as_prompts(batch), self.parallel, same_everywhere)

    def on_validation_epoch_end(self) -> None:
        """Log `val/reward`, `val/word_accuracy`, `val/ned` and `val/judges/...`; of a test `test/...` and `test/greedy/...`."""
        self.log_dict(self.evaluator.metrics(self.trainer.sanity_checking), prog_bar=True, sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def check_prompts(self, prompts: Sequence[Prompt], evaluated: Sequence[Prompt] | None = None) -> None:
        """Check, before training, that the policy can sample these prompts, the rewards score them, and judges those `evaluated`.

        Raises:
            ValueError: names the prompt and the reason.
        """
        check_prompts(prompts, self.policy, self.rewards, self.guards)
        check_judged(prompts if evaluated is None else evaluated, self.judges)

    # --- a Trainer's hooks --------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        """Add the comparison of the processes, which runs before a checkpoint is saved.

        This is the first hook that Lightning calls, and so it checks the Trainer's settings too.

        Raises:
            MisconfigurationException: on a setting that does not work with manual optimization; names what to use instead.
        """
        silence_expected_warnings()
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_trainer(self.trainer)
        attached = any(isinstance(callback, RankConsistency) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if attached else [RankConsistency(self, self.guards.check_ranks_every_n_steps)]

    def setup(self, stage: str) -> None:
        """Check the options with the strategy; record the policy's shapes and fingerprint before a strategy shards it."""
        _ = self.frozen.fingerprint
        if stage == "fit":
            self.parallel.check_optimization(self.updater.max_grad_norm)
            if self.average is not None:
                self.parallel.check_average()
            self.micro_batches.outline(self.trainer)

    def configure_model(self) -> None:
        """Shard the policy, if the strategy shards."""
        self.parallel.configure(self.policy)
        if self.average is not None:
            self.average.follow(self.policy)

    def on_fit_start(self) -> None:
        """Move the reference to the policy's device: Lightning does not, since it is outside the module tree.

        Raises:
            RuntimeError: with an adapter in half precision.
        """
        check_training(self.trainer, self.rewards, self.judges)
        check_dtype(self.trainer, self.policy, self.parallel.fp32_masters)
        if isinstance(self.reference, VARPolicy):
            self.parallel.place_reference(self.reference, self.policy)

    # --- checkpoints --------------------------------------------------------------------------------------------------------

    def saved_tensors(self) -> dict[str, Tensor]:
        """The weights that a checkpoint holds: all of them, or those of the adapter alone where there is one."""
        return saved_tensors(self.state_dict(), self.policy)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed run needs beside trained weights and optimizer: counters, and a fingerprint of the frozen weights."""
        counters, ranks = self.counters.state_dict(), 1 if self._trainer is None else self.trainer.world_size
        run = RunState(counters, self.seed, self.micro_batches.number, ranks, self.ema_decay, self.evaluator.standards)
        write_state(checkpoint, run, self.frozen)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters; complete the weights where the checkpoint holds an adapter alone.

        Raises:
            ValueError: when the frozen weights differ from those that the run began with.
        """
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        saved = read_state(checkpoint, self.state_dict(), self.frozen, self.ema_decay, fitting)
        self.counters.load_state_dict(saved)
        self.evaluator.standards = dict(saved.get("standards") or {})
        self.micro_batches.resume(saved, self._trainer)

    def _set_hparams(self, hp: Any) -> None:
        """Keep plain values; called by Lightning's `save_hyperparameters`."""
        super()._set_hparams(plain_arguments(self._to_hparams_dict(hp), type(self), VARGRPO))

    @_restricted_classmethod  # as in Lightning: on an instance it would load another module and change nothing
    def load_from_checkpoint(cls, checkpoint_path: Any, *arguments: Any, **named: Any) -> Self:  # noqa: N805
        """Load a module as Lightning does, also from the folder of a sharded run and from checkpoints of earlier versions.

        Raises:
            SpecError: when an argument was an object, which a checkpoint does not hold, and is not given again.
            ValueError: for a folder that is no checkpoint.
        """
        check_overrides(cls, named)
        loaded: Self = super().load_from_checkpoint(readable_checkpoint(checkpoint_path), *arguments, **named)
        return loaded

    def describe(self) -> dict[str, object]:
        """The values that must be equal on all processes, by name."""
        settings = ("seed", "eval_seed", "micro_batch_size", "images_at_once", "ema_decay", "guards")
        described = {name: getattr(self, name) for name in settings}
        described |= {name: getattr(self.updater, name) for name in ("updates_per_rollout", "max_grad_norm")}
        return {**self.counters.state_dict(), **described, **self.grpo.describe(self.rollouts_done)}
