"""Fits initial values of a `MultiScaleVQ`: principal patterns and k-means codes, scale after scale."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ


@torch.no_grad()
def fit_codes(
    tokenizer: MultiScaleVQ,
    images: Float[Tensor, "R 3 H W"],
    plain: Float[Tensor, "R 3 H W"],
    generator: torch.Generator,
    samples: int = 60_000,
    iterations: int = 15,
) -> list[float]:
    """Fit each scale to the residual of the scales before it; return the mean squared error after each scale.

    With random codes, decoded pictures stay illegible for minutes of training. With these they are legible at once, and only
    `refine` is left to train.

    Args:
        images: pictures to fit; a few thousand.
        plain: the same pictures without their details, for the scales of content.
        generator: samples the tiles, the first codes and the replacements of empty ones.
        samples: tiles that k-means sees at most.
        iterations: of k-means.
    """
    tokenizer.mean.copy_(images.mean(dim=(0, 2, 3)).view(3, 1, 1))
    latent = torch.zeros_like(images)  # plain picture and details together
    errors = []
    for t, (codes, patterns) in enumerate(zip(tokenizer.codes, tokenizer.patterns, strict=True)):
        residual = tokenizer.target(plain if t < tokenizer.content else images) - latent
        tiles = tokenizer.tiles_of(residual, t).flatten(0, 1)
        tiles = tiles[torch.randperm(len(tiles), generator=generator)[:samples]]
        patterns.copy_(torch.linalg.svd(tiles[: samples // 3], full_matrices=False).Vh[: len(patterns)])
        codes.copy_(k_means(tiles @ patterns.T, len(codes), generator, iterations))
        tokens = torch.cat([tokenizer.distances(part, t).argmin(dim=-1) for part in residual.split(512)])
        added = tokenizer.embed(tokens, t)
        latent = latent + added
        errors.append((residual - added).pow(2).mean().item())
    return errors


def k_means(points: Float[Tensor, "R C"], count: int, generator: torch.Generator, iterations: int) -> Float[Tensor, "V C"]:
    """`count` centres by Lloyd's algorithm; a centre that loses all its points moves to a random one.

    Raises:
        ValueError: with fewer points than centres.
    """
    if len(points) < count:
        raise ValueError(f"{count} centres need at least as many points, got {len(points)}; give more pictures")
    centres = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(iterations):
        half_squares = centres.pow(2).sum(dim=-1) / 2
        nearest = torch.cat([(half_squares - part @ centres.T).argmin(dim=-1) for part in points.split(8192)])
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(-1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        fresh = points[torch.randint(len(points), (count,), generator=generator)]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), fresh)
    return centres
