"""HPSv3: how much people would like an image for its prompt."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_hpsv3 import model
from varrl_hpsv3.inputs import as_pictures, without_special_tokens
from varrl_lightning.types import Prompt, Scores


class HPSv3:
    """The human preference score of Ma et al. 2025 (arXiv 2508.03789), minus a share of its own uncertainty.

        R = mu - uncertainty * sigma

    The model's second output is log(sigma): its loss draws the score from N(mu, exp(output)^2). Special tokens are taken out
    of prompts, images go in as pixels only. The model, 16 GB in bfloat16, is loaded on first use in each process, once:
    a failure is not tried again. Images that are not finite get no score.

    Args:
        device: such as `cuda:1`; that of the images when None, else the current GPU, else the CPU (in float32, 32 GB).
        config_path: hpsv3's YAML; the published one when None.
        checkpoint_path: the weights; `MizzenAI/HPSv3` from the hub when None.
        uncertainty: c >= 0 in `mu - c * sigma`; 0 is mu itself.
        batch_size: images per call of the model, at least 1.

    Raises:
        HPSv3Error: when hpsv3 is not installed; on first use, when it cannot be loaded.
        FileNotFoundError: when a given file is not there.
        ValueError: on a number or a device that cannot be.
    """

    def __init__(
        self,
        device: str | None = None,
        config_path: str | Path | None = None,
        checkpoint_path: str | Path | None = None,
        uncertainty: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        if not 0 <= uncertainty < math.inf:
            raise ValueError(f"uncertainty must be finite and >= 0, got {uncertainty}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.device = None if device is None else _known_device(device)
        self.config_path = model.existing_file("config_path", config_path)
        self.checkpoint_path = model.existing_file("checkpoint_path", checkpoint_path)
        self.uncertainty, self.batch_size = uncertainty, batch_size
        model.check_installed()
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Scores:
        """Score images, on a scale without bounds; `mu` and `sigma` are components."""
        if len(images) != len(prompts):
            raise ValueError(f"got {len(images)} images and {len(prompts)} prompts; expected one prompt per image")
        finite = images.isfinite().flatten(1).all(dim=1).cpu()
        rows = finite.nonzero().flatten().tolist()
        answers = torch.full((len(images), 2), torch.nan)
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            texts = [without_special_tokens(prompts[row].text) for row in batch]
            answers[batch] = model.ask(self._inferencer(images.device), as_pictures(images[batch]), texts)
        mu, sigma = answers[:, 0], answers[:, 1].exp()
        # Without a share of sigma, one that overflowed must not touch the value.
        values = mu - self.uncertainty * sigma if self.uncertainty else mu
        return Scores(values=values, components={"mu": mu, "sigma": sigma}, valid=values.isfinite())

    def prepare(self) -> None:
        """Load the model now, which takes minutes, rather than on the first image.

        Raises:
            HPSv3Error: see `model.load`.
        """
        self._inferencer(torch.device("cpu"))

    def _inferencer(self, images_are_on: torch.device) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                opened = model.load(self.config_path, self.checkpoint_path, self.device or _own_device(images_are_on))
            except Exception as error:
                # A service asks again with half of the images, then half of these: each time it would wait for the same failure.
                opened = error
            self._opened = (os.getpid(), opened)
        if isinstance(self._opened[1], Exception):
            raise self._opened[1]
        return self._opened[1]


def _known_device(device: str) -> str:
    try:
        known = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be such as 'cuda', 'cuda:1' or 'cpu', got {device!r}") from error
    if known.type == "cuda" and (known.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} is not there: torch sees {torch.cuda.device_count()} GPUs")
    return str(known)


def _own_device(images_are_on: torch.device) -> str:
    if images_are_on.type != "cpu":
        return str(images_are_on)
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
