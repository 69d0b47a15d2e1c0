"""T5's encoder: one feature per token, as Infinity reads texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.text_encoders.base import TextEncoder, read_pretrained
from varrl_lightning.text_encoders.cuts import kept_texts


class T5Text(TextEncoder):
    """Features of a text's tokens, the closing one included, by a T5 encoder (Infinity: google/flan-t5-xl).

    Args:
        model: a `T5EncoderModel` of transformers.
        tokenizer: its tokenizer.
        max_tokens: longer texts are cut to this many tokens.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, max_tokens: int = 512) -> None:
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def from_pretrained(cls, path: str | Path = "google/flan-t5-xl", dtype: str = "float32", max_tokens: int = 512) -> T5Text:
        """Load a folder as transformers writes it, or a hub id.

        Raises:
            FileNotFoundError: when there is no such folder, and no such repository within reach.
            ValueError: when the folder or repository holds another model.
        """
        return cls(*read_pretrained(path, "T5EncoderModel", dtype), max_tokens)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What is read of those texts that have more than `max_tokens`."""
        return kept_texts(self.tokenizer, texts, self.max_tokens)

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """`text`, fp32 (R, L, C), zero after a text's end, L tokens in the longest text; `mask` (R, L), True before the end."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
        mask = tokens["attention_mask"].bool()
        features = self.model(**tokens).last_hidden_state.float()
        return {"text": features.masked_fill(~mask[..., None], 0.0), "mask": mask}
