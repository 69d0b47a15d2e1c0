"""OCR engines: images in, words with confidences and boxes out."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch

from varrl_lightning.rewards.ocr_detection import Line, LineFinder, whole
from varrl_lightning.rewards.ocr_lines import MAX_WIDTH, Character, LineReader, Picture
from varrl_lightning.types import Box

_LEAST_WIDTH = 32


@dataclass(frozen=True)
class Word:
    """A word that was read, its confidence in [0, 1] and where it is, in pixels."""

    text: str
    confidence: float
    box: Box


@runtime_checkable
class OCREngine(Protocol):
    """Reads the words of images.

    It may also say which characters it can write, by the `alphabet` of `SaysAlphabet`; words with others are then warned of.

    Args:
        detect: whether it finds the text in an image; if not, an image must be one line of text.
    """

    detect: bool

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        """The words of each image, in reading order; an empty list where there is no text. May raise."""
        ...


class RapidOCREngine:
    """PP-OCRv6 small through onnxruntime, offline: the models come in the rapidocr wheel.

    Args:
        detect: find the lines first; otherwise an image is one line, which is many times faster and all that an image
            filled by its text needs.
        threads: number of threads of onnxruntime; torch's when None.
        confidence: which one a word gets: that of its `line`, as in the paper, or the mean of its characters (`word`).
        max_line_width: a line that is wider, once it is 48 pixels high, is squeezed to this many pixels, at least 32. Few large
            letters are read as well at half their width, at half the cost.
        min_confidence: lines that are read with less, in [0, 1], hold no text: on an empty ground the recogniser sees a stroke or
            two, with a confidence below .5.
    """

    def __init__(
        self,
        detect: bool = True,
        threads: int | None = None,
        confidence: Literal["line", "word"] = "line",
        max_line_width: int = MAX_WIDTH,
        min_confidence: float = 0.0,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {min_confidence}")
        if max_line_width < _LEAST_WIDTH:
            raise ValueError(f"max_line_width must be at least {_LEAST_WIDTH} pixels, got {max_line_width}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or null for torch's number, got {threads}")
        one_of("confidence", confidence, Literal["line", "word"])
        self.detect, self.confidence, self.min_confidence = detect, confidence, min_confidence
        threads = threads or torch.get_num_threads()
        self._finder, self._reader = LineFinder(threads), LineReader(threads, max_width=max_line_width)

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        """The words of each image: left to right in a line, lines from top to bottom."""
        lines_of = [self._finder.find(image) if self.detect else [whole(image)] for image in images]
        characters = iter(self._reader.read([line.image for lines in lines_of for line in lines]))
        return [[word for line in lines for word in self._words(line, next(characters))] for lines in lines_of]

    def alphabet(self) -> frozenset[str]:
        """The characters that the recogniser can write: Latin, Greek, Chinese and Japanese ones, and signs."""
        return self._reader.alphabet()

    def _words(self, line: Line, characters: Sequence[Character]) -> list[Word]:
        if not characters:
            return []
        mean = statistics.fmean(c.confidence for c in characters)
        if mean < self.min_confidence:
            return []
        margin = _half_width(characters, line.image.shape[0])
        words = []
        for is_space, group in itertools.groupby(characters, key=lambda c: c.text.isspace()):
            run = list(group)
            if not is_space:
                of_word = statistics.fmean(c.confidence for c in run)
                box = line.box(run[0].x - margin, run[-1].x + margin)
                words.append(Word("".join(c.text for c in run), mean if self.confidence == "line" else of_word, box))
        return words


def _half_width(characters: Sequence[Character], height: int) -> float:
    """Half of the usual distance between characters: the recogniser says only where each has its centre."""
    steps = [b.x - a.x for a, b in itertools.pairwise(characters)]
    return statistics.median(steps) / 2 if steps else 0.3 * height


def one_of(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError unless the value is one of a Literal's: an object that is built in Python passes no other check."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
