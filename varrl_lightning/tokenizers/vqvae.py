"""VAR's multi-scale VQ-VAE, which Switti uses too: image <-> tokens <-> latent, in the published layout of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.vqvae_layers import Decoder, Encoder
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import numbered, require

MARKS = ("quantize.embedding.weight",)
"""Tensors by which a tokenizer of this family is known among others in a file."""
COMPUTED = ("quantize.ema_vocab_hit_SV",)
"""Tensors that the public code stores, and that only its training used."""


class Phi(nn.Conv2d):
    """Sharpens what upsampling blurs: (1 - r) h + r conv(h)."""

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__(channels, channels, kernel_size=3, padding=1)
        self.ratio = abs(ratio)

    def forward(self, h: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """Blend a map with its convolution."""
        return (1 - self.ratio) * h + self.ratio * super().forward(h)


class Quantizer(nn.Module):
    """The codebook, and the Phis by which its entries are added to a latent.

    Args:
        vocab_size: entries of the codebook.
        channels: of an entry.
        phis: how many different Phis the scales share; 0 for none at all.
        layout: `qresi_ls`, `qresi` (one for all scales) or `numbered` (one per scale): how the published names are written.
        ratio: r of every Phi.
    """

    def __init__(self, vocab_size: int, channels: int, phis: int, layout: str, ratio: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, channels)
        self.layout = layout
        phi_list = nn.ModuleList([Phi(channels, ratio) for _ in range(phis)])
        self.quant_resi: nn.Module = phi_list if layout == "numbered" else nn.Module()
        if layout == "qresi_ls":
            self.quant_resi.qresi_ls = phi_list
        elif layout == "qresi":
            self.quant_resi.qresi = phi_list[0]

    def phi(self, scale: int, scales: int) -> nn.Module:
        """The Phi whose tick in [0, 1] lies nearest to the place of `scale` in a schedule of `scales`; the first of two."""
        if self.layout == "qresi":
            return self.quant_resi.get_submodule("qresi")
        phis = self.quant_resi.qresi_ls if self.layout == "qresi_ls" else self.quant_resi
        assert isinstance(phis, nn.ModuleList)
        count = len(phis)
        if count == 0:
            return nn.Identity()
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        # With 10 scales and 4 Phis, scales lie half-way between two ticks, where rounding decides: numpy's, as in training.
        ticks = np.linspace(margin, 1 - margin, count)
        return phis[int(np.argmin(np.abs(ticks - scale / max(scales - 1, 1))))]


class VQVAE(nn.Module):
    """Codes an image as a sum of token maps, scale after scale, each on the residual of the earlier ones.

        f_0 = 0,    f_{t+1} = f_t + Phi_t(up(codebook[tokens_t])),    image = decoder(f_T)

    `up` is bicubic to the last grid; the transformer's next input is f_{t+1} averaged down to the next grid (`area`). Which Phi a
    scale has depends on the number of all scales, so that a prefix of a schedule for 512 pixels is no schedule for 256.

    Args:
        vocab_size: entries of the codebook.
        channels: of the latent.
        width: channels of the outermost convolutions; `multipliers` times that inside.
        multipliers: of the width, one per resolution: each but the first halves it.
        blocks: residual blocks of a resolution in the encoder; the decoder has one more.
        phis: as in `Quantizer`.
        layout: as in `Quantizer`.
        ratio: as in `Quantizer`.
        kernel: size of the convolutions around the quantiser.
        normalised: the nearest code is by cosine, not by distance.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        channels: int = 32,
        width: int = 160,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        phis: int = 4,
        layout: str = "qresi_ls",
        ratio: float = 0.5,
        kernel: int = 3,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, width, multipliers, blocks)
        self.decoder = Decoder(channels, width, multipliers, blocks)
        self.quantize = Quantizer(vocab_size, channels, phis, layout, ratio)
        self.quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.vocab_size, self.channels, self.normalised = vocab_size, channels, normalised
        self.stride = 2 ** (len(multipliers) - 1)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path, ratio: float = 0.5, normalised: bool = False) -> VQVAE:
        """Load `vae_ch160v4096z32.pth`, Switti's `VQVAE-Switti`, or any file of their layout; sizes are read from the tensors.

        Args:
            path: a file, a folder or a hub id.
            ratio: r of the Phis; stored in no tensor.
            normalised: whether the nearest code is by cosine; stored in no tensor.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped; the message lists them.
        """
        tensors = read_tensors(path, marks=MARKS)
        with torch.device("meta"):
            tokenizer = cls(**sizes(tensors, str(path)), ratio=ratio, normalised=normalised)  # type: ignore[arg-type]
        load_strictly(tokenizer, tensors, source=str(path), ignore=COMPUTED, dtype=torch.float32)
        return tokenizer.requires_grad_(False).eval()

    def begin(self, rows: int, schedule: Schedule) -> Float[Tensor, "R C H W"]:
        """The latent before any scale: zero."""
        weight: Tensor = self.quantize.embedding.weight
        return torch.zeros(rows, self.channels, *schedule.grids[-1], device=weight.device, dtype=torch.float32)

    def accumulate(
        self, latent: Float[Tensor, "R C H W"], tokens: Int[Tensor, "R n"], t: int, schedule: Schedule
    ) -> Float[Tensor, "R C H W"]:
        """The latent after scale t."""
        with torch.autocast(latent.device.type, enabled=False):
            return latent + self._contribution(tokens, t, schedule)

    def next_input(self, latent: Float[Tensor, "R C H W"], t: int, schedule: Schedule) -> Float[Tensor, "R n C"]:
        """The transformer's input from the latent when it predicts scale t."""
        with torch.autocast(latent.device.type, enabled=False):
            # contiguous: PyTorch rounds a strided input's product differently once the weight is frozen, as under an adapter
            return F.interpolate(latent, schedule.grids[t], mode="area").flatten(2).transpose(1, 2).contiguous()

    def decode_latent(self, latent: Float[Tensor, "R C H W"]) -> Float[Tensor, "R 3 H8 W8"]:
        """The image of a latent, complete or cut off after any scale; RGB in [0, 1], differentiable inside that range."""
        with torch.autocast(latent.device.type, enabled=False):
            image: Tensor = self.decoder(self.post_quant_conv(latent))
            return (image.clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "R 3 H W"], schedule: Schedule) -> list[Int[Tensor, "R _n"]]:
        """The tokens of each scale: the entries nearest to the residual.

        Args:
            images: RGB in [0, 1], of the schedule's size.
        """
        with torch.autocast(images.device.type, enabled=False):
            residual = self.quant_conv(self.encoder(images.float() * 2 - 1))
            tokens = []
            for t, grid in enumerate(schedule.grids):
                last = t == len(schedule) - 1
                seen = residual if last else F.interpolate(residual, grid, mode="area")
                tokens.append(self._nearest(seen.flatten(2).transpose(1, 2)))
                residual = residual - self._contribution(tokens[-1], t, schedule)
        return tokens

    def _contribution(self, tokens: Int[Tensor, "R n"], t: int, schedule: Schedule) -> Float[Tensor, "R C H W"]:
        h = self.quantize.embedding(tokens).transpose(1, 2).unflatten(-1, schedule.grids[t])
        if t < len(schedule) - 1:
            h = F.interpolate(h, schedule.grids[-1], mode="bicubic")
        sharpened: Tensor = self.quantize.phi(t, len(schedule))(h)
        return sharpened

    def _nearest(self, features: Float[Tensor, "R n C"]) -> Int[Tensor, "R n"]:
        codes: Tensor = self.quantize.embedding.weight
        if self.normalised:
            return (F.normalize(features, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(dim=-1)
        distances = features.pow(2).sum(-1, keepdim=True) + codes.pow(2).sum(-1) - 2 * features @ codes.T
        return distances.argmin(dim=-1)


def sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, object]:
    """Read the arguments of `VQVAE` from the tensors of a file.

    Raises:
        ValueError: when the file has no codebook or no encoder, and so is none of this family.
    """
    levels = max(numbered(tensors, "encoder.down."), 1)
    inside = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    kernels = ("encoder.conv_in.weight", "quant_conv.weight", *inside)
    require(tensors, source, "VQ-VAE of VAR's layout", {"quantize.embedding.weight": 2, **dict.fromkeys(kernels, 4)})
    vocab_size, channels = tensors["quantize.embedding.weight"].shape
    width = tensors["encoder.conv_in.weight"].shape[0]
    multipliers = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // width for i in range(levels)]
    layout = "qresi_ls" if numbered(tensors, "quantize.quant_resi.qresi_ls.") else "qresi"
    phis = numbered(tensors, f"quantize.quant_resi.{layout}.") or int("quantize.quant_resi.qresi.weight" in tensors)
    if not phis:
        layout, phis = "numbered", numbered(tensors, "quantize.quant_resi.")
    return {
        "vocab_size": vocab_size,
        "channels": channels,
        "width": width,
        "multipliers": multipliers,
        "blocks": numbered(tensors, "encoder.down.0.block."),
        "phis": phis,
        "layout": layout,
        "kernel": math.isqrt(tensors["quant_conv.weight"][0, 0].numel()),
    }
