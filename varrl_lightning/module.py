"""VARGRPO: the LightningModule that aligns a next-scale generator with a reward."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from varrl_lightning.algorithms.stages import cycle
from varrl_lightning.credit import Credit, CreditOptions, assign_credit
from varrl_lightning.diagnostics import TokenMeter, credit_metrics, reward_metrics
from varrl_lightning.evaluation import Evaluation, draw, evaluate
from varrl_lightning.lora import AdapterOff, adapter_settings, base_tensors, has_adapter, is_adapter
from varrl_lightning.objective import Objective, detached, flat
from varrl_lightning.policies.base import Anchor, VARPolicy
from varrl_lightning.registry import MASK_SOURCES, REWARDS, build
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.base import Reward, score_images
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.rollout import prompt_keys, sample_tree
from varrl_lightning.types import LogProbs, Prompt, Rollout, Sampling, SamplingChanges, Score, Scores, Stage, as_prompts
from varrl_lightning.weights import differences

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
LRSchedulerFactory = Callable[[Optimizer], LRScheduler]
DIGESTED = 4096
"""Entries of a tensor that tell it from another."""
PPPS = ("prefix", "prefix", "prefix", "suffix")


class RunStoppedError(RuntimeError):
    """Training cannot go on; the state before the failing step is intact and is saved."""


def paper_optimizer(params: Iterable[Any]) -> Optimizer:
    """AdamW as in the paper: betas (.9, .95), weight decay .05, and the learning rate 1e-6 of a full fine-tuning."""
    return AdamW(params, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.05)


class VARGRPO(L.LightningModule):
    """GRPO on next-scale generators with a middle return, per-scale weights and propagated masks (arXiv 2601.02256).

    A training step is one stage of the cycle: draw a tree of images, score them, turn scores into weights on tokens, update.

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
        micro_batch_size: branches in one backward pass; None for all.
        images_at_once: images drawn and decoded at one time, at least the K of one branch; None for all (64 in evaluation). Rewards
            score one part while the next is drawn.
        max_bad_steps: this many non-finite steps in a row stop the run.
        seed: of all noise.
        eval_seed: of validation, test and before/after pictures.
        judge: a second reader for `test`, a reward as above that training never sees; `auto` is Tesseract where it is installed and
            the OCR reward is in use; None for none.

    Raises:
        ValueError: on a value out of its range.
    """

    def __init__(
        self,
        policy: VARPolicy,
        reference: VARPolicy | None = None,
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
        stages: Sequence[Stage] | None = None,
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
        score: str | Score = "model",
        sampling: SamplingChanges | Sampling | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: LRSchedulerFactory | None = None,
        max_grad_norm: float | None = 1.0,
        micro_batch_size: int | None = None,
        images_at_once: int | None = None,
        max_bad_steps: int = 5,
        seed: int = 0,
        eval_seed: int = 0,
        judge: Any = "auto",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        _check(eta > 0 and math.isfinite(eta), f"eta must be > 0 and finite, got {eta}")
        _check(alpha >= 0 and math.isfinite(alpha), f"alpha must be >= 0 and finite, got {alpha}")
        _check(group_size >= 2, f"group_size must be at least 2, to have something to compare, got {group_size}")
        _check(num_continuations >= 1, f"num_continuations (K) must be at least 1, got {num_continuations}")
        _check(updates_per_rollout >= 1, f"updates_per_rollout must be at least 1, got {updates_per_rollout}")
        _check(max_bad_steps >= 1, f"max_bad_steps must be at least 1, got {max_bad_steps}")
        _check(max_grad_norm is None or max_grad_norm > 0, f"max_grad_norm must be > 0, got {max_grad_norm}")
        for name, size in (("micro_batch_size", micro_batch_size), ("images_at_once", images_at_once)):
            _check(size is None or size >= 1, f"{name} must be at least 1, got {size}")
        _check(ratio != "bit" or policy.bits is not None, "ratio 'bit' is for bitwise families; this policy's tokens have no bits")
        self.policy = policy
        self.rewards = WeightedRewards.from_spec(reward)
        self.judge = _installed_judge(self.rewards) if judge == "auto" else judge and build(REWARDS, judge)
        self.mask_source = build(MASK_SOURCES, mask_source)
        if hasattr(self.mask_source, "use_rewards"):
            self.mask_source.use_rewards({name: term.reward for name, term in self.rewards.terms.items()})
        self.eta, self.alpha = eta, alpha
        self.cycle = self._cycle(m, group_size, num_continuations, alternation, suffix_starts, first_scale, stages)
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
        self._scales = len(policy.schedule())
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
        self.optimizer_factory = optimizer or paper_optimizer
        self.lr_scheduler_factory = lr_scheduler
        self.max_grad_norm = max_grad_norm
        self.micro_batch_size, self.images_at_once = micro_batch_size, images_at_once
        self.max_bad_steps = max_bad_steps
        self.seed, self.eval_seed = seed, eval_seed
        self.rollouts_done = 0
        self.updates_done = 0
        self.bad_steps = 0
        self.bad_steps_in_a_row = 0
        # A tuple keeps the frozen reference out of the module tree: no state dict, no strategy, no optimizer.
        self._reference = (reference or _frozen(policy),) if kl_coef > 0 else (None,)
        self._loss_is_finite = True
        self._grad_norm = float("nan")
        self._logged_names: set[str] = set()
        self._batch_scores: dict[str, list[Evaluation]] = {}
        self.collected: dict[str, Evaluation] = {}
        self._frozen_digest = self._digest_of_frozen()

    def _cycle(
        self,
        m: int | str,
        group_size: int,
        num_continuations: int,
        alternation: Sequence[str],
        suffix_starts: int,
        first_scale: Literal["trained", "shared"],
        stages: Sequence[Stage] | None,
    ) -> tuple[Stage, ...]:
        schedule = self.policy.schedule()
        if stages is not None:
            _check(len(stages) > 0, "stages must hold at least one stage, got none")
            for stage in stages:
                last = stage.stop == len(schedule)
                _check(stage.stop <= len(schedule), f"{stage} ends after the last of {len(schedule)} scales")
                _check(not last or stage.continuations == 1, f"{stage} ends with the last scale, where continuations is 1")
                _check(stage.start > 0 or stage.starts == 1, f"{stage} starts with nothing drawn, where starts is 1")
            return tuple(stages)
        m = schedule.resolve_m(m)
        if m == len(schedule):
            warnings.warn(
                f"m = {m} is the last scale: this is plain GRPO over all scales, without a middle return; "
                f"num_continuations = {num_continuations} and the alternation are ignored",
                stacklevel=3,
            )
        return cycle(len(schedule), m, group_size, num_continuations, alternation, starts=suffix_starts, first_scale=first_scale)

    @property
    def stage(self) -> Stage:
        """The stage of the next rollout."""
        return self.cycle[self.rollouts_done % len(self.cycle)]

    @property
    def reference(self) -> Anchor | None:
        """The frozen anchor of the KL, if there is one."""
        return self._reference[0]

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

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """One stage: a rollout and `updates_per_rollout` optimizer steps on it."""
        prompts = as_prompts(batch)
        self._check_scales(prompts)
        seconds: dict[str, float] = {}
        with BackgroundScoring(self.rewards) as scoring:
            with _timed(seconds, "rollout"):
                keys = prompt_keys(self.seed, self.rollouts_done, prompts, self.policy.device)
                rollout = sample_tree(self.policy, prompts, self.stage, self.sampling, keys, self.images_at_once, scoring.add)
            with _timed(seconds, "reward"):
                scores = scoring.result()
        self._stop_if_nothing_was_scored(scores)
        pixel_mask = self.mask_source(rollout, self.rewards.total(scores), self.policy)
        weights = {name: term.weight for name, term in self.rewards.terms.items()}
        credit = assign_credit(rollout, scores, weights, pixel_mask, self.credit_options, self._sum_over_ranks)
        with _timed(seconds, "update"):
            tokens = self._update(rollout, credit)
        metrics = reward_metrics(rollout, scores, credit, self.eta) | credit_metrics(rollout, credit, self.alpha) | tokens
        self._log_step(rollout, metrics | {"reward_seconds": scoring.seconds}, seconds)
        self.rollouts_done += 1
        self._stop_if_steps_keep_failing()  # last, so that the state that is saved is that of a whole step

    def _stop_if_nothing_was_scored(self, scores: Mapping[str, Scores]) -> None:
        if not bool(self.rewards.total(scores).usable.any()):
            raise RunStoppedError(
                f"no reward gave a score to any of the {len(next(iter(scores.values())).values)} images of rollout "
                f"{self.rollouts_done} ({', '.join(scores)}); the state before it is saved. Check the reward (doctor runs it), "
                "then resume with --ckpt_path."
            )

    def _update(self, rollout: Rollout, credit: Credit) -> dict[str, float]:
        """All optimizer steps on one rollout; returns what the tokens were like in the last one."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        old: dict[int, LogProbs] = {}
        for _ in range(self.updates_per_rollout):
            stage = rollout.stage
            meter = TokenMeter(stage.start, rollout.schedule.lengths[stage.start : stage.stop])
            optimizer.zero_grad()
            total = torch.zeros((), device=self.policy.device)
            for loss in self._micro_losses(rollout, credit, old, meter):
                self.manual_backward(loss * self._world_size)  # strategies average over ranks; the weights are global
                total = total + loss.detach()
            self._loss_is_finite = bool(torch.isfinite(total))
            optimizer.step()  # clips, or drops a non-finite gradient, in on_before_optimizer_step
            self.updates_done += 1
        lr = optimizer.param_groups[0]["lr"]
        for scheduler in _as_list(self.lr_schedulers()):
            scheduler.step()
        return meter.compute() | {"loss": float(total), "grad_norm": self._grad_norm, "lr": lr}

    def _micro_losses(
        self, rollout: Rollout, credit: Credit, old: dict[int, LogProbs], meter: TokenMeter
    ) -> Iterator[Float[Tensor, ""]]:
        """The loss of each micro-batch of branches; they sum to the loss of the rollout."""
        stage = rollout.stage
        lengths = rollout.schedule.lengths[stage.start : stage.stop]
        cond = self.policy.encode_prompts(rollout.prompts).repeat(stage.branches)
        drawn = flat(rollout.log_probs)
        size = self.micro_batch_size or len(cond)
        for first in range(0, len(cond), size):
            rows = slice(first, first + size)
            tokens = [t[rows] for t in rollout.tokens]
            new = self.policy(tokens, cond.rows(rows), stage.start, stage.stop, score=self.score, reference=self.reference)
            loss, per_token = self.objective(new, old.setdefault(first, detached(new)), drawn[rows], credit, rows, lengths)
            for name, values in per_token.items():
                meter.add(name, values)
            yield loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; drop it where it, or the loss, is not finite. Mixed precision has unscaled it by now."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._grad_norm = float(norm)
        if math.isfinite(self._grad_norm) and self._loss_is_finite:
            self.bad_steps_in_a_row = 0
            if self.max_grad_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
            return
        self.bad_steps += 1
        if not self._scaler_is_searching():
            self.bad_steps_in_a_row += 1
        optimizer.zero_grad()  # without gradients the step changes nothing, and still counts as one

    def _scaler_is_searching(self) -> bool:
        """Whether fp16 loss scaling explains a non-finite gradient: it halves its scale by such steps until they stop."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler is not None and self._loss_is_finite and scaler.get_scale() > 1

    def _stop_if_steps_keep_failing(self) -> None:
        if self.bad_steps_in_a_row >= self.max_bad_steps:
            raise RunStoppedError(
                f"the loss or its gradient was not finite in {self.bad_steps_in_a_row} steps in a row, up to rollout "
                f"{self.rollouts_done}; none of them was applied, and the state is saved. Lower the learning rate, or use "
                "precision bf16-mixed or 32 instead of 16-mixed, then resume with --ckpt_path."
            )

    def _log_step(self, rollout: Rollout, metrics: dict[str, float], seconds: dict[str, float]) -> None:
        stage, schedule = rollout.stage, rollout.schedule
        total = sum(seconds.values())
        trained = len(rollout.prompts) * stage.branches * schedule.span(stage.start, stage.stop)
        metrics |= {f"seconds/{name}": value for name, value in seconds.items()}
        metrics |= {
            "step_time": total,
            "images_per_second": len(rollout.images) / seconds["rollout"],
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

    # --- evaluation and drawing ---------------------------------------------------------------------------------------------

    def forward(self, prompts: Any) -> Float[Tensor, "N 3 H W"]:
        """One image per prompt (of any form that a batch may have), RGB in [0, 1], at the fixed keys of evaluation."""
        return draw(self.policy, as_prompts(prompts), self.sampling, self.eval_seed, self.images_at_once or 64)

    def evaluate(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> Evaluation:
        """Draw and score one image per prompt at fixed keys, so that two calls differ by the policy alone."""
        images_at_once = self.images_at_once or 64
        return evaluate(self.policy, self.rewards, prompts, sampling or self.sampling, self.eval_seed, images_at_once)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Collect the scores of one batch."""
        self._collect("val", self.evaluate(as_prompts(batch)))

    def test_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Collect the scores of one batch, by the sampler and greedily."""
        prompts = as_prompts(batch)
        for name, sampling in (("test", self.sampling), ("test/greedy", self.sampling.greedy())):
            evaluation = self.evaluate(prompts, sampling)
            self._collect(name, evaluation)
            if self.judge is not None:
                scores = score_images(self.judge, evaluation.images, prompts, "judge")
                judged = replace(evaluation, values=scores.values, texts=scores.texts, scores={}, readable=scores.usable)
                self._collect(f"{name}/judge", judged)

    def predict_step(self, batch: Any, batch_idx: int) -> Float[Tensor, "N 3 H W"]:  # noqa: ARG002
        """Draw one image per prompt."""
        return self.forward(batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val/reward`, `val/word_accuracy`, `val/ned`."""
        self._log_collected()

    def on_test_epoch_end(self) -> None:
        """Log `test/...`, `test/greedy/...` and what the judge said of both."""
        self._log_collected()

    def _collect(self, name: str, evaluation: Evaluation) -> None:
        self._batch_scores.setdefault(name, []).append(evaluation.without_images())

    def _log_collected(self) -> None:
        self.collected = {name: Evaluation.merge(parts) for name, parts in self._batch_scores.items()}
        for name, merged in self.collected.items():
            self.log_dict({f"{name}/{k}": v for k, v in merged.metrics().items()}, prog_bar=True, sync_dist=True)
        self._batch_scores = {}

    # --- Lightning ----------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """One optimizer over what requires a gradient; the schedule is stepped once per rollout."""
        optimizer = self.optimizer_factory([p for p in self.policy.parameters() if p.requires_grad])
        if self.lr_scheduler_factory is None:
            return optimizer
        return [optimizer], [self.lr_scheduler_factory(optimizer)]

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Silence a warning of Lightning's about what is meant to be so."""
        # A policy stays in evaluation mode for good, so that nothing drops out.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")

    def on_fit_start(self) -> None:
        """Bring the reference to the policy's device: outside the module tree, nobody else does.

        Raises:
            RuntimeError: under more than one process, which this version does not train with, or with an adapter in half precision.
        """
        if self.trainer.world_size > 1:
            raise RuntimeError(
                f"VARGRPO trains on one process in this version, got {self.trainer.world_size}; set --trainer.devices 1 "
                "(and --trainer.num_nodes 1)"
            )
        if any(is_adapter(name) and p.dtype != torch.float32 for name, p in self.policy.named_parameters()):
            raise RuntimeError(
                f"precision {self.trainer.precision!r} rounds the adapter's weights away, which train in float32; use bf16-mixed, "
                "and dtype: bfloat16 of the policy's from_pretrained to halve its base"
            )
        if isinstance(self.reference, VARPolicy):
            weight = next(self.policy.transformer.parameters())
            self.reference.to(self.device, weight.dtype)  # rounded alike, or the KL would not begin at zero
        if any(p.requires_grad and p.dtype in (torch.bfloat16, torch.float16) for p in self.policy.parameters()):
            warnings.warn(
                f"the trained weights are {weight_dtype(self.policy)}: a step that changes a weight by less than its last digit "
                "(1 in 256 of it for bfloat16) changes nothing. Use precision bf16-mixed with float32 weights, or add_lora",
                stacklevel=2,
            )

    def saved_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the weights: all of them, or those of the adapter alone where there is one."""
        state: dict[str, Tensor] = self.state_dict()
        return {name: x for name, x in state.items() if is_adapter(name)} if has_adapter(self.policy) else state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters and the identity of the frozen weights: all that a resumed run needs beside trained weights and optimizer."""
        if has_adapter(self.policy):
            checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if is_adapter(name)}
        checkpoint["varrl"] = {
            "rollouts_done": self.rollouts_done,
            "updates_done": self.updates_done,
            "bad_steps": self.bad_steps,
            "bad_steps_in_a_row": self.bad_steps_in_a_row,
            "seed": self.seed,
            "adapter": adapter_settings(self.policy),
            "reference": self._frozen_digest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters; complete the weights where the checkpoint holds an adapter alone.

        Raises:
            ValueError: when the frozen weights are others than those the run began with: an adapter would sit on a wrong base, or
                the KL would change its anchor.
        """
        saved = checkpoint.get("varrl")
        if saved is None:
            raise ValueError("this checkpoint was not written by VARGRPO: it has no counters. Expected a checkpoint of a fit run.")
        adapter = adapter_settings(self.policy)
        if saved.get("adapter") != adapter:
            raise ValueError(
                f"the checkpoint has {_described(saved.get('adapter'), 'no adapter', 'an adapter')}, but the policy has "
                f"{_described(adapter, 'none', 'one')}; use the config.yaml of the run that wrote it"
            )
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        mine = self._frozen_digest if adapter or fitting else None
        if None not in (saved["reference"], mine) and saved["reference"] != mine:
            raise ValueError(
                f"the {'base' if adapter else 'reference'}'s weights differ from those that the run began with ({mine} against "
                f"{saved['reference']}); give the same base weights as then"
            )
        if adapter:
            if problems := differences(checkpoint["state_dict"], self.saved_tensors()):
                raise ValueError("the checkpoint does not fit the policy's adapter:\n  " + "\n  ".join(problems))
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}
        for name in ("rollouts_done", "updates_done", "bad_steps", "bad_steps_in_a_row"):
            setattr(self, name, saved[name])

    def _digest_of_frozen(self) -> str | None:
        """A hash of the frozen weights as they were given, before a Trainer's precision: the adapter's base, else the reference."""
        if has_adapter(self.policy):
            return weights_digest(base_tensors(self.policy))
        return weights_digest(self.reference.transformer.state_dict()) if isinstance(self.reference, VARPolicy) else None

    @property
    def _world_size(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    def _sum_over_ranks(self, x: Tensor) -> Tensor:
        if self._world_size == 1:
            return x
        summed: Tensor = self.trainer.strategy.reduce(x, reduce_op="sum")
        return summed


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named weights, to tell two models apart: of names, shapes and some thousand entries of each tensor."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        step = max(1, value.numel() // DIGESTED)
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().flatten()[::step].cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _installed_judge(rewards: WeightedRewards) -> Reward | None:
    """Tesseract beside the OCR reward, where it is installed; without thresholds, since a miss is a miss."""
    reader = next((term.reward for term in rewards.terms.values() if isinstance(term.reward, OCRReward)), None)
    if reader is None or why_not_installed() is not None:
        return None
    return TesseractReward(reader.engine.detect, min_confidence=0, min_length=1, without_words="skip")


def _frozen(policy: VARPolicy) -> Anchor:
    return AdapterOff(policy) if has_adapter(policy) else policy.frozen_copy()


def weight_dtype(policy: VARPolicy) -> str:
    """The dtype of the trained weights, by its short name."""
    return str(next(p for p in policy.parameters() if p.requires_grad).dtype).removeprefix("torch.")


def _sampling(asked: SamplingChanges | Sampling | None, default: Sampling) -> Sampling:
    if asked is None:
        return default
    return asked.over(default) if isinstance(asked, SamplingChanges) else asked


def _described(adapter: dict[str, float] | None, absent: str, present: str) -> str:
    return absent if adapter is None else f"{present} of rank {adapter['rank']:g} and alpha {adapter['alpha']:g}"


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _as_list(x: Any) -> list[Any]:
    if x is None:
        return []
    return list(x) if isinstance(x, (list, tuple)) else [x]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds[name] = time.perf_counter() - start
