"""VARGRPO: the LightningModule that aligns a next-scale generator with a reward."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from varrl_lightning.algorithms.stages import cycle, spelled_out
from varrl_lightning.configuration.specs import Specified, built
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.grpo.credit import BranchScores, Credit, CreditOptions, assign_credit, scores_by_branch
from varrl_lightning.grpo.diagnostics import credit_metrics, reward_metrics
from varrl_lightning.grpo.objective import Objective
from varrl_lightning.grpo.rollout import Share, prompt_keys, sample_tree
from varrl_lightning.memory import Simulation, chosen_micro_batch, explain_out_of_memory, outlined
from varrl_lightning.policies.averaging import WeightAverage
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, has_adapter, is_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.registry import MASK_SOURCES, REWARDS, build
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.strategies.consistency import RankConsistency
from varrl_lightning.training.trainer_checks import Guest, check_schedules
from varrl_lightning.training.updater import LRSchedulerFactory, OptimizerFactory, Updating, paper_optimizer
from varrl_lightning.types import Prompt, Rollout, Sampling, SamplingChanges, Score, Scores, Stage

PPPS = ("prefix", "prefix", "prefix", "suffix")


class VARGRPO(Guest, Updating):
    """GRPO on next-scale generators with a middle return, per-scale weights and propagated masks (arXiv 2601.02256).

    A training step is one stage of the cycle: draw a tree of images, score them, turn scores into weights on tokens, update.

    In a Trainer of one's own: batches are whatever `batches.as_prompts` reads; under several processes, different batches of theirs
    are one update together. A checkpoint restores weights, optimizer, schedule and counters, and the noise of a rollout follows
    from the counters; where a DataLoader goes on is its own affair: exactly, if it has `state_dict` and `load_state_dict`, or at
    the end of an epoch, if its order does not depend on a generator's state; any other begins its epoch again.

    Arguments may be plain specs, as in a configuration: `{"class_path": ..., "init_args": ...}` for an object, a mapping of its
    fields for a dataclass. These are kept in checkpoints, so that `load_from_checkpoint(path)` needs nothing more; what was given
    as an object has to be given to it again. It imports what the checkpoint names: load those of people you trust.

    Args:
        policy: the generator; everything in its `transformer` that requires a gradient is trained.
        reference: anchor of the KL; when None and a KL is asked for, a frozen copy of the policy as given, or the policy with its
            adapter off.
        reward: a plugin's name, a class path, `{class_path, init_args}`, an object, or several: `{name: weight}`.
        mask_source: where images were judged, a plugin's name or as above; `full` masks nothing.
        m: the middle step, a number of scales or a resolution such as `256px`; T means plain GRPO.
        group_size: A, branches per prompt, >= 2.
        num_continuations: K, continuations of a branch in the prefix stage, >= 1.
        eta: temperature of the middle return (Eq. 10), > 0.
        alpha: decay exponent of k_t = 1 / (h_t w_t)^alpha (Eq. 9).
        alternation: the cycle of stages, by name; `prefix*300` repeats.
        suffix_starts: different s_m per prompt in the suffix stage; divides group_size.
        first_scale: `shared` draws r_1 once per prompt and leaves it untrained: the paper's indices.
        stages: the whole cycle spelled out, in place of m and alternation.
        combine: several rewards: `weighted_sum` (V of the sum) or `standardised_sum` (sum of each V standardised in its group).
        kl_coef: coefficient of the KL to the reference; 0 needs no reference.
        kl_estimator: `exact`, or the sampled `k1`, `k2`, `k3`.
        kl_mask: whether the propagated mask applies to the KL.
        kl_old_coef: coefficient of the KL to the rollout's policy (Eq. 5: eta); acts only with several updates.
        clip_low: the ratio is clipped below at 1 - clip_low.
        clip_high: the ratio is clipped above at 1 + clip_high.
        ratio: of which probability: `token`, `scale_mean`, `scale_sum`, or `bit` for bitwise families.
        updates_per_rollout: optimizer steps on one rollout, >= 1.
        advantage_scale: group-centred returns are divided by the std of the `group`, of the `batch`, or not (`none`).
        normaliser: of the weights k_t * mask: within a `branch`, over the `batch`, `constant`, or `none`.
        normaliser_constant: with `constant`.
        mask_propagation: `chained` through each next finer scale, or `direct` from the pixels.
        mask_missing: a branch without regions takes `group_union` or `ones`.
        mask_outside: weight of tokens outside the mask, in [0, 1].
        mask_dilation: pixels by which the pixel mask is widened.
        mask_threshold: a pixel is on above this, in [0, 1).
        score: which distribution is trained: `model`, `sampler`, `guided`, `corrected`, or a `Score`.
        sampling: how rollouts and evaluations are drawn: a whole `Sampling`, or changes to the policy's own default.
        optimizer: from parameters to an optimizer; the paper's AdamW when None.
        lr_scheduler: from an optimizer to a schedule, stepped once per rollout.
        max_grad_norm: gradients are clipped to this norm; None for no clipping.
        micro_batch_size: branches in one backward pass; None for all; `auto` for as many as the device's memory holds with a tenth
            to spare, foretold when training starts. It does not change what is computed.
        images_at_once: images drawn and decoded at one time, at least the K of one branch; None for all (64 in evaluation). Rewards
            score one part while the next is drawn.
        max_bad_steps: this many non-finite steps in a row stop the run.
        seed: of all noise.
        eval_seed: of validation, test and before/after pictures.
        judge: a second reader for `test`, a reward as above that training never sees; `auto` is Tesseract where it is installed and
            the OCR reward is in use; None for none.
        ema_decay: validation, test, predict and all pictures use an exponential moving average of the trained weights with this
            decay, in (0, 1), for example 0.99; None for the weights themselves. See `WeightAverage`.
        agree_every_n_steps: several processes compare what they should hold alike (weights, counters, configuration, prompts) at
            the start and again every this many training steps; 0 for the start alone.

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
        group_size: int = 16,
        num_continuations: int = 2,
        eta: float = 1.0,
        alpha: float = 0.6,
        alternation: Sequence[str] = PPPS,
        suffix_starts: int = 1,
        first_scale: Literal["trained", "shared"] = "trained",
        stages: Sequence[Specified[Stage]] | None = None,
        combine: Literal["weighted_sum", "standardised_sum"] = "weighted_sum",
        kl_coef: float = 0.0,
        kl_estimator: Literal["exact", "k1", "k2", "k3"] = "exact",
        kl_mask: Literal["unmasked", "masked"] = "unmasked",
        kl_old_coef: float = 0.0,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        ratio: Literal["token", "scale_mean", "scale_sum", "bit"] = "token",
        updates_per_rollout: int = 1,
        advantage_scale: Literal["group", "batch", "none"] = "group",
        normaliser: Literal["branch", "batch", "constant", "none"] = "branch",
        normaliser_constant: float | None = None,
        mask_propagation: Literal["chained", "direct"] = "chained",
        mask_missing: Literal["group_union", "ones"] = "group_union",
        mask_outside: float = 0.0,
        mask_dilation: int = 0,
        mask_threshold: float = 0.5,
        score: str | Specified[Score] = "model",
        sampling: Specified[SamplingChanges | Sampling] | None = None,
        optimizer: Specified[OptimizerFactory] | None = None,
        lr_scheduler: Specified[LRSchedulerFactory] | None = None,
        max_grad_norm: float | None = 1.0,
        micro_batch_size: int | Literal["auto"] | None = None,
        images_at_once: int | None = None,
        max_bad_steps: int = 5,
        seed: int = 0,
        eval_seed: int = 0,
        judge: Any = "auto",
        ema_decay: float | None = None,
        agree_every_n_steps: int = 50,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        policy, reference, sampling, score, stages = _built(policy, reference, sampling, score, stages)
        _check(eta > 0 and math.isfinite(eta), f"eta must be > 0 and finite, got {eta}")
        _check(alpha >= 0 and math.isfinite(alpha), f"alpha must be >= 0 and finite, got {alpha}")
        _check(group_size >= 2, f"group_size must be at least 2, to have something to compare, got {group_size}")
        _check(num_continuations >= 1, f"num_continuations (K) must be at least 1, got {num_continuations}")
        _check(updates_per_rollout >= 1, f"updates_per_rollout must be at least 1, got {updates_per_rollout}")
        _check(max_bad_steps >= 1, f"max_bad_steps must be at least 1, got {max_bad_steps}")
        _check(max_grad_norm is None or max_grad_norm > 0, f"max_grad_norm must be > 0, got {max_grad_norm}")
        for name, size in (("micro_batch_size", micro_batch_size), ("images_at_once", images_at_once)):
            automatic = name == "micro_batch_size" and size == "auto"
            _check(automatic or size is None or (isinstance(size, int) and size >= 1), f"{name} must be at least 1, got {size!r}")
        _check(ratio != "bit" or policy.bits is not None, "ratio 'bit' is for bitwise families; this policy's tokens have no bits")
        self.policy = policy
        self.rewards = WeightedRewards.from_spec(reward)
        self.judge = _installed_judge(self.rewards) if judge == "auto" else judge and build(REWARDS, judge)
        self.mask_source = build(MASK_SOURCES, mask_source)
        if hasattr(self.mask_source, "use_rewards"):
            self.mask_source.use_rewards({name: term.reward for name, term in self.rewards.terms.items()})
        self.eta, self.alpha = eta, alpha
        T = len(policy.schedule())
        if stages is None:
            m = policy.schedule().resolve_m(m)
            if m == T:
                warnings.warn(
                    f"m = {m} is the last scale: this is plain GRPO over all scales, without a middle return; "
                    f"num_continuations = {num_continuations} and the alternation are ignored",
                    stacklevel=2,
                )
            self.cycle = cycle(T, m, group_size, num_continuations, alternation, starts=suffix_starts, first_scale=first_scale)
        else:
            self.cycle = spelled_out(stages, T)
        self.updates_per_rollout = updates_per_rollout
        self.credit_options = CreditOptions(
            eta=eta,
            alpha=alpha,
            combine=combine,
            advantage_scale=advantage_scale,
            normaliser=normaliser,
            normaliser_constant=normaliser_constant,
            mask_propagation=mask_propagation,
            mask_missing=mask_missing,
            mask_outside=mask_outside,
            mask_dilation=mask_dilation,
            mask_threshold=mask_threshold,
            kl_mask=kl_mask,
        )
        self._scales = T
        self.sampling = _sampling(sampling, policy.default_sampling)
        self.sampling.check(self._scales)
        if isinstance(score, Score) and score.sampling not in (Sampling(), self.sampling):
            raise ValueError(f"score.sampling is the module's own sampling: set `sampling` in its place, got {score.sampling}")
        self.score = replace(score, sampling=self.sampling) if isinstance(score, Score) else Score(score, self.sampling)  # type: ignore[arg-type]
        self.objective = Objective(
            score=self.score,
            clip_low=clip_low,
            clip_high=clip_high,
            ratio=ratio,
            kl_coef=kl_coef,
            kl_estimator=kl_estimator,
            kl_old_coef=kl_old_coef,
        )
        self.optimizer_factory = built("optimizer", OptimizerFactory, optimizer) or paper_optimizer
        self.lr_scheduler_factory = built("lr_scheduler", LRSchedulerFactory, lr_scheduler)
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size, self.images_at_once = micro_batch_size, images_at_once
        self.max_bad_steps = max_bad_steps
        self.seed, self.eval_seed = seed, eval_seed
        # A tuple keeps the frozen reference out of the module tree: no state dict, no strategy, no optimizer.
        self._reference: tuple[Anchor | None] = (reference or _frozen(policy),) if kl_coef > 0 else (None,)
        self.ema_decay = ema_decay
        self.average = None if ema_decay is None else WeightAverage(self.policy, ema_decay)
        self._agreement = RankConsistency(agree_every_n_steps)
        self._simulation: Simulation | None = None
        self._logged_names: set[str] = set()
        self._frozen_digest = self._digest_of_frozen()

    @property
    def stage(self) -> Stage:
        """The stage of the next rollout."""
        return self.cycle[self.rollouts_done % len(self.cycle)]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Say before any training whether the policy can draw these prompts and the rewards can score them.

        Raises:
            ValueError: names the prompt and the reason.
        """
        self.rewards.check_prompts(prompts)
        self._check_scales(prompts)
        for size in dict.fromkeys(p.size for p in prompts):
            self.policy.encode_prompts([p for p in prompts if p.size == size])

    def _check_scales(self, prompts: Sequence[Prompt]) -> None:
        """The stages count scales: all images must have as many as the policy's default size."""
        for prompt in prompts:
            found = len(self.policy.schedule(prompt.size))
            if found != self._scales:
                default = self.policy.schedule().image_size
                raise ValueError(
                    f"prompt {prompt.id!r} asks for {prompt.size} pixels, which are drawn in {found} scales, but the stages are "
                    f"made for the {self._scales} of {default}; train each resolution by itself, as the policy's default size"
                )

    # --- one batch: prompts -> rollout -> scores -> credit -> update -------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One stage: a rollout and `updates_per_rollout` optimizer steps on it; the branches are shared out over the processes."""
        prompts = self._prompts_of_all(batch)
        self._check_scales(prompts)
        share = self._share(prompts)
        if self.micro_batch_size == "auto":
            assert self._simulation is not None
            self.micro_batch_size = chosen_micro_batch(self, self._simulation, prompts)
            self._simulation = None
        seconds: dict[str, float] = {}
        with self.parallel.sampling([self.policy]):
            rollout, parts = self.parallel.collect(lambda: self._draw(prompts, share, seconds))
        judged = BranchScores.join(parts, len(prompts) * self.stage.branches).to(self.policy.device)
        self._stop_if_nothing_was_scored(judged)
        credit = self.credit_of(rollout, judged)
        with _timed(seconds, "update"), explain_out_of_memory("micro_batch_size", self._micro_batch_size):
            tokens = self._update(rollout, credit, share.real)
        metrics = reward_metrics(judged, credit, self.eta)
        metrics |= credit_metrics(rollout.stage, rollout.schedule, credit, self.alpha) | tokens
        self._log_step(rollout, len(judged), metrics, seconds)
        self.rollouts_done += 1
        self._stop_if_steps_keep_failing()  # last, so that the state that is saved is that of a whole step

    def _share(self, prompts: Sequence[Prompt]) -> Share:
        """This process's branches of a batch."""
        each = self.stage.branches
        share = Share.of(len(prompts) * each, self.parallel.rank, self.parallel.world_size)
        if getattr(self.mask_source, "whole_groups", False) and len(share.items) % each:
            raise ValueError(
                f"mask source {type(self.mask_source).__name__} compares the images of a prompt, but the groups of {len(prompts)} "
                f"prompts are split over {self.parallel.world_size} processes. Make the prompts per update a multiple of that."
            )
        return share

    def _draw(self, prompts: Sequence[Prompt], share: Share, seconds: dict[str, float]) -> tuple[Rollout, BranchScores]:
        """This process's part of a rollout, and what rewards and mask source say of it."""
        keys = prompt_keys(self.seed, self.rollouts_done, prompts, self.policy.device)
        rollout, scores = self.draw_scored(prompts, self.stage, keys, seconds, share.items)
        return rollout, self.judged(rollout, scores)

    def draw_scored(
        self,
        prompts: Sequence[Prompt],
        stage: Stage,
        keys: Int[Tensor, " P"],
        seconds: dict[str, float],
        branches: Sequence[int] | None = None,
    ) -> tuple[Rollout, dict[str, Scores]]:
        """Draw a tree, and what each reward says of its images, by name.

        Args:
            seconds: is told how long the parts took.
            branches: as in `sample_tree`.
        """
        with BackgroundScoring(self.rewards) as scoring:
            with _timed(seconds, "rollout"), explain_out_of_memory("images_at_once", self.images_at_once):
                rollout = sample_tree(self.policy, prompts, stage, self.sampling, keys, self.images_at_once, scoring.add, branches)
            with _timed(seconds, "reward"):
                scores = scoring.result()
        seconds["scoring"] = scoring.seconds
        return rollout, scores

    def judged(self, rollout: Rollout, scores: Mapping[str, Scores]) -> BranchScores:
        """The scores by branch, and where the mask source says that the images were judged."""
        total = self.rewards.total(scores)
        # Without any score there is nothing to ask the mask source about; such branches take their group's mask, and do not count.
        some = bool(total.usable.any())
        pixel_mask = self.mask_source(rollout, total, self.policy) if some else torch.zeros_like(rollout.images[:, 0])
        return scores_by_branch(rollout, scores, pixel_mask, self.credit_options)

    def credit_of(self, rollout: Rollout, judged: BranchScores) -> Credit:
        """The weights that the loss gives to the tokens of all branches of a batch."""
        weights = {name: term.weight for name, term in self.rewards.terms.items()}
        return assign_credit(judged, rollout.schedule, rollout.stage, weights, self.credit_options)

    def _stop_if_nothing_was_scored(self, judged: BranchScores) -> None:
        if not any(bool(usable.any()) for usable in judged.usable.values()):
            raise RunStoppedError(
                f"no reward gave a score to any of the {next(iter(judged.values.values())).numel()} images of rollout "
                f"{self.rollouts_done} ({', '.join(judged.values)}); the state before it is saved. Check the reward (doctor runs "
                "it), then resume with --ckpt_path."
            )

    def _log_step(self, rollout: Rollout, branches: int, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        stage, schedule = rollout.stage, rollout.schedule
        metrics["reward_seconds"] = seconds.pop("scoring")
        total = sum(seconds.values())
        trained = branches * schedule.span(stage.start, stage.stop)
        metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
        metrics |= {
            "step_time": total,
            "images_per_second": branches * stage.continuations / seconds["rollout"],
            "tokens_per_second": trained / seconds["update"],
            "num_tokens": float(trained),
            "bad_steps": float(self.bad_steps),
            "stage": float(self.cycle.index(stage)),
        }
        size = len(rollout.prompts)
        shown = {"reward": metrics.pop("reward")}
        accuracy = next((name for name in metrics if name.endswith("/word_accuracy")), None)
        if accuracy is not None:
            shown["word_accuracy"] = metrics[accuracy]
        self.log_dict(shown, prog_bar=True, batch_size=size)
        whole = {name: value for name, value in (shown | metrics).items() if "/scale_" not in name}
        metrics |= {f"{stage.name}/{name}": value for name, value in whole.items()}
        # Lightning repeats the last value of a name that a step does not log; another stage's numbers are not this one's.
        absent = dict.fromkeys(self._logged_names - metrics.keys(), math.nan)
        self._logged_names |= metrics.keys()
        self.log_dict(metrics | absent, batch_size=size)

    # --- Lightning ----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Hand on to the strategy what it does itself; silence a warning of Lightning's about what is meant to be so."""
        if stage == "fit":
            self.parallel.check_optimization(self.max_grad_norm)
            if self.average is not None:
                self.parallel.check_average()
            self._agreement.before_sharding(self, self.parallel)
            if self.micro_batch_size == "auto":
                self._simulation = outlined(self)
        # A policy stays in evaluation mode for good, so that nothing drops out.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def configure_model(self) -> None:
        """Shard the policy, under a strategy that does."""
        self.parallel.configure(self.policy)
        if self.average is not None:
            self.average.follow(self.policy)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before the first step: stop where the processes hold different things.

        Raises:
            RanksDisagreeError: on all of them; names what differs.
        """
        self._agreement.before_step(self, self.trainer, self.parallel)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The same after every `agree_every_n_steps`."""
        self._agreement.after_step(self, self.trainer, self.parallel)

    def on_fit_start(self) -> None:
        """Bring the reference to where the policy is: outside the module tree, nobody else does.

        Raises:
            RuntimeError: with an adapter in half precision.
        """
        check_schedules(self.trainer)
        rounded = not self.parallel.fp32_masters
        if rounded and any(is_adapter(name) and p.dtype != torch.float32 for name, p in self.policy.named_parameters()):
            raise RuntimeError(
                f"precision {self.trainer.precision!r} rounds the adapter's weights away, which train in float32; use bf16-mixed, "
                "and dtype: bfloat16 of the policy's from_pretrained to halve its base"
            )
        if isinstance(self.reference, VARPolicy):
            self.parallel.place_reference(self.reference, self.policy)
        if rounded and any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in self.policy.parameters()):
            warnings.warn(
                f"the trained weights are {weight_dtype(self.policy)}: a step that changes a weight by less than its last digit "
                "(1 in 256 of it for bfloat16) changes nothing. Use precision bf16-mixed with float32 weights, or add_lora",
                stacklevel=2,
            )


def _installed_judge(rewards: WeightedRewards) -> Reward | None:
    """Tesseract beside the OCR reward, where it is installed; without thresholds, since a miss is a miss."""
    reader = next((term.reward for term in rewards.terms.values() if isinstance(term.reward, OCRReward)), None)
    if reader is None or why_not_installed() is not None:
        return None
    return TesseractReward(reader.engine.detect, min_confidence=0, min_length=1, without_words="skip")


def _built(
    policy: Any, reference: Any, sampling: Any, score: Any, stages: Any
) -> tuple[VARPolicy, VARPolicy | None, SamplingChanges | Sampling | None, str | Score, Sequence[Stage] | None]:
    """What plain specs name."""
    policy, reference = built("policy", VARPolicy, policy), built("reference", VARPolicy, reference)
    stages = None if stages is None else [built("stages", Stage, stage) for stage in stages]
    return policy, reference, built("sampling", SamplingChanges, sampling), built("score", Score, score), stages


def _frozen(policy: VARPolicy) -> Anchor:
    return AdapterOff(policy) if has_adapter(policy) else policy.frozen_copy()


def weight_dtype(policy: VARPolicy) -> str:
    """The dtype of the trained weights, by its short name."""
    return str(next(p for p in policy.parameters() if p.requires_grad).dtype).removeprefix("torch.")


def _sampling(asked: SamplingChanges | Sampling | None, default: Sampling) -> Sampling:
    if asked is None:
        return default
    return asked.over(default) if isinstance(asked, SamplingChanges) else asked


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start
