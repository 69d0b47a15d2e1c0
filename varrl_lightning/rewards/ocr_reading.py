"""Read a batch of images with an OCR engine, and survive its failures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.rewards.ocr_engines import OCREngine, Word
from varrl_lightning.rewards.ocr_lines import Picture
from varrl_lightning.types import Box, Prompt
from varrl_lightning.types.eight_bits import eight_bit_pixels


def read_words(engine: OCREngine, images: Float[Tensor, "N 3 H W"], prompts: Sequence[Prompt]) -> list[list[Word] | None]:
    """The words of each image; None where the engine failed or the image is not finite.

    Raises:
        Exception: the engine's own, when it fails on everything.
    """
    pictures = eight_bit_pixels(images)
    finite = images.isfinite().flatten(1).all(dim=1).tolist()
    pieces: list[tuple[int, int, int, Picture]] = []  # row, x, y, pixels
    for row, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        if finite[row]:
            pieces += [(row, *piece) for piece in _pieces(picture, prompt, engine.detect)]
    words: list[list[Word] | None] = [[] if ok else None for ok in finite]
    for (row, x, y, _), of_piece in zip(pieces, _read_each(engine, [piece[3] for piece in pieces]), strict=True):
        earlier = words[row]
        words[row] = None if of_piece is None or earlier is None else earlier + [_moved(word, x, y) for word in of_piece]
    return words


def _pieces(picture: Picture, prompt: Prompt, detect: bool) -> list[tuple[int, int, Picture]]:
    """What the engine is given of an image, with its top left corner: all of it, or a line for each of its regions."""
    if detect or not prompt.regions:
        return [(0, 0, picture)]
    pieces = [(max(0, int(b.x0)), max(0, int(b.y0)), b) for b in prompt.regions]
    cut = [(x, y, picture[y : round(b.y1), x : round(b.x1)]) for x, y, b in pieces]
    return [piece for piece in cut if piece[2].size]


def _moved(word: Word, x: int, y: int) -> Word:
    box = word.box
    return replace(word, box=Box(box.x0 + x, box.y0 + y, box.x1 + x, box.y1 + y))


def _read_each(engine: OCREngine, pieces: Sequence[Picture]) -> list[list[Word] | None]:
    """All at once; after a failure one by one, so that only the culprits are lost."""
    try:
        return list(_read(engine, pieces))
    except Exception as error:  # an engine may raise anything
        failure = error
    results: list[list[Word] | None] = []
    for piece in pieces:
        try:
            results.extend(_read(engine, [piece]))
        except Exception as error:
            failure = error
            results.append(None)
    # Everything failed: an engine that does not work. One image alone says nothing of the sort.
    if len(results) > 1 and all(result is None for result in results):
        raise failure
    warnings.warn(f"the OCR engine failed on some images: {type(failure).__name__}: {failure}", stacklevel=2)
    return results


def _read(engine: OCREngine, pieces: Sequence[Picture]) -> list[list[Word]]:
    results = engine.read(pieces) if pieces else []
    if len(results) != len(pieces):
        raise ValueError(f"the OCR engine answered {len(results)} times for {len(pieces)} images; expected one list each")
    return results
