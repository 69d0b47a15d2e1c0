"""Pictures of the kinds that models were trained on, with their captions: what a policy has to find likelier than chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from varrl_lightning.types import Prompt

ASSETS = Path(__file__).parent.parent / "assets" / "known_pictures"


@dataclass(frozen=True)
class KnownPicture:
    """A picture and the prompt that it answers.

    Args:
        path: a file that Pillow reads.
        prompt: its caption, with the ImageNet class as the label where the picture shows one.
    """

    path: Path
    prompt: Prompt

    def pixels(self, size: tuple[int, int]) -> Float[Tensor, "1 3 H W"]:
        """RGB in [0, 1] at a size `(height, width)`: scaled until it covers it, then cut to it around the middle.

        Raises:
            OSError: when the file cannot be read, or holds no picture.
        """
        height, width = size
        with Image.open(self.path) as picture:
            fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(fitted, dtype=np.float32) / 255).permute(2, 0, 1)[None].contiguous()


CAT = KnownPicture(ASSETS / "cat.jpg", Prompt("a close-up photograph of the face of a tabby cat", label=281))
SIGN = KnownPicture(ASSETS / "sign.png", Prompt('a red wooden sign that says "OPEN LATE"'))
