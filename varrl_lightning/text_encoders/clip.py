"""Two CLIP text encoders side by side, as Switti reads texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.text_encoders.base import TextEncoder, read_pretrained
from varrl_lightning.text_encoders.cuts import kept_texts

LENGTH = 77
"""Tokens of every text."""


class ClipPair(TextEncoder):
    """Features of a text's 77 tokens by two CLIP encoders, concatenated, and the second one's pooled feature.

    Args:
        first: a `CLIPTextModel` of transformers (Switti: CLIP-L).
        second: another `CLIPTextModel` (Switti: CLIP-bigG), whose tokenizer decides the mask.
        first_tokenizer: the tokenizer of the first.
        second_tokenizer: the tokenizer of the second.
    """

    def __init__(self, first: nn.Module, first_tokenizer: Any, second: nn.Module, second_tokenizer: Any) -> None:
        super().__init__()
        self.first, self.second = first.requires_grad_(False).eval(), second.requires_grad_(False).eval()
        self.tokenizers = (first_tokenizer, second_tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        first: str | Path = "openai/clip-vit-large-patch14",
        second: str | Path = "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        dtype: str = "float32",
    ) -> ClipPair:
        """Load two folders as transformers writes them, or hub ids; complete CLIP models work too.

        Raises:
            FileNotFoundError: when there is no such folder, and no such repository within reach.
            ValueError: when a folder or repository holds another model.
        """
        return cls(*read_pretrained(first, "CLIPTextModel", dtype), *read_pretrained(second, "CLIPTextModel", dtype))

    @property
    def device(self) -> torch.device:
        """The device of the models."""
        return next(self.first.parameters()).device

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What both encoders read of those texts that either cuts off."""
        first, second = (kept_texts(tokenizer, texts, LENGTH) for tokenizer in self.tokenizers)
        return {text: min(first.get(text, text), second.get(text, text), key=len) for text in first | second}

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """`text`, fp32 (R, 77, C of both); `pooled`, fp32 (R, C of the second); `mask` (R, 77), True to the closing token."""
        outputs, masks = [], []
        for model, tokenizer in zip((self.first, self.second), self.tokenizers, strict=True):
            tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
            tokens = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            outputs.append(model(**tokens))
            masks.append(tokens["attention_mask"].bool())
        text = torch.cat([output.last_hidden_state.float() for output in outputs], dim=-1)
        return {"text": text, "pooled": outputs[1].pooler_output.float(), "mask": masks[1]}
