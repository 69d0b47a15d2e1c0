"""A language model of transformers with a visual vocabulary beside its text vocabulary."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varrl_lightning.policies.language_model import PrefixTransformer
from varrl_lightning.policies.layers import outside_autocast
from varrl_lightning.schedule import Schedule

OCTAVES = 8
"""Number of octaves of the Fourier features of a cell's place."""


class VisualLanguageModel(PrefixTransformer):
    """A decoder with a visual vocabulary beside its text vocabulary.

        input of scale 0:  boi + scale_0 + place(1/2, 1/2)
        input of scale t:  connector(latent so far at the cell) + scale_t + place(y, x)
        logits:            head(output of the last layer)

    Args:
        backbone: a causal language model of transformers, or its decoder; it is used itself, not copied. Its text head is left out,
            since nothing trains it.
        vocab_size: V of the visual codebook.
        channels: features per cell of the tokenizer's `next_input`.
        scales: T of the longest schedule.
        gradient_checkpointing: as in `PrefixTransformer`.
        seed: of the random visual parts.
    """

    def __init__(
        self, backbone: Any, vocab_size: int, channels: int, scales: int, gradient_checkpointing: bool = False, seed: int = 0
    ) -> None:
        decoder = backbone.get_decoder() if hasattr(backbone, "get_decoder") else backbone
        super().__init__(decoder, gradient_checkpointing)
        width = decoder.config.hidden_size
        self.backbone = decoder
        self.boi = nn.Parameter(torch.empty(width))
        self.connector = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))
        self.scale = nn.Embedding(scales, width)
        self.place = nn.Linear(4 * OCTAVES, width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self._initialise(seed)

    @property
    def decoder(self) -> Any:
        """The language model without its text head."""
        return self.backbone

    def text(self, ids: Int[Tensor, "R S"]) -> Float[Tensor, "R S d"]:
        """The language model's embeddings of text."""
        embedded: Tensor = self.backbone.embed_tokens(ids)
        return embedded

    def query(self, ids: Int[Tensor, "R"] | None, rows: int, schedule: Schedule) -> Float[Tensor, "R 1 d"]:
        """`<boi>`, begin of image, at the middle of the picture."""
        return self._at(self.boi.expand(rows, 1, -1), 0, schedule)

    def picture(self, features: Float[Tensor, "R n C"], t: int, schedule: Schedule) -> Float[Tensor, "R n d"]:
        """Embedded latent so far at each cell, with its scale and place."""
        return self._at(self.connector(features.to(self.boi.dtype)), t, schedule)

    def logits(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows V"]:
        """Logits over the visual vocabulary."""
        return outside_autocast(self.head, features)

    def _at(self, x: Float[Tensor, "R n d"], t: int, schedule: Schedule) -> Float[Tensor, "R n d"]:
        centres = [(torch.arange(n, device=x.device).float() + 0.5) / n for n in schedule.grids[t]]
        places = torch.cartesian_prod(*centres)  # (n, 2), rows first
        angles = (places[..., None] * math.pi * 2.0 ** torch.arange(OCTAVES, device=x.device).float()).flatten(1)
        fourier = torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.boi.dtype)
        which = torch.full((1,), t, device=x.device)
        embedded: Tensor = x + self.scale(which) + self.place(fourier)
        return embedded

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        fresh = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        for parameter in fresh:
            if not parameter.is_meta:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
