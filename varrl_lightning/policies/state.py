"""What flows through a policy: encoded prompts, a partly sampled batch, and the anchor of a KL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from varrl_lightning.algorithms.noise import Strata, fold
from varrl_lightning.policies.cache import Cache
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Sampling, Score


@dataclass(frozen=True)
class Cond:
    """The encoded prompts: outputs of a policy's frozen parts and ids, one row a prompt.

    Args:
        schedule: the schedule of these prompts; all have one image size.
        tensors: conditional inputs, rows along dimension 0.
        unconditional: the same for the unconditional half of guidance.
    """

    schedule: Schedule
    tensors: dict[str, Tensor]
    unconditional: dict[str, Tensor]

    def __len__(self) -> int:
        rows: int = next(iter(self.tensors.values())).shape[0]
        return rows

    def repeat(self, k: int) -> Cond:
        """Each row k times, copies adjacent: (P, ...) becomes (P * k, ...)."""
        return self.map(lambda x: x.repeat_interleave(k, dim=0))

    def rows(self, index: slice) -> Cond:
        """A contiguous range of rows."""
        return self.map(lambda x: x[index])

    def at(self, index: Int[Tensor, " R"]) -> Cond:
        """The rows of an index; one may occur several times."""
        return self.map(lambda x: x[index])

    def halves(self, guided: bool) -> dict[str, Tensor]:
        """Inputs of the transformer: the conditional rows, then under guidance the unconditional ones."""
        if not guided:
            return self.tensors
        return {name: torch.cat((x, self.unconditional[name])) for name, x in self.tensors.items()}

    def map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        """The same prompts, with `f` applied to every tensor."""
        return Cond(
            self.schedule,
            {name: f(x) for name, x in self.tensors.items()},
            {name: f(x) for name, x in self.unconditional.items()},
        )


@dataclass(frozen=True)
class State:
    """A partly sampled batch: s_t for each row.

    Args:
        cond: one row per image.
        sampling: how tokens are sampled.
        keys: noise key of each row, or a generator for all.
        strata: groups of rows whose uniforms are stratified; None where rows are independent of each other.
        latent: fp32 latent accumulated so far, rows without guidance halves.
        cache: of the prompt and of all scales before the next one.
        tokens: the scales sampled so far.
        log_probs: log-probability of each sampled token under the sampler.
    """

    cond: Cond
    sampling: Sampling
    keys: Int[Tensor, " R"] | torch.Generator
    latent: Float[Tensor, "R ..."]
    cache: Cache
    tokens: list[Int[Tensor, "R _n ..."]] = field(default_factory=list)
    log_probs: list[Float[Tensor, "R _n"]] = field(default_factory=list)
    strata: Strata | None = None

    @property
    def scale(self) -> int:
        """The next scale to sample."""
        return len(self.tokens)

    @property
    def halves(self) -> int:
        """2 under classifier-free guidance, else 1."""
        return 1 if self.sampling.cfg is None else 2

    def fork(self, k: int, keys: Int[Tensor, " R"] | None = None) -> State:
        """k continuations of each row, adjacent, which share everything sampled so far.

        Args:
            keys: as in `children`; None for continuations that are independent of each other.
        """
        rows = range(len(self.cond))
        return self.children([row for row in rows for _ in range(k)], [child for _ in rows for child in range(k)], keys)

    def children(
        self,
        parents: Sequence[int],
        numbers: Sequence[int],
        keys: Int[Tensor, " R"] | None = None,
        stratified: int | None = None,
    ) -> State:
        """For each i, the `numbers[i]`-th continuation of row `parents[i]`; it shares everything sampled so far.

        A child's noise depends on its parent and its number alone, so that continuations may be sampled in parts, on any process.

        Args:
            keys: of each row, what its children's keys derive from, its own key when None. Rows with an equal one have
                continuations with the same noise.
            stratified: how many continuations a row has in all, where their uniforms are stratified; None where they are
                independent of each other.

        Raises:
            ValueError: for either of them with a generator, whose numbers belong to no row.
        """
        own, strata = self.keys, None
        if isinstance(own, Tensor):
            index = torch.tensor(list(numbers), device=own.device)
            if stratified is not None:
                strata = Strata(own[list(parents)], index, stratified)
            own = fold((own if keys is None else keys)[list(parents)], index)
        elif keys is not None or stratified is not None:
            raise ValueError("continuations that share noise need noise keys, one a row; this state has a torch.Generator")
        if list(parents) == list(range(len(self.cond))):  # nothing is copied: the cache is the largest thing there is
            return replace(self, keys=own, strata=strata)
        index = torch.tensor(list(parents), device=self.latent.device)
        return replace(self._map(lambda x: x[index], self.cond.at(index), own), strata=strata)

    def finished(self) -> State:
        """The state without its cache, which only further scales would need."""
        return replace(self, cache=Cache([]))

    def _map(self, f: Callable[[Tensor], Tensor], cond: Cond, keys: Tensor | torch.Generator) -> State:
        """The state of other rows, which `f` selects; the cache has them twice under guidance."""
        halves = self.halves  # a local: the cache selects rows later on, and must not keep this state alive until then

        def in_each_half(x: Tensor) -> Tensor:
            return f(x) if halves == 1 else torch.cat([f(half) for half in x.chunk(2)])

        return State(
            cond=cond,
            sampling=self.sampling,
            keys=keys,
            latent=f(self.latent),
            cache=self.cache.map(in_each_half),
            tokens=[f(x) for x in self.tokens],
            log_probs=[f(x) for x in self.log_probs],
        )


@runtime_checkable
class Anchor(Protocol):
    """The reference distribution of a KL: a frozen policy, or a view of one."""

    def span_halves(self, tokens: list[Tensor], cond: Cond, start: int, stop: int, score: Score) -> list[list[Tensor]]:
        """See `VARPolicy.span_halves`."""

    def on_support(self, halves: list[Tensor], support: Tensor, scale: int, schedule: Schedule, score: Score) -> Tensor:
        """See `VARPolicy.on_support`."""
