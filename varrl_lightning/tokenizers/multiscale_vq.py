"""Multi-scale residual vector quantisation of small pictures: image <-> tokens <-> latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.schedule import Schedule

_CELL = (8, 4)
"""Size in pixels of a cell's thumbnail, which the transformer reads; the same for tiles of every size."""


class MultiScaleVQ(nn.Module):
    """Codes a picture as a sum of tiles, scale after scale, each scale on the residual of the earlier ones.

    The first `content` scales code the plain picture, letters on one colour. The others code the details that the complete picture
    adds: material, light, shadows. The latent holds both, each a picture around zero, three channels after three. A token of scale
    t adds one of `vocab_size` coloured tiles of H/h_t x W/w_t pixels to one of them. A tile combines at most `ranks[t]` orthonormal
    patterns:

        plain_0 = details_0 = 0
        plain_{t+1} = plain_t + tiles(codes_t[tokens_t] @ patterns_t), and so the details from t = `content` on
        image = x + refine(x) + mean,    x = plain_T + strength * details_T

    Details are coded at full strength and painted at `strength`: sampled details are never perfect, and must not hurt reading.
    `refine` is a small convolutional net. It sees latents of several depths in training, so that they decode to legible pictures.

    Args:
        schedule: the token grids; each must divide the picture.
        vocab_size: codes of each scale.
        ranks: number of patterns of each scale.
        content: number of scales that code the plain picture; all when None.
        strength: of the details in a decoded picture, from 0 to 1, where 1 paints them as coded.
        width: channels of `refine`.
    """

    codes: nn.ParameterList
    patterns: nn.ParameterList
    mean: Tensor

    def __init__(
        self,
        schedule: Schedule,
        vocab_size: int = 512,
        ranks: tuple[int, ...] = (),
        content: int | None = None,
        strength: float = 1.0,
        width: int = 48,
    ) -> None:
        super().__init__()
        _check_arguments(schedule, ranks, strength)
        height, image_width = schedule.image_size
        self.schedule = schedule
        self.vocab_size = vocab_size
        self.content = len(schedule) if content is None else content
        self.strength = strength
        self.tiles = tuple((height // h, image_width // w) for h, w in schedule.grids)
        areas = [3 * h * w for h, w in self.tiles]
        self.codes = nn.ParameterList([torch.randn(vocab_size, min(r, a)) for r, a in zip(ranks, areas, strict=True)])
        self.patterns = nn.ParameterList([torch.randn(min(r, a), a) for r, a in zip(ranks, areas, strict=True)])
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.refine = _refine(width)

    @property
    def channels(self) -> int:
        """Features per token of `next_input`."""
        return 3 * _CELL[0] * _CELL[1]

    def begin(self, rows: int) -> Float[Tensor, "R 6 H W"]:
        """The latent before any scale: plain picture and details are zero."""
        return self.mean.new_zeros(rows, 6, *self.schedule.image_size)

    def embed(self, tokens: Int[Tensor, "R n"], t: int) -> Float[Tensor, "R 3 H W"]:
        """The contribution of the tokens of scale t to the latent, in fp32."""
        with torch.autocast(tokens.device.type, enabled=False):
            flat = self.codes[t].float()[tokens] @ self.patterns[t].float()
            return _join(flat, self.schedule.grids[t], self.tiles[t])

    def accumulate(self, latent: Float[Tensor, "R 6 H W"], tokens: Int[Tensor, "R n"], t: int) -> Float[Tensor, "R 6 H W"]:
        """The latent after scale t."""
        plain, details = latent.float().chunk(2, dim=1)
        added = self.embed(tokens, t)
        return torch.cat((plain + added, details) if t < self.content else (plain, details + added), dim=1)

    def next_input(self, latent: Float[Tensor, "R 6 H W"], t: int) -> Float[Tensor, "R n C"]:
        """The transformer's input from the latent when it predicts scale t: one 8x4 thumbnail of each tile."""
        h, w = self.schedule.grids[t]
        with torch.autocast(latent.device.type, enabled=False):
            resized = F.interpolate(_together(latent.float()), (h * _CELL[0], w * _CELL[1]), mode="area")
            return _cut(resized, (h, w), _CELL)

    def decode_latent(self, latent: Float[Tensor, "R 6 H W"]) -> Float[Tensor, "R 3 H W"]:
        """The picture of a latent, complete or cut off after any scale; RGB in [0, 1], differentiable inside that range."""
        return self.restore(latent).clamp(0, 1)

    def restore(self, latent: Float[Tensor, "R 6 H W"]) -> Float[Tensor, "R 3 H W"]:
        """The picture before it is clamped, for the reconstruction loss."""
        with torch.autocast(latent.device.type, enabled=False):
            plain, details = latent.float().chunk(2, dim=1)
            painted = plain + self.strength * details
            refined: Tensor = self.refine(painted)
            return painted + refined + self.mean

    def paint(self, images: Float[Tensor, "R 3 H W"], plain: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R 3 H W"]:
        """The target that the tokens of a picture should decode to: the picture with its details at `strength`."""
        return plain + self.strength * (images - plain)

    @torch.no_grad()
    def encode(
        self, images: Float[Tensor, "R 3 H W"], plain: Float[Tensor, "R 3 H W"] | None = None, near: Sequence[int] = ()
    ) -> list[Int[Tensor, "R _n"]]:
        """The tokens of each scale: the tile nearest to the residual.

        Args:
            images: RGB in [0, 1].
            plain: what the `content` scales code; the images themselves when None.
            near: for each scale, sample among this many nearest tiles; the nearest where empty. Used only to train `refine`
                against the details that a sampler gets wrong.
        """
        latent = self.begin(len(images))
        tokens = []
        for t, count in enumerate(near or (1,) * len(self.schedule)):
            residual = self.target(images if plain is None or t >= self.content else plain) - _together(latent)
            candidates = self.distances(residual, t).topk(count, dim=-1, largest=False).indices
            choice = torch.randint(count, (*candidates.shape[:-1], 1), device=candidates.device)
            tokens.append(candidates.gather(-1, choice).squeeze(-1))
            latent = self.accumulate(latent, tokens[-1], t)
        return tokens

    def target(self, images: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R 3 H W"]:
        """What the plain picture and the details of the latent should sum to."""
        return images.float() - self.mean

    def tiles_of(self, latent: Float[Tensor, "R 3 H W"], t: int) -> Float[Tensor, "R n area"]:
        """The latent cut into the tiles of scale t."""
        return _cut(latent, self.schedule.grids[t], self.tiles[t])

    def distances(self, residual: Float[Tensor, "R 3 H W"], t: int) -> Float[Tensor, "R n V"]:
        """Squared distance of each tile's coordinates to each code of scale t, up to a constant of the tile."""
        codes: Tensor = self.codes[t]
        coordinates: Tensor = self.tiles_of(residual, t) @ self.patterns[t].T
        return codes.pow(2).sum(dim=-1) - 2 * coordinates @ codes.T


def _check_arguments(schedule: Schedule, ranks: tuple[int, ...], strength: float) -> None:
    height, width = schedule.image_size
    if any(height % h or width % w for h, w in schedule.grids):
        raise ValueError(f"every grid must divide the {height}x{width} picture, got {schedule.grids}")
    if len(ranks) != len(schedule):
        raise ValueError(f"ranks must name one number for each of the {len(schedule)} scales, got {ranks}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")


def _refine(width: int) -> nn.Sequential:
    """A small convolutional net on half the resolution, from picture to picture."""
    return nn.Sequential(
        nn.PixelUnshuffle(2),
        nn.Conv2d(12, width, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(width, 12, 3, padding=1),
        nn.PixelShuffle(2),
    )


def _together(latent: Float[Tensor, "R 6 H W"]) -> Float[Tensor, "R 3 H W"]:
    plain, details = latent.chunk(2, dim=1)
    return plain + details


def _cut(latent: Float[Tensor, "R 3 H W"], grid: tuple[int, int], tile: tuple[int, int]) -> Float[Tensor, "R n area"]:
    rows = len(latent)
    parts = latent.reshape(rows, 3, grid[0], tile[0], grid[1], tile[1]).permute(0, 2, 4, 1, 3, 5)  # (R, h, w, 3, tile h, tile w)
    return parts.reshape(rows, grid[0] * grid[1], 3 * tile[0] * tile[1])


def _join(parts: Float[Tensor, "R n area"], grid: tuple[int, int], tile: tuple[int, int]) -> Float[Tensor, "R 3 H W"]:
    rows = len(parts)
    latent = parts.reshape(rows, grid[0], grid[1], 3, tile[0], tile[1]).permute(0, 3, 1, 4, 2, 5)  # (R, 3, h, tile h, w, tile w)
    return latent.reshape(rows, 3, grid[0] * tile[0], grid[1] * tile[1])
