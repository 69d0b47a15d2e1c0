"""Which picture would people prefer? ImageReward, a BLIP that was trained on their comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.rewards.blip import read_blip
from varrl_lightning.rewards.clip import clip_pixels
from varrl_lightning.rewards.cut_prompts import warn_of_cuts
from varrl_lightning.text_encoders.base import read_tokenizer
from varrl_lightning.types import Prompt

CENTRE, SCALE = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the head's numbers, by the authors."""
LENGTH = 35
"""Tokens that are read of a text."""
SPECIAL = ("[DEC]", "[ENC]")
"""What BLIP adds to BERT's vocabulary, in this order."""
PAD = "[PAD]"


class ImageReward(BaseReward):
    """How much people would prefer the picture for its prompt, by ImageReward (Xu et al., arXiv 2304.05977).

        R = (h(t(text, f(image))) - 0.167) / 1.033,   t the text encoder's first token, h five linear layers

    Without bounds; its authors scaled it to mean 0 and standard deviation 1 over their pictures. The text encoder attends to the
    image's features. The image is prepared as for CLIP: 8 bits, shorter side to the model's resolution, centre. A text is cut off
    at 35 tokens, which is said before training. It has a gradient.

    Args:
        path: the weights, `ImageReward.pt` of the hub's `THUDM/ImageReward`; see `read_tensors`. med_config.json is not needed.
        tokenizer: that of uncased BERT, as a folder that transformers writes or a hub id `owner/name`.
        dtype: of BLIP, `float32`, `bfloat16` or `float16`; the head is in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such file, folder or repository within reach.
        ValueError: when a tensor of the file is missing, foreign or misshaped, when the tokenizer is another model's, or on a
            number out of its range.
    """

    def __init__(
        self,
        path: str | Path = "THUDM/ImageReward/ImageReward.pt",
        *,
        tokenizer: str | Path = "google-bert/bert-base-uncased",
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        if images_at_once < 1:
            raise ValueError(f"images_at_once must be at least 1, got {images_at_once}")
        self.tokenizer = _tokenizer(tokenizer)
        # No nn.Module, so that a LightningModule that holds this neither saves nor trains the model.
        parts = read_blip(path, dtype)
        self.vision = parts.vision
        self.text = parts.text
        self.head = parts.head
        self.images_at_once = images_at_once
        known, rows = len(self.tokenizer), self.text.config.vocab_size
        if known != rows:
            raise ValueError(
                f"the tokenizer {tokenizer} has {known} tokens with BLIP's own two, and {path} has embeddings of {rows}: give that "
                "of uncased BERT (tokenizer)"
            )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that the model does not read to their ends."""
        warn_of_cuts(self.tokenizer, prompts, LENGTH, type(self).__name__)

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The reward of each image for its prompt; the models follow the images to their device."""
        if not prompts:
            return images.new_zeros(0, dtype=torch.float32)
        self.vision.to(images.device)
        self.text.to(images.device)
        texts, n = [prompt.text for prompt in prompts], self.images_at_once
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._values(images[i : i + n], texts[i : i + n]) for i in range(0, len(texts), n)])

    def _values(self, images: Float[Tensor, "_n 3 H W"], texts: list[str]) -> Float[Tensor, " _n"]:
        pixels = clip_pixels(images, self.vision.config.image_size).to(self.vision.dtype)
        seen = self.vision(pixels).last_hidden_state
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        inputs = {name: tokens[name].to(images.device) for name in ("input_ids", "attention_mask")}
        values: Tensor = self.text(**inputs, encoder_hidden_states=seen).last_hidden_state[:, 0].float()
        for weight, bias in self.head:
            values = F.linear(values, weight.to(values.device), bias.to(values.device))
        return (values.squeeze(-1) - CENTRE) / SCALE


def _tokenizer(path: str | Path) -> Any:
    tokenizer = read_tokenizer(path)
    if tokenizer.convert_tokens_to_ids(PAD) != 0:
        raise ValueError(f"the tokenizer {path} does not begin with {PAD}, as BERT's does: give that of uncased BERT (tokenizer)")
    tokenizer.pad_token = PAD  # the published settings do not say it
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    return tokenizer
