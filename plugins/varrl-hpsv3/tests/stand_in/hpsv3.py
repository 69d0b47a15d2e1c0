"""In place of the package hpsv3, which needs an environment of its own: check.sh asks the genuine one."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

made: list[HPSv3RewardInferencer] = []
failure: Exception | None = None
columns = 2


class HPSv3RewardInferencer:
    """Mean: of the red channel, 0 to 255. Log of the deviation: a tenth of the prompt's length. Remembers what it was given."""

    def __init__(self, **files: Any) -> None:
        made.append(self)
        if failure is not None:
            raise failure
        self.files = files
        self.model = torch.nn.Linear(2, 2).bfloat16()
        self.model.train()
        self.calls: list[tuple[list[Any], list[str]]] = []
        self.gradient = True

    def reward(self, *, image_paths: list[Any], prompts: list[str]) -> torch.Tensor:
        """(images, columns), as long as there are two columns."""
        warnings.warn("CUDA is not available or torch_xla is imported. Disabling autocast.", stacklevel=1)
        self.calls.append((image_paths, prompts))
        self.gradient = torch.is_grad_enabled()
        means = [sum(p.getchannel("R").tobytes()) / math.prod(p.size) for p in image_paths]
        rows = [[mean] * (columns - 1) + [len(text) / 10] for mean, text in zip(means, prompts, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)
