"""A policy whose logits are a table over (condition, state, token): every conditional there can be, and all of them enumerable."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from tabular import Tree
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt


class TabularPolicy(VARPolicy):
    """Draws from random tables; a prompt's label chooses the table, table 0 is the unconditional one.

    The image is one row of pixels, one a token, as bright as the token's number: it identifies the tokens.

    Args:
        grids: of each scale.
        vocab_size: tokens; a power of two in a bitwise policy.
        bits: bits of a token in a bitwise policy, whose first bit is the highest.
        labels: how many labels there are.
        spread: standard deviation of the logits.
    """

    def __init__(
        self,
        grids: Sequence[tuple[int, int]],
        vocab_size: int = 2,
        bits: int | None = None,
        labels: int = 1,
        guidance: Literal["ramp", "constant"] = "constant",
        spread: float = 1.0,
        seed: int = 0,
        chunk_tokens: int = 200,
    ) -> None:
        assert bits is None or vocab_size == 2**bits
        draw = torch.Generator().manual_seed(seed)
        tree = Tree(tuple(h * w for h, w in grids), vocab_size)
        values = (vocab_size,) if bits is None else (bits, 2)
        shapes = [(labels + 1, tree.states(t), n, *values) for t, n in enumerate(tree.lengths)]
        tables = nn.ParameterList([spread * torch.randn(shape, generator=draw) for shape in shapes])
        super().__init__(tables, chunk_tokens=chunk_tokens)
        self.tree, self.vocab_size, self.bits, self.guidance = tree, vocab_size, bits, guidance
        self._schedule = Schedule(tuple(grids), (1, 1))

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return self._schedule

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        table = torch.tensor([1 + (p.label or 0) for p in prompts])
        return Cond(self._schedule, {"table": table}, {"table": torch.zeros_like(table)})

    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        nothing = torch.zeros(inputs["table"].shape[0], 0)
        return Cache([(nothing, nothing)])

    def scale_features(
        self, inputs: dict[str, Tensor], cache: Cache, latents: list[Tensor], first: int, schedule: Schedule
    ) -> tuple[list[Tensor], Cache]:
        # The past comes from the cache and only the newest scale from the latent, so that both must be forked rightly.
        history, features = cache.layers[0][0], []
        for scale, latent in enumerate(latents, start=first):
            begin, end = (schedule.offsets[s] for s in (max(scale - 1, 0), scale))
            history = torch.cat((history, latent[:, begin:end]), dim=1)
            features.append(self._features(inputs, history, scale))
        return features, Cache([(history, history)])

    def logits(self, features: Tensor) -> Tensor:
        return features if self.bits is None else features.unflatten(-1, (self.bits, 2))

    def initial_latent(self, rows: int, schedule: Schedule) -> Tensor:
        return torch.zeros(rows, schedule.offsets[-1])

    def accumulate(self, latent: Tensor, tokens: Tensor, scale: int, schedule: Schedule) -> Tensor:
        latent = latent.clone()
        latent[:, schedule.offsets[scale] : schedule.offsets[scale + 1]] = self._numbers(tokens)
        return latent

    def decode_latent(self, latent: Tensor) -> Tensor:
        return (latent / (self.vocab_size - 1))[:, None, None, :].expand(-1, 3, 1, -1)

    def leaves(self, images: Tensor) -> Tensor:
        """The number of s_T that each image shows, as in `tabular`."""
        return self._state(images[:, 0, 0] * (self.vocab_size - 1))

    def tokens_of(self, numbers: Tensor) -> list[Tensor]:
        """Tokens in the policy's own form of (rows, L) token numbers."""
        parts = [numbers[:, a:b] for a, b in pairwise(self._schedule.offsets)]
        if self.bits is None:
            return parts
        shifts = torch.arange(self.bits - 1, -1, -1)
        return [(x[..., None] >> shifts) & 1 for x in parts]

    def token_logits(self, label: int = 0) -> list[Tensor]:
        """(S_t, n_t, V) of each scale for a label, -1 for the unconditional table; a bitwise one by the sum over bits."""
        tables = [table[label + 1] for table in self.transformer]
        if self.bits is None:
            return tables
        digits = self.tokens_of(torch.arange(self.vocab_size).repeat(self._schedule.offsets[-1], 1).T)[0][:, 0]  # (V, bits)
        return [sum(x.log_softmax(-1)[..., d, digits[:, d]] for d in range(self.bits)) for x in tables]

    def _numbers(self, tokens: Tensor) -> Tensor:
        if self.bits is None:
            return tokens.float()
        return (tokens * 2 ** torch.arange(self.bits - 1, -1, -1)).sum(dim=-1).float()

    def _state(self, numbers: Tensor) -> Tensor:
        places = self.vocab_size ** torch.arange(numbers.shape[1] - 1, -1, -1)
        return (numbers.round().long() * places).sum(dim=1)

    def _features(self, inputs: dict[str, Tensor], history: Tensor, scale: int) -> Tensor:
        features = self.transformer[scale][inputs["table"], self._state(history)]
        return features if self.bits is None else features.flatten(-2)
