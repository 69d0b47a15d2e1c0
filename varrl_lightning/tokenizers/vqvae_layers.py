"""The convolutional encoder and decoder of VAR's VQ-VAE: the VQGAN design, in the published layout of its weights."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6
"""Epsilon of all group norms."""


def norm(channels: int) -> nn.GroupNorm:
    """Group norm in 32 groups."""
    return nn.GroupNorm(32, channels, eps=EPSILON)


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 convolution of x where channels change."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R E H W"]:
        """Apply two convolutions and the shortcut around them."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        y: Tensor = self.nin_shortcut(x) + h
        return y


class PixelAttention(nn.Module):
    """Single-head self-attention over all places of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.proj_out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """Let every place attend to every other."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (R, H W, C) each
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(-1, x.shape[-2:])
        attended: Tensor = x + self.proj_out(seen)
        return attended


class Resample(nn.Module):
    """Double or halve a map, by a 3x3 convolution after the nearest neighbour or with stride 2."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H2 W2"]:
        """Change the resolution; halving pads at the right and at the bottom only."""
        resized: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))
        return resized


class Level(nn.Module):
    """The residual blocks of one resolution, with attention after each at the coarsest, and the change to the next resolution."""

    def __init__(self, channels: int, out: int, blocks: int, attends: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([Residual(channels if i == 0 else out, out) for i in range(blocks)])
        self.attn = nn.ModuleList([PixelAttention(out) for _ in range(blocks)] if attends else [])

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R E H2 W2"]:
        """Apply all blocks, then the change of resolution if there is one."""
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    """Residual, attention, residual at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            Residual(channels, channels),
            PixelAttention(channels),
            Residual(channels, channels),
        )

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """Apply the three in order."""
        middle: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return middle


class Encoder(nn.Module):
    """Image in [-1, 1] to features, one resolution after the other."""

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([width, *widths[:-1]], widths, strict=True)):
            level = Level(before, after, blocks, attends=i == len(widths) - 1)
            if i < len(widths) - 1:
                level.downsample = Resample(after, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, images: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R C h w"]:
        """Features before the convolution in front of the quantiser."""
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        features: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return features


class Decoder(nn.Module):
    """Features to image, the encoder backwards with one more block a resolution."""

    def __init__(self, channels: int, width: int, multipliers: Sequence[int], blocks: int) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for i, (before, after) in reversed(list(enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)))):
            level = Level(before, after, blocks + 1, attends=i == len(widths) - 1)
            if i > 0:
                level.upsample = Resample(after, up=True)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # level 0 is the finest, and runs last
        self.norm_out, self.conv_out = norm(width * multipliers[0]), nn.Conv2d(width * multipliers[0], 3, 3, padding=1)

    def forward(self, latents: Float[Tensor, "R C h w"]) -> Float[Tensor, "R 3 H W"]:
        """RGB around [-1, 1], not clamped."""
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        image: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return image
