"""TokenFlow's dual-codebook VQ of the text-to-image model: image <-> tokens <-> latent, in the published layout of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from varrl_lightning.schedule import Schedule, square
from varrl_lightning.tokenizers.vqvae_layers import Resample, Residual, norm
from varrl_lightning.weights.loading import load_strictly, read_tensors
from varrl_lightning.weights.sizes import numbered, require

TOKENFLOW_256 = square((1, 2, 4, 6, 8, 10, 12, 14, 16))
"""The nine scales of TokenFlow-t2i: 817 tokens."""
NESTED = ("ema", "model", "state_dict")
MARKS = ("quantize.embedding_vqgan.weight",)
"""Tensors by which a tokenizer of this family is known among others in a file."""
UNUSED = ("decoder_vqkd.*", "decode_task_layer.*", "quantize.codebook_used")
"""Tensors that are not loaded: the decoder of CLIP features, which no image needs, and a training statistic."""


class TokenFlowVQ(nn.Module):
    """Codes an image by tokens that name one entry in two codebooks at once, one of meaning and one of pixels.

    Each half of an entry is l2-normalised. The transformer's inputs are a progressive sum, whose grid grows with the scales, while
    the image is decoded from a direct one, which needs the pixel half only:

        p_0 = 0,  p_{t+1} = up_{t+1}(p_t + code(tokens_t)),  d_{t+1} = d_t + up_T(pixel code(tokens_t)),  image = decoder(d_T)

    `up` is bicubic. The latent holds both: the first C channels hold p_t in the top left corner of the last grid, zeros around it;
    the pixel channels that follow hold d_t. Inputs of a prefix do not depend on the scales after it.

    Args:
        vocab_size: entries of the codebooks.
        halves: channels of the semantic and of the pixel codebook; C is their sum.
        middle: channels between quantiser and convolutions.
        encoder: channels of each resolution of the encoder, fine to coarse; a coarser one has half the side.
        encoder_blocks: residual blocks of each of them.
        decoder: channels of each resolution of the decoder, coarse to fine.
        decoder_blocks: residual blocks of each of them.
        tower: width, layers, patch size and patches along a side of the CLIP image tower, whose heads are 64 wide.
    """

    def __init__(
        self,
        vocab_size: int = 32768,
        halves: tuple[int, int] = (32, 8),
        middle: int = 256,
        encoder: Sequence[int] = (128, 128, 256, 256, 512),
        encoder_blocks: int = 2,
        decoder: Sequence[int] = (1024, 512, 512, 256, 256),
        decoder_blocks: int = 5,
        tower: tuple[int, int, int, int] = (768, 12, 16, 14),
    ) -> None:
        super().__init__()
        self.vocab_size, self.halves, self.channels = vocab_size, halves, sum(halves)
        self.stride = 2 ** (len(decoder) - 1)
        self.encoder = Convolutions(3, middle, encoder, encoder_blocks, up=False)
        self.decoder = Convolutions(middle, 3, decoder, decoder_blocks, up=True)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(middle, halves[1], 1), nn.Conv2d(halves[1], middle, 1)
        self.encoder_vqkd = ClipTower(*tower)
        self.encode_task_layer = nn.Sequential(nn.Linear(tower[0], tower[0]), nn.Tanh(), nn.Linear(tower[0], halves[0]))
        self.quantize = nn.Module()
        self.quantize.embedding_vqkd = nn.Embedding(vocab_size, halves[0])
        self.quantize.embedding_vqgan = nn.Embedding(vocab_size, halves[1])
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TokenFlowVQ:
        """Load `tokenflow_clipb_32k_enhanced.pt`, or any file of its layout with a CLIP teacher; sizes are read from the tensors.

        The tensors may lie under `ema`, `model` or `state_dict`.

        Raises:
            ValueError: when tensors are missing, unexpected or misshaped; the message lists them.
        """
        tensors = read_tensors(path, nested=NESTED, marks=MARKS)
        with torch.device("meta"):
            tokenizer = cls(**sizes(tensors, str(path)))  # type: ignore[arg-type]
        load_strictly(tokenizer, tensors, source=str(path), ignore=UNUSED, dtype=torch.float32)
        return tokenizer.requires_grad_(False).eval()

    def begin(self, rows: int, schedule: Schedule) -> Float[Tensor, "R E h w"]:
        """The latent before any scale: zero."""
        weight: Tensor = self.post_quant_conv.weight
        channels = self.channels + self.halves[1]
        return torch.zeros(rows, channels, *schedule.grids[-1], device=weight.device, dtype=torch.float32)

    def accumulate(
        self, latent: Float[Tensor, "R E h w"], tokens: Int[Tensor, "R n"], t: int, schedule: Schedule
    ) -> Float[Tensor, "R E h w"]:
        """The latent after scale t."""
        with torch.autocast(latent.device.type, enabled=False):
            height, width = schedule.grids[-1]
            codes = self._codes(tokens).transpose(1, 2).unflatten(-1, schedule.grids[t])  # (R, C, h_t, w_t)
            progressive, direct = latent.float().split((self.channels, self.halves[1]), dim=1)
            known = progressive[..., : codes.shape[2], : codes.shape[3]] + codes
            if t < len(schedule) - 1:
                known = F.interpolate(known, schedule.grids[t + 1], mode="bicubic")
            known = F.pad(known, (0, width - known.shape[-1], 0, height - known.shape[-2]))
            return torch.cat((known, direct + F.interpolate(codes[:, self.halves[0] :], (height, width), mode="bicubic")), dim=1)

    def next_input(self, latent: Float[Tensor, "R E h w"], t: int, schedule: Schedule) -> Float[Tensor, "R n C"]:
        """The transformer's input from the latent when it predicts scale t."""
        height, width = schedule.grids[t]
        # contiguous: PyTorch rounds a strided input's product differently once the weight is frozen, as under an adapter
        return latent[:, : self.channels, :height, :width].flatten(2).transpose(1, 2).contiguous()

    def decode_latent(self, latent: Float[Tensor, "R E h w"]) -> Float[Tensor, "R 3 H W"]:
        """The image of a latent, complete or cut off after any scale; RGB in [0, 1], differentiable inside that range."""
        with torch.autocast(latent.device.type, enabled=False):
            image: Tensor = self.decoder(self.post_quant_conv(latent[:, self.channels :].float()))
            return (image.clamp(-1, 1) + 1) / 2

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "R 3 H W"], schedule: Schedule) -> list[Int[Tensor, "R _n"]]:
        """The tokens of each scale: the entries nearest to the residual, by the sum of both halves' cosines.

        Args:
            images: RGB in [0, 1], of the schedule's size.
        """
        with torch.autocast(images.device.type, enabled=False):
            residual = self._features(images.float() * 2 - 1)
            entries = self._codes(torch.arange(self.vocab_size, device=images.device))
            tokens = []
            for grid in schedule.grids:
                seen = F.interpolate(residual, grid, mode="area").flatten(2).transpose(1, 2)
                tokens.append((self._normalised(seen) @ entries.T).argmax(dim=-1))
                codes = entries[tokens[-1]].transpose(1, 2).unflatten(-1, grid)
                residual = residual - F.interpolate(codes, schedule.grids[-1], mode="bicubic")
        return tokens

    def _features(self, images: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R C h w"]:
        pixels: Tensor = self.quant_conv(self.encoder(images))
        meaning: Tensor = self.encode_task_layer(self.encoder_vqkd(images))
        grid = (images.shape[-2] // self.encoder_vqkd.patch, images.shape[-1] // self.encoder_vqkd.patch)
        return torch.cat((meaning.transpose(1, 2).unflatten(-1, grid), pixels), dim=1)

    def _codes(self, tokens: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows C"]:
        books = [self.quantize.get_submodule(name) for name in ("embedding_vqkd", "embedding_vqgan")]
        both = torch.cat([book(tokens) for book in books], dim=-1)
        return self._normalised(both)

    def _normalised(self, codes: Float[Tensor, "*rows C"]) -> Float[Tensor, "*rows C"]:
        return torch.cat([F.normalize(half, dim=-1) for half in codes.split(self.halves, dim=-1)], dim=-1)


class PixelAttention(nn.Module):
    """Single-head self-attention over all places of a map, with a projection each for queries, keys and values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R C H W"]:
        """Let every place attend to every other."""
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))  # (R, H W, C)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(-1, x.shape[-2:])
        out: Tensor = x + self.proj_out(seen)
        return out


class Resolution(nn.Module):
    """The blocks of one resolution, then the change to the next resolution."""

    def __init__(self, channels: int, out: int, blocks: int, attends: bool, resample: str | None) -> None:
        super().__init__()
        self.res = nn.ModuleList([Residual(channels if i == 0 else out, out) for i in range(blocks)])
        self.attn = nn.ModuleList([PixelAttention(out) for _ in range(blocks)] if attends else [])
        self.resample = resample
        if resample:
            setattr(self, resample, Resample(out, up=resample == "upsample"))

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R E H2 W2"]:
        """Each block with its attention, then the change of resolution if there is one."""
        for i, block in enumerate(self.res):
            x = self.attn[i](block(x)) if len(self.attn) else block(x)
        return getattr(self, self.resample)(x) if self.resample else x


class Convolutions(nn.Module):
    """The encoder or the decoder; the coarsest resolution has attention, and the middle block next to it."""

    def __init__(self, channels: int, out: int, widths: Sequence[int], blocks: int, up: bool) -> None:
        super().__init__()
        coarsest = widths[0] if up else widths[-1]
        self.up = up
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.mid = nn.ModuleList([Residual(coarsest, coarsest), PixelAttention(coarsest), Residual(coarsest, coarsest)])
        self.conv_blocks = nn.ModuleList()
        for i, (before, after) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            last = i == len(widths) - 1
            resample = None if last else "upsample" if up else "downsample"
            self.conv_blocks.append(Resolution(before, after, blocks, attends=i == 0 if up else last, resample=resample))
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Float[Tensor, "R C H W"]) -> Float[Tensor, "R E H2 W2"]:
        """Image to features, or features to image around [-1, 1], not clamped."""
        x = self.conv_in(x)
        for part in (*self.mid, *self.conv_blocks) if self.up else (*self.conv_blocks, *self.mid):
            x = part(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class ClipTower(nn.Module):
    """CLIP's vision transformer up to the last norm, at any resolution: its positions are interpolated.

    Args:
        width: of the features.
        layers: transformer layers.
        patch: side of a patch in pixels.
        side: patches along a side of the images that it was trained on.
    """

    def __init__(self, width: int, layers: int, patch: int, side: int) -> None:
        super().__init__()
        self.patch, self.side = patch, side
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(side * side + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([ClipLayer(width) for _ in range(layers)])

    def forward(self, images: Float[Tensor, "R 3 H W"]) -> Float[Tensor, "R n d"]:
        """One feature a patch of images in [-1, 1]; TokenFlow's tower reads the pixels without CLIP's normalisation."""
        patches: Tensor = self.conv1(images)
        x = torch.cat((self.class_embedding.expand(len(images), 1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        x = self.ln_pre(x + self._positions(patches.shape[2], patches.shape[3]))
        for layer in self.transformer.resblocks:  # type: ignore[union-attr]
            x = layer(x)
        features: Tensor = self.ln_post(x)[:, 1:]
        return features

    def _positions(self, height: int, width: int) -> Float[Tensor, "n d"]:
        if height * width == self.side**2:
            return self.positional_embedding
        grid = self.positional_embedding[1:].T.unflatten(-1, (self.side, self.side))[None]
        # As the public code, which adds .1 to both counts against rounding and interpolates by these inexact ratios.
        ratios = ((height + 0.1) / self.side, (width + 0.1) / self.side)
        resized = F.interpolate(grid, scale_factor=ratios, mode="bicubic")
        return torch.cat((self.positional_embedding[:1], resized.flatten(2)[0].T))


class ClipLayer(nn.Module):
    """One pre-norm layer of CLIP, heads 64 wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, max(width // 64, 1), batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "R n d"]) -> Float[Tensor, "R n d"]:
        """Attention, then the feed-forward part with CLIP's quick GELU."""
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        h = self.mlp.get_submodule("c_fc")(self.ln_2(x))
        out: Tensor = x + self.mlp.get_submodule("c_proj")(h * torch.sigmoid(1.702 * h))
        return out


def sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, object]:
    """Read the arguments of `TokenFlowVQ` from the tensors of a file.

    Raises:
        ValueError: when the file is no tokenizer of TokenFlow with a CLIP teacher.
    """
    _require_sizes(tensors, source)
    tower, pixels = tensors["encoder_vqkd.conv1.weight"], tensors["quantize.embedding_vqgan.weight"]

    def widths(part: str) -> tuple[int, ...]:
        levels = range(numbered(tensors, f"{part}.conv_blocks."))
        return tuple(tensors[f"{part}.conv_blocks.{i}.res.0.conv1.weight"].shape[0] for i in levels)

    return {
        "vocab_size": len(pixels),
        "halves": (tensors["quantize.embedding_vqkd.weight"].shape[1], pixels.shape[1]),
        "middle": tensors["quant_conv.weight"].shape[1],
        "encoder": widths("encoder"),
        "encoder_blocks": numbered(tensors, "encoder.conv_blocks.0.res."),
        "decoder": widths("decoder"),
        "decoder_blocks": numbered(tensors, "decoder.conv_blocks.0.res."),
        "tower": (
            tower.shape[0],
            numbered(tensors, "encoder_vqkd.transformer.resblocks."),
            tower.shape[-1],
            int((len(tensors["encoder_vqkd.positional_embedding"]) - 1) ** 0.5),
        ),
    }


def _require_sizes(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that the tensors from which `sizes` reads exist."""
    flat = ("encoder_vqkd.positional_embedding", "quantize.embedding_vqgan.weight", "quantize.embedding_vqkd.weight")
    kernels = ["encoder_vqkd.conv1.weight", "quant_conv.weight"]
    for part in ("encoder", "decoder"):
        levels = max(numbered(tensors, f"{part}.conv_blocks."), 1)
        kernels += [f"{part}.conv_blocks.{i}.res.0.conv1.weight" for i in range(levels)]
    what = "TokenFlow tokenizer with a CLIP teacher (tokenflow_clipb_32k_enhanced.pt)"
    require(tensors, source, what, {**dict.fromkeys(flat, 2), **dict.fromkeys(kernels, 4)})
