"""Does the image show what its prompt says? SigLIP, a model of pairs that gives each its own probability."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from varrl_lightning.rewards.clip import CLIPReward, normalised, resized
from varrl_lightning.text_encoders.base import read_pretrained, small_files
from varrl_lightning.types import Prompt, Scores

RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the resamplings that SigLIP's models are published with."""
WITHOUT_PUNCTUATION = "SiglipTokenizer"
"""The tokenizer of the first SigLIP; that of SigLIP 2 keeps punctuation."""


class SigLIPScore(CLIPReward):
    """The probability that image and text are a pair, by SigLIP (Zhai et al., arXiv 2303.15343).

        R = sigmoid(l),   l = exp(logit scale) cos(f(image), g(text)) + logit bias

    In [0, 1]; the logit l in [-s + b, s + b], s and b those of the weights. A pair needs a high l to be likely, so that most
    pictures have an R near 0: `value="logit"` has no such end. The image is rounded to 8 bits and brought to the model's square,
    whatever its shape. A text is read in lower case, by the first SigLIP also without punctuation, and filled up to the 64 tokens
    that the model reads; a longer one is cut off, which is said before training.

    Args:
        path: a SiglipModel with its tokenizer, as a folder that transformers writes or a hub id `owner/name`; a SigLIP 2 of fixed
            resolution is one too. Its preprocessor_config.json says how images are resampled and normalised.
        value: `probability` for R, or `logit` for l.
        dtype: of the model, `float32`, `bfloat16` or `float16`; similarities are taken in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds something else, on another value, or on a number out of its range.
    """

    def __init__(
        self,
        path: str | Path = "google/siglip-so400m-patch14-384",
        *,
        value: str = "probability",
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        if value not in ("probability", "logit"):
            raise ValueError(f"value must be probability or logit, got {value!r}")
        super().__init__(path, dtype, images_at_once, read=_read)
        self.value = value
        folder = small_files(path)
        self.mode, self.mean, self.std = _preparation(folder)
        self.punctuation = _settings(folder / "tokenizer_config.json").get("tokenizer_class") != WITHOUT_PUNCTUATION

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images against their prompts' texts, with the components `logit` and `cosine`."""
        cosine = self.cosine(images, [prompt.text for prompt in prompts])
        logit = self._logit(cosine)
        return Scores(logit if self.value == "logit" else logit.sigmoid(), components={"logit": logit, "cosine": cosine})

    def differentiable(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """The logit, whatever `value` is, with a gradient to the images: a probability near 0 has hardly any.

        Rounding and clamping to 8 bits pass the gradient on unchanged.
        """
        return self._logit(self.cosine(images, [prompt.text for prompt in prompts]))

    def _logit(self, cosine: Float[Tensor, " _n"]) -> Float[Tensor, " _n"]:
        scale, bias = self.model.logit_scale, self.model.logit_bias
        logit: Tensor = scale.float().exp() * cosine + bias.float()
        return logit

    @torch.no_grad()
    def _text_features(self, texts: list[str], device: torch.device) -> Float[Tensor, "_n C"]:
        texts = [self._plain(text) for text in texts]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt")
        with torch.autocast(device.type, enabled=False):
            # Without a mask: the model was trained to read the padding, and its features are those of the last token.
            return F.normalize(self.model.text_model(tokens["input_ids"].to(device)).pooler_output.float(), dim=-1)

    def _embed_images(self, images: Float[Tensor, "_n 3 H W"]) -> Float[Tensor, "_n C"]:
        side = self.model.config.vision_config.image_size
        pixels = normalised(resized(images, (side, side), self.mode), self.mean, self.std).to(self.model.dtype)
        return F.normalize(self.model.vision_model(pixels).pooler_output.float(), dim=-1)

    def _plain(self, text: str) -> str:
        text = text.lower()
        return text if self.punctuation else _without_punctuation(text)


def _without_punctuation(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(str.maketrans("", "", string.punctuation))).strip()


def _read(path: str | Path, dtype: str) -> tuple[nn.Module, Any]:
    return read_pretrained(path, "SiglipModel", dtype)


def _preparation(folder: Path) -> tuple[str, Sequence[float], Sequence[float]]:
    """How images are resampled, and their channels' means and standard deviations; the first SigLIP's where none are given."""
    file = folder / "preprocessor_config.json"
    settings: dict[str, Any] = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3} | _settings(file)
    if settings["resample"] not in RESAMPLING:
        known = " or ".join(f"{number} ({mode})" for number, mode in RESAMPLING.items())
        raise ValueError(f"{file}: resample must be {known}, got {settings['resample']}")
    return RESAMPLING[settings["resample"]], settings["image_mean"], settings["image_std"]


def _settings(file: Path) -> dict[str, Any]:
    """The content of a JSON file, and nothing where there is none."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
