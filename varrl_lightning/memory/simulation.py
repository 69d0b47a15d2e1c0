"""Measures the memory of a rollout and an update: the real code runs on fake tensors, which have shapes and no memory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from varrl_lightning.grpo.credit import Rows
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.grpo.objective import detached
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.memory.tracking import LiveBytes, frozen_parts, outline, tensors_of
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lora import AdapterOff, has_adapter
from varrl_lightning.policies.state import Anchor
from varrl_lightning.types import Prompt, Stage

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
_CACHED = type(functools.lru_cache(len))


class SimulationError(RuntimeError):
    """A policy's code looks at the values of tensors, which a simulation does not have."""


@dataclass(frozen=True)
class RolloutBytes:
    """Bytes that a rollout takes, beside the weights.

    Args:
        sampling: the most while tokens are sampled or chunks are joined, with what earlier chunks keep.
        decoding: the most while images are decoded, with what earlier chunks keep.
        kept: bytes of the finished rollout, which are held for the rest of the step.
    """

    sampling: int
    decoding: int
    kept: int


class _Simulated(LiveBytes):
    """Counts bytes; answers False where a policy reads a boolean of a fake tensor, for example whether nothing is padded."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return False
        return super().__torch_dispatch__(func, types, args, kwargs)


class Simulation:
    """A copy of a policy on fake tensors, which samples and trains stages to measure their memory.

    Call `read` first: it encodes the prompt of all that follows.

    Args:
        policy: the policy as it is trained, with its adapter, before a strategy shards it; its weights may be on the `meta` device.
        grpo: how the policy is sampled, and the loss.
        precision: the Trainer's precision.
        device: the device of the run; `cuda` only where there is a GPU.
    """

    def __init__(
        self,
        policy: VARPolicy,
        grpo: GRPO,
        precision: str = "32-true",
        device: torch.device | None = None,
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.sampling, self.objective, self.precision = grpo.sampling, grpo.objective, str(precision)
        self.whole_groups = grpo.rewards.whole_groups
        """Whether a reward is given the images of a whole group."""
        anchored = grpo.objective.kl_coef > 0
        self.device = device or torch.device("cpu")
        dtype = TRUE.get(self.precision)
        self.policy = outline(policy, self.mode, self.device, dtype)
        self.reference: Anchor | None = None
        weights = tensors_of(self.policy.transformer, *frozen_parts(self.policy).values())
        if anchored and has_adapter(policy):
            self.reference = AdapterOff(self.policy)
        elif anchored:
            self.reference = outline(policy, self.mode, self.device, dtype).requires_grad_(False)
            weights += tensors_of(self.reference.transformer)
        self._known = weights
        self._real_parts = policy.frozen_parts
        self._updates: dict[tuple[Stage, int], int] = {}
        self._rollouts: dict[tuple[Stage, int, int], RolloutBytes] = {}

    def read(self, prompt: Prompt) -> None:
        """Encode a prompt by the real frozen parts; it stands for all prompts, and so should be the one with the longest text."""
        self.policy.__dict__.pop("encode_prompts", None)
        with self.policy.using_frozen_parts(self._real_parts):
            cond = self.policy.encode_prompts([prompt])
        self.prompt, self.cond = prompt, cond.map(self.mode.from_tensor)
        # Encoders look at values, which fake tensors do not have: this object's method repeats the encoded prompt instead.
        self.policy.__dict__["encode_prompts"] = lambda prompts: self.cond.repeat(len(prompts))
        self._updates.clear()
        self._rollouts.clear()

    @property
    def prompt_bytes(self) -> int:
        """Bytes of one encoded prompt, with its unconditional half."""
        return sum(x.nbytes for half in (self.cond.tensors, self.cond.unconditional) for x in half.values())

    def rollout(self, stage: Stage, branches: int, images_at_once: int | None) -> RolloutBytes:
        """Sample `branches` branches of a stage and their continuations, or their drafts alone.

        Two chunks of `images_at_once` images are sampled; further ones only add what they leave.

        Raises:
            SimulationError: when the policy's code looks at values.
        """
        K = stage.images_per_branch
        each = branches if images_at_once is None else min(branches, max(1, images_at_once // K))
        key = (stage, branches, each)
        if key not in self._rollouts:
            self._rollouts[key] = self._sample(stage, branches, each)
        return self._rollouts[key]

    def _sample(self, stage: Stage, branches: int, each: int) -> RolloutBytes:
        sampled, chunks = min(branches, 2 * each), -(-branches // each)
        prompts = [self.prompt] * -(-sampled // stage.branches)
        alive: list[int] = []
        peaks: list[tuple[int, int]] = []
        with self._running() as tracked:
            decode_latent = self.policy.decode_latent

            def decode(latent: Tensor) -> Tensor:
                sampling = tracked.take_peak()
                images = decode_latent(latent)
                peaks.append((sampling, tracked.take_peak()))
                return images

            self.policy.__dict__["decode_latent"] = decode
            try:
                keys = prompt_keys(0, 0, prompts, self.policy.device)
                rollout = sample_tree(
                    self.policy,
                    prompts,
                    stage,
                    self.sampling,
                    keys,
                    each * stage.images_per_branch,
                    lambda *_: alive.append(tracked.live),
                    range(sampled),
                )
            finally:
                del self.policy.__dict__["decode_latent"]
            joined, kept = tracked.take_peak(), tracked.live
            del rollout
        left = (alive[-1] - alive[0]) * max(chunks - 2, 0)  # what the chunks that were not sampled would keep
        share = branches / sampled
        last = peaks[-2:] if stage.with_drafts else peaks[-1:]  # the last chunk decodes its images, and then its drafts
        return RolloutBytes(
            sampling=max(*(s for s, _ in peaks), last[0][0] + left, joined + left + round(kept * (share - 1))),
            decoding=max(*(d for _, d in peaks), *(d + left for _, d in last)),
            kept=round(kept * share),
        )

    def update(self, stage: Stage, rows: int) -> int:
        """The most bytes of one micro-batch beside weights and their gradients: activations, logits, temporary gradients.

        Raises:
            SimulationError: when the policy's code looks at values.
        """
        if (stage, rows) not in self._updates:
            self._updates[stage, rows] = self._train(stage, rows)
        return self._updates[stage, rows]

    def _train(self, stage: Stage, rows: int) -> int:
        schedule = self.cond.schedule
        lengths = schedule.lengths[stage.start : stage.stop]
        with self.mode:
            bits = () if self.policy.bits is None else (self.policy.bits,)
            tokens = [torch.zeros(rows, n, *bits, dtype=torch.long, device=self.device) for n in schedule.lengths[: stage.stop]]
            of_token = torch.zeros(rows, sum(lengths), device=self.device)
            trained = [p for p in self.policy.parameters() if p.requires_grad]
            for p in trained:
                p.grad = torch.empty_like(p)
        with self._running([*tokens, of_token, *(p.grad for p in trained if p.grad is not None)]) as tracked:
            cond = self.cond.repeat(rows)
            new = self.policy(tokens, cond, stage.start, stage.stop, score=self.objective.score, reference=self.reference)
            credit = Rows(of_token[:, 0], of_token, of_token, of_token)
            loss, _ = self.objective(new, detached(new), of_token, credit, lengths)
            loss.backward()
            peak = tracked.take_peak()
        for p in trained:
            p.grad = None
        return peak

    @contextmanager
    def _running(self, known: Sequence[Tensor] = ()) -> Iterator[LiveBytes]:
        """Within it, tensors are fake, the Trainer's precision applies, and bytes are counted."""
        tracked = _Simulated([*self._known, *known])
        with ExitStack() as stack:
            stack.enter_context(_clean_caches(self.policy))
            stack.enter_context(self.mode)
            stack.enter_context(_precision(self.precision, self.device))
            stack.enter_context(tracked)
            try:
                yield tracked
            except Exception as error:
                if type(error).__module__ != "torch._subclasses.fake_tensor":
                    raise
                raise SimulationError(
                    f"the code of {type(self.policy).__name__} looks at the values of tensors ({type(error).__name__}: "
                    f"{error}), so that its memory cannot be predicted without running it"
                ) from error


@contextmanager
def _clean_caches(policy: VARPolicy) -> Iterator[None]:
    """On leaving, empty every `functools.lru_cache` that was filled within: fake tensors must not outlive the simulation."""
    before = {id(cached): cached.cache_info().misses for cached in _caches(policy)}
    try:
        yield
    finally:
        for cached in _caches(policy):
            if cached.cache_info().misses != before.get(id(cached), 0):
                cached.cache_clear()


def _caches(policy: VARPolicy) -> list[Any]:
    """The `functools.lru_cache`s in the modules of the policy's packages, and in the classes of these modules."""
    packages = {kind.__module__.split(".")[0] for kind in type(policy).__mro__} - {"torch", "builtins", "abc"}
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] in packages and module is not None]
    places = [dict(vars(module)) for module in modules]
    places += [dict(vars(kind)) for place in list(places) for kind in place.values() if isinstance(kind, type)]
    return list({id(x): x for place in places for x in place.values() if type(x) is _CACHED}.values())


@contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, operations run in the Trainer's precision."""
    if precision in MIXED:
        with torch.autocast(device.type, MIXED[precision], cache_enabled=False):
            yield
    elif precision in TRUE:
        default = torch.get_default_dtype()
        torch.set_default_dtype(TRUE[precision])
        try:
            yield
        finally:
            torch.set_default_dtype(default)
    else:
        yield
