"""The policy interface: a next-scale generator that can be sampled, forked and scored.

A family subclasses `VARPolicy` and defines five methods: its schedule, how prompts are encoded, how the cache begins, the features
of consecutive scales given the cache, and their logits. Three more, how tokens become a latent and an image, come from its frozen
`tokenizer` by default. Sampling, teacher forcing and guidance are written here once, for all families; what follows from the logits
is in `scoring`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from varrl_lightning.algorithms.sampling import guided_logits, truncate
from varrl_lightning.policies.cache import Cache
from varrl_lightning.policies.known_picture import CAT, KnownPicture
from varrl_lightning.policies.scoring import by_chunks, packed, sample_tokens, split_halves, token_scores, unpacked
from varrl_lightning.policies.state import Anchor, Cond, State
from varrl_lightning.schedule import Schedule
from varrl_lightning.text_encoders import TextEncoder
from varrl_lightning.types import LogProbs, Prompt, Sampling, Score


class VARPolicy(nn.Module, ABC):
    """A next-scale image generator as a policy over scales.

    `transformer` holds all that trains: it is sharded, saved, and copied for the reference. Frozen parts (tokenizer, text
    encoder) stay outside the module tree: they are in no state dict, no strategy wraps them, and they follow the policy's device,
    never its dtype.

    Args:
        transformer: all that trains.
        frozen: parts that never train, by name; reachable as attributes of that name.
        chunk_tokens: tokens whose logits exist at one time in `forward`.
    """

    vocab_size: int
    bits: int | None = None
    scales_attend: bool = True
    """False where scales depend on each other by the latent alone: teacher forcing then runs `[start, stop)` only."""
    guidance: Literal["ramp", "constant"] = "ramp"
    default_sampling: Sampling = Sampling()
    known_picture: KnownPicture = CAT
    """A picture of the kind that the weights were trained on, with its caption."""

    def __init__(self, transformer: nn.Module, frozen: dict[str, nn.Module] | None = None, chunk_tokens: int = 8192):
        super().__init__()
        self.transformer = transformer
        self.chunk_tokens = chunk_tokens
        # A tuple hides the modules from nn.Module's registration.
        self._frozen: tuple[dict[str, nn.Module]] = (frozen or {},)
        for part in self._frozen[0].values():
            part.requires_grad_(False).eval()
        # A Trainer does not change a module's mode, and a new module is in training mode.
        self.eval()

    @abstractmethod
    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The schedule of an image size `(height, width)` in pixels, the default size when None."""

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Encode prompts of one image size by the frozen parts only; nothing here has a gradient.

        Raises:
            ValueError: for a prompt that this family cannot generate an image for; the message names it.
        """

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What is read of those texts that the frozen part `text_encoder` cuts off, if there is one that can tell."""
        encoder = self.frozen_parts.get("text_encoder")
        return encoder.kept_texts(texts) if isinstance(encoder, TextEncoder) else {}

    @abstractmethod
    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        """The cache before scale 0: what the transformer makes of the prompt; part of the graph under teacher forcing.

        Args:
            inputs: `Cond.halves`, rows with the guidance halves.
        """

    @abstractmethod
    def scale_features(
        self, inputs: dict[str, Tensor], cache: Cache, latents: list[Tensor], first: int, schedule: Schedule
    ) -> tuple[list[Float[Tensor, "R _n d"]], Cache]:
        """Features of every position of consecutive scales, and the cache with these scales appended.

        The sampler asks for one scale at a time, teacher forcing for all at once: both run the same code.

        Args:
            inputs: `Cond.halves`; rows of all arguments include the guidance halves.
            cache: of everything before scale `first`.
            latents: the fp32 latent before each of the scales `first`, `first + 1`, ...
        """

    @abstractmethod
    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits (..., V) of features, or (..., bits, 2) for a bitwise family."""

    def initial_latent(self, rows: int, schedule: Schedule) -> Float[Tensor, "R ..."]:
        """The empty fp32 latent: by default that of the frozen part `tokenizer`, as the next two."""
        latent: Tensor = self.tokenizer.begin(rows, schedule)
        return latent

    def accumulate(self, latent: Tensor, tokens: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """The latent after the tokens of one scale: fp32, free of autocast, one function for sampler and teacher forcing."""
        updated: Tensor = self.tokenizer.accumulate(latent, tokens, scale, schedule)
        return updated

    def decode_latent(self, latent: Tensor) -> Float[Tensor, "R 3 H W"]:
        """RGB in [0, 1] of a latent of any depth; differentiable."""
        image: Tensor = self.tokenizer.decode_latent(latent)
        return image

    def encode(self, images: Float[Tensor, "R 3 H W"], schedule: Schedule) -> list[Int[Tensor, "R _n ..."]]:
        """The tokens of each scale of images, the inverse of `decode`: by default those of the frozen part `tokenizer`.

        Args:
            images: RGB in [0, 1], of the schedule's size.
        """
        tokens: list[Tensor] = self.tokenizer.encode(images, schedule)
        return tokens

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The transformer's tensors as the family's published checkpoints hold them, constants that its code stores included."""
        return tensors

    def blocks(self) -> list[nn.Module]:
        """The layers of the transformer, which share no weights; a strategy shards them one by one.

        A layer is entered by calling it and, where it has them, by its methods `remember` and `through`; it returns whatever is
        needed of it later on. By default these are the modules of the transformer's list `blocks`, if it has one.
        """
        return list(getattr(self.transformer, "blocks", ()))

    def __getattr__(self, name: str) -> Any:
        frozen = self.__dict__.get("_frozen")
        if frozen and name in frozen[0]:
            return frozen[0][name]
        return super().__getattr__(name)

    def train(self, mode: bool = True) -> VARPolicy:
        """Stay in evaluation mode: dropout of any kind would make the ratio of an untouched policy differ from 1."""
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> VARPolicy:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for part in self._frozen[0].values():
            part.to(self.device)
        return self

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        """The parts that never train, by name: tokenizer, text encoder and whatever else the family has."""
        return dict(self._frozen[0])

    @contextmanager
    def using_frozen_parts(self, parts: Mapping[str, nn.Module]) -> Iterator[None]:
        """Within it, other frozen parts take the place of the policy's own; they keep their device, dtype and mode."""
        before, self._frozen = self._frozen, (dict(parts),)
        try:
            yield
        finally:
            self._frozen = before

    @property
    def device(self) -> torch.device:
        """The device of the transformer."""
        return next(self.transformer.parameters()).device

    def frozen_copy(self) -> VARPolicy:
        """A copy with a frozen transformer, which shares the frozen parts: the reference."""
        shared = {id(part): part for part in self._frozen[0].values()}
        return copy.deepcopy(self, shared).requires_grad_(False)

    @torch.no_grad()
    def begin(self, cond: Cond, sampling: Sampling, keys: Int[Tensor, " R"] | torch.Generator) -> State:
        """The empty state s_0 of each row of `cond`; a generator in place of keys samples as `torch.multinomial` does."""
        if isinstance(keys, Tensor) and keys.shape != (len(cond),):
            raise ValueError(f"one noise key per row is needed: {len(cond)} rows, keys of shape {tuple(keys.shape)}")
        sampling.check(len(cond.schedule))
        inputs = cond.halves(sampling.cfg is not None)
        latent = self.initial_latent(len(cond), cond.schedule)
        return State(cond, sampling, keys, latent, self.start_cache(inputs, cond.schedule))

    @torch.no_grad()
    def sample(self, state: State, until: int, *, final: bool = False, after_scale: Callable[[], None] | None = None) -> State:
        """Sample scales up to, not including, `until`.

        Args:
            final: whether no scale will be sampled after these, so that the cache need not hold the last of them.
            after_scale: called after each scale.
        """
        inputs = state.cond.halves(state.halves == 2)
        read = until - 1 if final or until == len(state.cond.schedule) else until
        while state.scale < until:
            state = self._sample_scale(state, inputs, read)
            if after_scale is not None:
                after_scale()
        return state

    def _sample_scale(self, state: State, inputs: dict[str, Tensor], read: int) -> State:
        """Sample the next scale; `read` is one past the last scale whose keys and values another one reads."""
        scale, schedule = state.scale, state.cond.schedule
        latent = state.latent if state.halves == 1 else torch.cat((state.latent, state.latent))
        cache = state.cache.expecting(schedule.span(scale, read))
        features, cache = self.scale_features(inputs, cache, [latent], scale, schedule)
        score = Score("sampler", state.sampling)
        logits = self._score_logits(split_halves(features[0], state.halves), scale, schedule, score)
        log_probs = logits.log_softmax(dim=-1)
        tokens = sample_tokens(log_probs.exp(), state.keys, scale, state.strata)
        log_prob = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return replace(
            state,
            latent=self.accumulate(state.latent, tokens, scale, schedule),
            cache=cache,
            tokens=[*state.tokens, tokens],
            log_probs=[*state.log_probs, log_prob if self.bits is None else log_prob.sum(-1)],
        )

    def _score_logits(
        self,
        halves: list[Tensor],
        scale: int,
        schedule: Schedule,
        score: Score,
        tokens: Tensor | None = None,
        support: Tensor | None = None,
    ) -> Float[Tensor, "..."]:
        """fp32 logits of the distribution that `score` names; -inf outside its support, or outside the packed one that is given."""
        logits = self.logits(halves[0]).float()
        if score.guided:
            unconditional = self.logits(halves[1]).float()
            if score.unconditional_gradient == "detached":  # the head is shared, so that detached features are not enough
                unconditional = unconditional.detach()
            cfg = score.sampling.cfg_at(scale)
            assert cfg is not None
            logits = guided_logits(logits, unconditional, cfg, self.guidance, scale, len(schedule))
        if score.kind == "sampler":
            s = score.sampling
            kept = None if support is None else unpacked(support, logits.shape)
            logits = truncate(logits, s.top_k, s.top_p, s.temperature_at(scale), keep=tokens, support=kept)
        return logits

    def forward(
        self,
        tokens: list[Int[Tensor, "R _n ..."]],
        cond: Cond,
        start: int,
        stop: int,
        *,
        score: Score | None = None,
        reference: Anchor | None = None,
        support: list[UInt8[Tensor, "R _n bytes"]] | None = None,
    ) -> LogProbs:
        """Log-probability, entropy and exact KL of the tokens of scales `[start, stop)`, by teacher forcing.

        Only scales `[0, stop)` are run. Logits exist for `chunk_tokens` tokens at a time, in the backward pass too. The KL is that
        of the scored distribution to the reference's on the same support. This is `forward` so that the hooks of DDP, FSDP2 and
        DeepSpeed fire.

        Args:
            tokens: at least scales `[0, stop)`.
            score: what is scored; the plain model when None.
            reference: a frozen policy of the same family, or a view of this one; no KL when None.
            support: that of an earlier pass on the same tokens, for a score that truncates; that of the present policy when None.
        """
        score = score or Score()
        features = self.span_halves(tokens, cond, start, stop, score)
        anchors: Iterator[list[Tensor] | None] = iter([None] * (stop - start))
        if reference is not None:
            with torch.no_grad():
                anchors = iter(reference.span_halves(tokens, cond, start, stop, score))
        columns: list[tuple[Tensor, ...]] = []
        for scale, halves, anchor in zip(range(start, stop), features, anchors, strict=True):
            kept = None if support is None else support[scale - start]
            columns.append(self._score_scale(halves, tokens[scale], scale, cond.schedule, score, anchor, reference, kept))
        log_prob, entropy, kl, anchor_log_prob, *supports = (list(column) for column in zip(*columns, strict=True))
        token_level = log_prob if self.bits is None else [x.sum(-1) for x in log_prob]
        return LogProbs(
            log_prob=token_level,
            entropy=entropy,
            kl=kl if reference is not None else None,
            reference_log_prob=anchor_log_prob if reference is not None else None,
            bit_log_prob=None if self.bits is None else log_prob,
            support=supports[0] if supports else None,
        )

    def span_features(
        self, inputs: dict[str, Tensor], tokens: list[Tensor], start: int, stop: int, schedule: Schedule
    ) -> list[Float[Tensor, "R _n d"]]:
        """Teacher-forced features of scales `[start, stop)`; reads `tokens[:stop - 1]` and runs nothing after `stop`.

        Scales before `start` are run too, since the trained ones see their keys and values, unless scales do not attend.
        """
        rows = next(iter(inputs.values())).shape[0]
        latents = [self.initial_latent(rows, schedule)]
        for t in range(stop - 1):
            latents.append(self.accumulate(latents[-1], tokens[t], t, schedule))
        first = 0 if self.scales_attend else start
        features, _ = self.scale_features(inputs, self.start_cache(inputs, schedule), latents[first:], first, schedule)
        return features[start - first :]

    def span_halves(self, tokens: list[Tensor], cond: Cond, start: int, stop: int, score: Score) -> list[list[Tensor]]:
        """For each scale of the span, the features of the conditional half, and under guidance of the unconditional one."""
        if not score.guided:
            return [[f] for f in self.span_features(cond.tensors, tokens, start, stop, cond.schedule)]
        if score.unconditional_gradient == "flows":
            doubled = [torch.cat((x, x)) for x in tokens[:stop]]
            both = self.span_features(cond.halves(True), doubled, start, stop, cond.schedule)
            return [split_halves(f, 2) for f in both]
        conditional = self.span_features(cond.tensors, tokens, start, stop, cond.schedule)
        with torch.no_grad():
            unconditional = self.span_features(cond.unconditional, tokens, start, stop, cond.schedule)
        return [[c, u] for c, u in zip(conditional, unconditional, strict=True)]

    def _score_scale(
        self,
        halves: list[Tensor],
        tokens: Tensor,
        scale: int,
        schedule: Schedule,
        score: Score,
        anchor: list[Tensor] | None,
        reference: Anchor | None,
        support: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """(log_prob, entropy, kl, reference log_prob) of one scale, a chunk of tokens after the other; then a truncated support."""

        def score_chunk(index: slice) -> tuple[Tensor, ...]:
            chosen = tokens.flatten(0, 1)[index]
            kept = None if support is None else support.flatten(0, 1)[index]
            logits = self._score_logits([half.flatten(0, 1)[index] for half in halves], scale, schedule, score, chosen, kept)
            if score.truncated and kept is None:
                kept = packed(torch.isfinite(logits))
            to_keep = () if kept is None else (kept,)
            if anchor is None or reference is None:
                return (*token_scores(logits, chosen), *to_keep)
            with torch.no_grad():
                anchor_halves = [half.flatten(0, 1)[index] for half in anchor]
                anchor_log_probs = reference.on_support(anchor_halves, torch.isfinite(logits), scale, schedule, score)
            return (*token_scores(logits, chosen, anchor_log_probs), *to_keep)

        return by_chunks(score_chunk, tokens.shape[:2], self.chunk_tokens)

    def on_support(
        self, halves: list[Tensor], support: Bool[Tensor, "*rows V"], scale: int, schedule: Schedule, score: Score
    ) -> Float[Tensor, "*rows V"]:
        """Log-probabilities renormalised on another policy's support, 0 outside it."""
        untruncated = replace(score, kind="guided") if score.kind == "sampler" else score
        logits = self._score_logits(halves, scale, schedule, untruncated)
        if score.kind == "sampler":
            logits = logits / score.sampling.temperature_at(scale)
        return logits.masked_fill(~support, -torch.inf).log_softmax(dim=-1).masked_fill(~support, 0.0)

    def decode(self, tokens: list[Int[Tensor, "R _n ..."]], schedule: Schedule) -> Float[Tensor, "R 3 H W"]:
        """The image of any number of scales, RGB in [0, 1]."""
        latent = self.initial_latent(tokens[0].shape[0], schedule)
        for scale, sampled in enumerate(tokens):
            latent = self.accumulate(latent, sampled, scale, schedule)
        return self.decode_latent(latent)
