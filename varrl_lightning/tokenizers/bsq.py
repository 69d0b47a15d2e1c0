"""Infinity's tokenizer: multi-scale binary spherical quantisation, image <-> bits <-> latent, loaded from its published files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.bsq_autoencoder import Decoder, Encoder
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import numbered, require

NESTED = ("vae",)
MARKS = ("encoder.conv_in.*weight", "decoder.conv_in.*weight")
"""Tensors by which a tokenizer of this family is known among others in a file."""
COMPUTED = ("quantizer.lfq.mask", "quantize.lfq.mask")
"""Tensors that the public code stores: constant powers of two."""
_WRAPPED = re.compile(r"\b(conv\w*|nin_shortcut|norm\w*)\.(conv|norm)\.(weight|bias)$")


class BSQTokenizer(nn.Module):
    """Codes an image as a sum of sign maps, scale after scale, each on the residual of the earlier ones.

        f_0 = 0,    f_{t+1} = f_t + up((2 b_t - 1) / sqrt(d)),    image = decoder(f_T)

    `b_t` are the d bits of each place of scale t; `up` is bilinear to the last grid. Where a token of the schedule covers more
    pixels than a place of the latent (Infinity-8B: 16 and 8), it holds the bits of the `zoom` x `zoom` places that it covers,
    zoom^2 d in all, channel after channel.

    Args:
        channels: d.
        stem: channels of the encoder's first convolution.
        encoder_widths: channels of each level of the encoder; each but the last halves the image.
        decoder_widths: channels of each level of the decoder, the finest first.
        blocks: residual blocks of a level of the encoder, and of the decoder.
    """

    def __init__(
        self,
        channels: int = 32,
        stem: int = 128,
        encoder_widths: Sequence[int] = (128, 256, 512, 512, 512),
        decoder_widths: Sequence[int] = (128, 256, 512, 512, 512),
        blocks: tuple[int, int] = (2, 3),
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, stem, encoder_widths, blocks[0])
        self.decoder = Decoder(channels, decoder_widths, blocks[1])
        self.channels, self.stride = channels, 1 << (len(decoder_widths) - 1)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> BSQTokenizer:
        """Load `infinity_vae_d32reg.pth`, `infinity_vae_d56_f8_14_patchify.pth` or any file of their layout, in fp32.

        Sizes are read from the tensors, whose names may be those of the public modules (`conv1.conv.weight`) or the plain ones of
        the autoencoder that they wrap (`conv1.weight`).

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped; the message lists them.
        """
        tensors = plain_names(read_tensors(path, nested=NESTED, marks=MARKS))
        with torch.device("meta"):
            tokenizer = cls(**sizes(tensors, str(path)))  # type: ignore[arg-type]
        load_strictly(tokenizer, tensors, source=str(path), ignore=COMPUTED, dtype=torch.float32)
        return tokenizer.requires_grad_(False).eval()

    def zoom(self, schedule: Schedule) -> int:
        """Places of the latent along each side of a token.

        Raises:
            ValueError: when the schedule's stride is no multiple of the tokenizer's.
        """
        zoom: int = schedule.stride[0] // self.stride
        if not zoom or schedule.stride != (zoom * self.stride, zoom * self.stride):
            raise ValueError(f"a token must cover a multiple of {self.stride}x{self.stride} pixels, got stride {schedule.stride}")
        return zoom

    def begin(self, rows: int, schedule: Schedule) -> Float[Tensor, "R d H W"]:
        """The latent before any scale: zero."""
        weight: Tensor = self.decoder.conv_in.weight
        return torch.zeros(rows, self.channels, *self._grid(-1, schedule), device=weight.device, dtype=torch.float32)

    def accumulate(
        self, latent: Float[Tensor, "R d H W"], tokens: Int[Tensor, "R n D"], t: int, schedule: Schedule
    ) -> Float[Tensor, "R d H W"]:
        """The latent after scale t, in fp32.

        Args:
            tokens: bits, 0 or 1; D = zoom^2 d.
        """
        with torch.autocast(latent.device.type, enabled=False):
            signs = 2 * tokens.transpose(1, 2).unflatten(-1, schedule.grids[t]).float() - 1
            codes = F.pixel_shuffle(signs, self.zoom(schedule)) / self.channels**0.5
            return latent.float() + _resized(codes, self._grid(-1, schedule))

    def next_input(self, latent: Float[Tensor, "R d H W"], t: int, schedule: Schedule) -> Float[Tensor, "R n D"]:
        """The transformer's input from the latent when it predicts scale t, laid out as the bits of a token are."""
        with torch.autocast(latent.device.type, enabled=False):
            seen = _resized(latent.float(), self._grid(t, schedule))
            # contiguous: PyTorch rounds a strided input's product differently once the weight is frozen, as under an adapter
            return F.pixel_unshuffle(seen, self.zoom(schedule)).flatten(2).transpose(1, 2).contiguous()

    def decode_latent(self, latent: Float[Tensor, "R d H W"]) -> Float[Tensor, "R 3 H8 W8"]:
        """The image of a latent, complete or cut off after any scale; RGB in [0, 1], differentiable inside that range."""
        with torch.autocast(latent.device.type, enabled=False):
            image: Tensor = self.decoder(latent.float())
            return (image.clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "R 3 H W"], schedule: Schedule) -> list[Int[Tensor, "R _n D"]]:
        """The bits of each scale: the signs of the residual.

        Args:
            images: RGB in [0, 1], of the schedule's size.

        Raises:
            ValueError: for another size.
        """
        if images.shape[-2:] != schedule.image_size:
            raise ValueError(f"images must be of the schedule's {schedule.image_size} pixels, got {tuple(images.shape[-2:])}")
        tokens = []
        with torch.autocast(images.device.type, enabled=False):
            features = self.encoder(images.float() * 2 - 1)
            latent = self.begin(len(images), schedule)
            for t in range(len(schedule)):
                seen = F.adaptive_avg_pool2d(features - latent, self._grid(t, schedule))
                bits = F.pixel_unshuffle((seen > 0).float(), self.zoom(schedule))
                tokens.append(bits.flatten(2).transpose(1, 2).long())
                latent = self.accumulate(latent, tokens[-1], t, schedule)
        return tokens

    def _grid(self, t: int, schedule: Schedule) -> tuple[int, int]:
        """The grid of scale t in places of the latent."""
        zoom = self.zoom(schedule)
        height, width = schedule.grids[t]
        return zoom * height, zoom * width


def _resized(x: Float[Tensor, "R C h w"], grid: tuple[int, int]) -> Float[Tensor, "R C H W"]:
    return x if x.shape[-2:] == grid else F.interpolate(x, grid, mode="bilinear")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the wrappers that the public modules put around convolutions and norms.

    Raises:
        ValueError: when a file holds both names of one tensor.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = _WRAPPED.sub(r"\1.\3", name)
        if short in plain:
            raise ValueError(f"the file holds {name} and, by another name, the same tensor {short}; remove one of them")
        plain[short] = tensor
    return plain


def sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, object]:
    """Read the arguments of `BSQTokenizer` from the tensors of a file.

    Raises:
        ValueError: when the file has no encoder or no decoder, and so is none of this family.
    """
    ends = ("encoder.conv_in.weight", "decoder.conv_in.weight")
    needed = (*ends, "encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")
    require(tensors, source, "tokenizer of Infinity's layout", dict.fromkeys(needed, 4))

    def widths(prefix: str) -> tuple[int, ...]:
        first = (f"{prefix}{i}.block.0.conv1.weight" for i in range(numbered(tensors, prefix)))
        return tuple(tensors[name].shape[0] for name in first if name in tensors)

    return {
        "channels": tensors["decoder.conv_in.weight"].shape[1],
        "stem": tensors["encoder.conv_in.weight"].shape[0],
        "encoder_widths": widths("encoder.down."),
        "decoder_widths": widths("decoder.up."),
        "blocks": (numbered(tensors, "encoder.down.0.block."), numbered(tensors, "decoder.up.0.block.")),
    }
