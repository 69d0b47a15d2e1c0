"""The embedded model: one to three words on a small coloured sign, 48x60 pixels, drawn by a block-causal transformer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.cache import Cache, Kept
from varrl_lightning.policies.layers import scalewise_attention
from varrl_lightning.policies.lettering_sign import COLOURS, COLUMNS, FIRST_COLUMN, HEIGHT, LINES, LINES_OF, MATERIALS, WIDTH, Sign
from varrl_lightning.policies.state import Cond
from varrl_lightning.schedule import Schedule
from varrl_lightning.tokenizers.multiscale_vq import MultiScaleVQ
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.weights.loading import load_strictly, read_tensors

LETTERING = Schedule(((1, 1), (3, 1), (3, 5), (3, 10), (6, 10), (6, 15), (12, 15)), stride=(4, 4))
CONTENT = 4
"""m = 4: the first four scales, 49 of 379 tokens, decide what is written; the others add material, light and shadows."""
RANKS = (8, 16, 32, 32, 24, 24, 16)
STRENGTH = 0.5
"""Of material, light and shadows in a picture: at 1 the words of drawn pictures are read .02 worse than cut off after `CONTENT`."""
SLOTS = LINES * COLUMNS
BLANK, HIDDEN = 0, 27
"""Letters are 1-26; `BLANK` fills the cells without one, `HIDDEN` fills all of them in the unconditional half."""
STYLES = ("any", *COLOURS, *MATERIALS)
"""What the text may say of a sign besides its words: a colour and a material; `any` where it says nothing."""
ASSETS = Path(__file__).parent.parent / "assets" / "lettering"
_WORD = re.compile(r"[A-Za-z]{3,5}")
_STYLE = re.compile(rf"\b({'|'.join(STYLES[1:])})\b", re.IGNORECASE)


def sign_of(prompt: Prompt) -> Sign:
    """What a prompt asks for: the words in its quotes, and the first colour and material that the rest of its text names.

    Raises:
        ValueError: unless there are one to three words, each of three to five letters A-Z.
    """
    words = tuple(word for text in prompt.words for word in text.upper().split())
    if not 1 <= len(words) <= LINES or not all(_WORD.fullmatch(word) for word in words):
        raise ValueError(
            f"prompt {prompt.id!r}: the lettering model writes one to three words of 3-5 letters A-Z, got words "
            f"{list(prompt.words)} from text {prompt.text!r}; quote them, as in 'a red wooden sign that says \"OPEN LATE\"'"
        )
    text = prompt.text
    for quoted in prompt.words:
        text = text.replace(quoted, "")
    named = [style.lower() for style in _STYLE.findall(text)]
    return Sign(words, next((s for s in named if s in COLOURS), None), next((s for s in named if s in MATERIALS), None))


def letters_of(sign: Sign) -> list[int]:
    """Ids of a sign's letters, cell by cell, line by line."""
    cells = [BLANK] * SLOTS
    for word, line in zip(sign.words, LINES_OF[len(sign.words)], strict=True):
        for column, letter in enumerate(word, start=FIRST_COLUMN[len(word)]):
            cells[line * COLUMNS + column] = ord(letter) - ord("A") + 1
    return cells


def styles_of(sign: Sign) -> list[int]:
    """Ids of a sign's colour and material in `STYLES`."""
    return [STYLES.index(style or "any") for style in (sign.colour, sign.material)]


class Block(nn.Module):
    """One pre-norm transformer layer whose keys and values can be handed on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "R n d"], lengths: Sequence[int], past: Kept | None) -> tuple[Float[Tensor, "R n d"], Kept]:
        """Attend to `past` and, scale by scale, to `x` itself; return the keys and values of both, (R, heads, L, d / heads)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended, kept = scalewise_attention(q, k, v, lengths, past)  # (R, heads, n, d / heads)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), kept


class LetteringTransformer(nn.Module):
    """Colour, material and letters as prefix tokens, then the scales; letters have the places of their cells in the picture.

    Args:
        vocab_size: codes of each scale.
        channels: features per token of the tokenizer's `next_input`.
        width, depth, heads: of the transformer.
        frequencies: octaves of the Fourier positions.
    """

    def __init__(
        self, vocab_size: int = 512, channels: int = 96, width: int = 128, depth: int = 3, heads: int = 4, frequencies: int = 6
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.letter = nn.Embedding(HIDDEN + 1, width)
        self.style = nn.Embedding(len(STYLES), width)
        self.scale = nn.Embedding(len(LETTERING), width)
        self.place = nn.Linear(4 * frequencies, width)
        self.latent = nn.Linear(channels, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        # Codes of different scales have nothing in common, so each scale turns its features before the shared head.
        self.exits = nn.ModuleList([nn.Linear(width, width * 3 // 2) for _ in LETTERING.grids])
        self.head = nn.Linear(width * 3 // 2, vocab_size)

    def prefix(self, letters: Int[Tensor, "R S"], styles: Int[Tensor, "R 2"]) -> Float[Tensor, "R S2 d"]:
        """Embed the styles, then the letters at the places where they will be written."""
        placed = self.letter(letters) + self._cells(LINES, COLUMNS, letters.device)
        return torch.cat((self.style(styles), placed), dim=1)

    def picture(self, latents: Float[Tensor, "R n C"], scale: int) -> Float[Tensor, "R n d"]:
        """Embed what is known of the latent at the cells of one scale."""
        places = self._cells(*LETTERING.grids[scale], latents.device)
        embedded: Tensor = self.latent(latents.to(places.dtype)) + places + self.scale.weight[scale]
        return embedded

    def run(
        self, x: Float[Tensor, "R n d"], lengths: Sequence[int], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "R n d"], Cache]:
        """All layers; positions see the cache, all earlier scales and their own."""
        grown = []
        for layer, block in enumerate(self.blocks):
            x, kept = block(x, lengths, None if cache is None else cache.layers[layer])
            grown.append(kept)
        return x, Cache(grown)

    def leave(self, x: Float[Tensor, "R n d"], scale: int) -> Float[Tensor, "R n e"]:
        """Features of one scale, ready for `head`."""
        features: Tensor = self.exits[scale](self.norm(x))
        return features

    def _cells(self, h: int, w: int, device: torch.device) -> Float[Tensor, "n d"]:
        """Embedded places of the middles of h x w cells, row by row."""
        y = ((torch.arange(h, device=device) + 0.5) / h).repeat_interleave(w)
        x = ((torch.arange(w, device=device) + 0.5) / w).repeat(h)
        octaves = math.pi * 2.0 ** torch.arange(self.frequencies, device=device)
        angles = torch.cat((x[..., None] * octaves, y[..., None] * octaves), dim=-1)
        places: Tensor = self.place(torch.cat((angles.sin(), angles.cos()), dim=-1).to(self.place.weight.dtype))
        return places


def lettering_tokenizer() -> MultiScaleVQ:
    """The tokenizer's shape, with random weights."""
    return MultiScaleVQ(LETTERING, ranks=RANKS, content=CONTENT, strength=STRENGTH)


class LetteringPolicy(VARPolicy):
    """The embedded model as a policy; CPU-sized, and mediocre on purpose, so that there is something to improve."""

    transformer: LetteringTransformer
    tokenizer: MultiScaleVQ
    guidance = "constant"
    default_sampling = Sampling(top_k=2)

    def __init__(self, transformer: LetteringTransformer | None = None, tokenizer: MultiScaleVQ | None = None) -> None:
        super().__init__(transformer or LetteringTransformer(), {"tokenizer": tokenizer or lettering_tokenizer()})
        self.vocab_size = self.tokenizer.vocab_size

    @classmethod
    def from_pretrained(cls, path: str | Path = "embedded", tokenizer: str | Path | None = None) -> LetteringPolicy:
        """Load the transformer and the tokenizer.

        Args:
            path: `embedded`, the model that comes with the package, or a safetensors file of the transformer.
            tokenizer: a safetensors file of the tokenizer; the embedded one when None.

        Raises:
            ValueError: when a file has missing, unexpected or misshaped tensors; the message lists them.
        """
        policy = cls()
        weights = ASSETS / "transformer.safetensors" if str(path) == "embedded" else path
        codes = ASSETS / "tokenizer.safetensors" if tokenizer is None else tokenizer
        load_strictly(policy.transformer, read_tensors(weights), source=str(weights))
        load_strictly(policy.tokenizer, read_tensors(codes), source=str(codes))
        return policy

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        """The one schedule that this model has."""
        if size not in (None, (HEIGHT, WIDTH)):
            raise ValueError(f"the lettering model draws pictures of {(HEIGHT, WIDTH)} pixels only, got {size}")
        return LETTERING

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Cond:
        """Ids of each prompt's letters and styles; lower case is read as upper case.

        Raises:
            ValueError: as `sign_of`; the message names the prompt.
        """
        for prompt in prompts:
            self.schedule(prompt.size)
        signs = [sign_of(prompt) for prompt in prompts]
        letters = torch.tensor([letters_of(sign) for sign in signs], device=self.device)
        styles = torch.tensor([styles_of(sign) for sign in signs], device=self.device)
        hidden = {"letters": torch.full_like(letters, HIDDEN), "styles": torch.zeros_like(styles)}
        return Cond(LETTERING, {"letters": letters, "styles": styles}, hidden)

    def start_cache(self, inputs: dict[str, Tensor], schedule: Schedule) -> Cache:
        """Keys and values of styles and letters."""
        prefix = self.transformer.prefix(inputs["letters"], inputs["styles"])
        return self.transformer.run(prefix, [prefix.shape[1]])[1]

    def scale_features(
        self,
        inputs: dict[str, Tensor],
        cache: Cache,
        latents: list[Tensor],
        first: int,
        schedule: Schedule,
    ) -> tuple[list[Float[Tensor, "R _n e"]], Cache]:
        """Features of consecutive scales, whose positions see the letters, all coarser scales and each other."""
        scales = range(first, first + len(latents))
        parts = [self.transformer.picture(self.tokenizer.next_input(x, t), t) for t, x in zip(scales, latents, strict=True)]
        lengths = schedule.lengths[first : scales.stop]
        x, cache = self.transformer.run(torch.cat(parts, dim=1), lengths, cache)
        return [self.transformer.leave(part, t) for t, part in zip(scales, x.split(lengths, dim=1), strict=True)], cache

    def logits(self, features: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Logits over the codes of the features' own scale."""
        logits: Tensor = self.transformer.head(features)
        return logits

    def initial_latent(self, rows: int, schedule: Schedule) -> Float[Tensor, "R 6 H W"]:
        """Zero: the tokenizer's mean colour, without details."""
        return self.tokenizer.begin(rows)

    def accumulate(self, latent: Tensor, tokens: Tensor, scale: int, schedule: Schedule) -> Tensor:
        """The latent after one scale."""
        return self.tokenizer.accumulate(latent, tokens, scale)

    def decode_latent(self, latent: Tensor) -> Float[Tensor, "R 3 H W"]:
        """RGB in [0, 1] of a latent of any depth."""
        return self.tokenizer.decode_latent(latent)
