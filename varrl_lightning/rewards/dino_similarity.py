"""Does the image show the same subject as a reference picture? DINO's features, compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from varrl_lightning.errors import listed
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.rewards.clip import prepared_pixels
from varrl_lightning.text_encoders.base import read_model
from varrl_lightning.types import Prompt

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""What DINOv2's images were normalised with."""
SHORT_SIDE = 8 / 7
"""The shorter side, of the side that is cut out: 256 of 224."""


class DinoSimilarity(BaseReward):
    """Cosine of DINOv2's features of the image and of a reference picture (DreamBooth's DINO metric, arXiv 2208.12242, by DINOv2).

        R = cos(f(image), f(reference)),   f the feature of the class token after the last layer norm

    In [-1, 1]; 1 for the reference itself. A prompt names its reference in a column of the prompt file, which is in `Prompt.extra`.
    Images and references are rounded to 8 bits, their shorter side is brought to 8/7 of `side` (bicubic), and the centre is cut
    out. It has a gradient.

    Args:
        path: a Dinov2Model, as a folder that transformers writes or a hub id `owner/name`.
        column: the prompts' field that has the path of the reference picture.
        folder: relative paths are looked for in it; the current folder by default.
        side: pixels of the picture that the model sees, a multiple of its patches.
        dtype: of the model, `float32`, `bfloat16` or `float16`; similarities are taken in float32.
        images_at_once: images that pass through the model at one time.

    Raises:
        FileNotFoundError: when there is no such model within reach.
        ValueError: when it holds something else, or on a number out of its range.
    """

    def __init__(
        self,
        path: str | Path = "facebook/dinov2-base",
        *,
        column: str = "reference",
        folder: str | Path = ".",
        side: int = 224,
        dtype: str = "float32",
        images_at_once: int = 32,
    ) -> None:
        if images_at_once < 1:
            raise ValueError(f"images_at_once must be at least 1, got {images_at_once}")
        # No nn.Module, so that a LightningModule that holds this neither saves nor trains the model.
        model: Any = read_model(path, "Dinov2Model", dtype)
        patch = int(model.config.patch_size)
        if side < patch or side % patch:
            raise ValueError(f"side must be a multiple of the model's patches of {patch} pixels, got {side}")
        self.model: Any = model
        self.column, self.folder, self.side, self.images_at_once = column, Path(folder), side, images_at_once
        self._known: dict[Path, Tensor] = {}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Check that each prompt that names a reference names a picture.

        Raises:
            ValueError: when no prompt has the column, or a file is missing or no picture; names them.
        """
        named = [prompt for prompt in prompts if self.can_score(prompt)]
        if prompts and not named:
            columns = sorted({name for prompt in prompts for name in prompt.extra})
            raise ValueError(
                f"no prompt has the column {self.column!r} with the path of a reference picture; the prompts' own columns are: "
                f"{listed(columns) or 'none'}. Add it to the prompt file, or name another by `column`"
            )
        wrong = {str(path): why for prompt in named if (why := _no_picture(path := self._path(prompt)))}
        if wrong:
            raise ValueError(f"these references are no pictures: {'; '.join(f'{path} ({why})' for path, why in wrong.items())}")

    def can_score(self, prompt: Prompt) -> bool:
        """Whether the prompt names a reference."""
        return isinstance(prompt.extra.get(self.column), str)

    def __call__(self, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> Float[Tensor, " N"]:
        """Similarity of each image to its prompt's reference; NaN where the prompt names none."""
        rows = [row for row, prompt in enumerate(prompts) if self.can_score(prompt)]
        values = images.new_full((len(images),), torch.nan, dtype=torch.float32)
        if rows:
            references = torch.stack([self._reference(self._path(prompts[row]), images.device) for row in rows])
            index = torch.tensor(rows, device=images.device)
            values = values.index_put((index,), (self.features(images[index]) * references).sum(dim=-1))
        return values

    def features(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C"]:
        """Features of unit length in float32; the model follows the images to their device."""
        self.model.to(images.device)
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self._features(part) for part in images.split(self.images_at_once)])

    def _features(self, images: Float[Tensor, "_n 3 H W"]) -> Float[Tensor, "_n C"]:
        pixels = prepared_pixels(images, round(SHORT_SIDE * self.side), self.side, MEAN, STD).to(self.model.dtype)
        return F.normalize(self.model(pixels).pooler_output.float(), dim=-1)

    @torch.no_grad()
    def _reference(self, path: Path, device: torch.device) -> Float[Tensor, " C"]:
        """The features of a reference, read once."""
        if path not in self._known:
            pixels = np.array(_read_picture(path))
            picture = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device).float() / 255
            self._known[path] = self.features(picture)[0]
        return self._known[path].to(device)

    def _path(self, prompt: Prompt) -> Path:
        return self.folder / str(prompt.extra[self.column])


def _read_picture(path: Path) -> Image.Image:
    """A picture as a viewer shows it: turned as the camera says, and what is transparent on white.

    Raises:
        ValueError: for one with more than 8 bits to a channel.
        Exception: whatever Pillow raises for a damaged file.
    """
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode[0] in "IF":
            raise ValueError(f"it has {picture.mode} pixels; save it with 8 bits to a channel")
        if picture.has_transparency_data:
            shown = picture.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
        return picture.convert("RGB")


def _no_picture(path: Path) -> str | None:
    """Why a file is no picture; None when it is one."""
    try:
        _read_picture(path)
    except Exception as error:  # of a damaged file Pillow raises whatever its format does
        return str(error).split(":")[0] or type(error).__name__
    return None
