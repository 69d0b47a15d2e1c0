"""The convolutional encoder and decoder around Infinity's binary quantiser: VQGAN without any attention."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.tokenizers.vqvae_layers import Level, Resample, Residual, norm


class Middle(nn.Module):
    """Two residual blocks at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = Residual(channels, channels), Residual(channels, channels)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """Apply both blocks, one after the other."""
        middle: Tensor = self.block_2(self.block_1(x))
        return middle


class Encoder(nn.Module):
    """Image in [-1, 1] to features; every level but the last halves the resolution.

    Args:
        channels: of the features.
        stem: channels of the first convolution.
        widths: channels of each level.
        blocks: residual blocks of a level.
    """

    def __init__(self, channels: int, stem: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, stem, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([stem, *widths[:-1]], widths, strict=True)):
            level = Level(before, after, blocks, attends=False)
            if i < len(widths) - 1:
                level.downsample = Resample(after, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R C h w"]:
        """Features whose signs are the bits."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        features: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return features


class Decoder(nn.Module):
    """Latent to image; the finest level is the first in `widths` and runs last.

    Args:
        channels: of the latent.
        widths: channels of each level.
        blocks: residual blocks of a level.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList()
        for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level = Level(before, after, blocks, attends=False)
            if i > 0:
                level.upsample = Resample(after, up=True)
            self.up.append(level)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Float[Tensor, "R C h w"]) -> Float[Tensor, "R 3 H W"]:
        """RGB around [-1, 1], not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        image: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return image
