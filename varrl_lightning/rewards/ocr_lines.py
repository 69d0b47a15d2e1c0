"""Text-line recognition with the PP-OCR model inside the rapidocr wheel."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.uint8]
"""(height, width, 3), RGB."""

_MODEL = Path("models", "PP-OCRv6_rec_small.onnx")
_HEIGHT = 48
_WIDTH_STEP = 32
MAX_WIDTH = 48 * 60
"""Pixels at the model's height; longer lines are squeezed."""


@dataclass(frozen=True)
class Character:
    """One character of a line: its text, its confidence in [0, 1] and its centre, in pixels from the left."""

    text: str
    confidence: float
    x: float


class LineReader:
    """Recognises images of single lines, without looking for them first.

    About 3 ms for a 24 x 64 image on two threads. An image's result does not depend on the others in the call. The
    session is opened on first use in each process, so that the reader can be pickled and forked.

    Args:
        threads: batches in work at once. Each runs on one thread: as fast as onnxruntime's own threads on an idle machine,
            much faster than they on a busy one, and the result does not depend on their number.
        batch_size: images per call of the model; 8 is the fastest on a CPU.
        max_width: wider lines, at the model's height of 48 pixels, are squeezed to this width; the cost of a line is in
            proportion to its width.
    """

    def __init__(self, threads: int, batch_size: int = 8, max_width: int = MAX_WIDTH) -> None:
        self.threads, self.batch_size, self.max_width = threads, batch_size, max_width
        self._opened: tuple[int, Any, list[str]] | None = None
        self._alphabet: frozenset[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, lines: Sequence[Picture]) -> list[list[Character]]:
        """The characters of each line, left to right."""
        by_width: dict[int, list[int]] = defaultdict(list)
        for i, line in enumerate(lines):
            by_width[min(self.max_width, _input_width(line))].append(i)
        n = self.batch_size
        batches = [(rows[i : i + n], width) for width, rows in by_width.items() for i in range(0, len(rows), n)]
        session, alphabet = self._session()

        def recognise(batch: tuple[list[int], int]) -> list[list[Character]]:
            rows, width = batch
            return _recognise(session, alphabet, [lines[row] for row in rows], width)

        with ThreadPoolExecutor(self.threads) as pool:
            by_batch = list(pool.map(recognise, batches))
        order = [row for rows, _ in batches for row in rows]
        by_row = dict(zip(order, itertools.chain.from_iterable(by_batch), strict=True))
        return [by_row[row] for row in range(len(lines))]

    def alphabet(self) -> frozenset[str]:
        """The characters that the model can write, as its file lists them."""
        if self._alphabet is None:
            self._alphabet = frozenset(self._session()[1]) - {""}
        return self._alphabet

    def _session(self) -> tuple[Any, list[str]]:
        if self._opened is None or self._opened[0] != os.getpid():
            onnxruntime: Any = importlib.import_module("onnxruntime")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(str(_wheel() / _MODEL), options, providers=["CPUExecutionProvider"])
            characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
            self._opened = (os.getpid(), session, ["", *characters, " "])  # 0 is the CTC blank
        return self._opened[1:]


def _recognise(session: Any, alphabet: list[str], lines: Sequence[Picture], width: int) -> list[list[Character]]:
    inputs = np.stack([_model_input(line, width) for line in lines])
    probabilities = session.run(None, {session.get_inputs()[0].name: inputs})[0]  # (lines, columns, alphabet)
    best = probabilities.argmax(axis=2)
    confidence = np.take_along_axis(probabilities, best[..., None], axis=2)[..., 0]
    # A column of the output stands for this many pixels of the line's own image.
    scales = [width / best.shape[1] * line.shape[1] / _own_width(line, width) for line in lines]
    return [_ctc(b, c, alphabet, scale) for b, c, scale in zip(best, confidence, scales, strict=True)]


def _wheel() -> Path:
    # rapidocr itself is slow to import and not needed for its model.
    spec = importlib.util.find_spec("rapidocr")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the OCR reward needs rapidocr: pip install rapidocr onnxruntime")
    return Path(spec.origin).parent


def _input_width(line: Picture) -> int:
    """Width at the model's height with the aspect kept, rounded up so that few different widths occur."""
    height, width = int(line.shape[0]), int(line.shape[1])
    return math.ceil(width * _HEIGHT / height / _WIDTH_STEP) * _WIDTH_STEP


def _own_width(line: Picture, width: int) -> int:
    """Of the columns of the model's input, those that the line fills."""
    return min(width, math.ceil(int(line.shape[1]) * _HEIGHT / int(line.shape[0])))


def _model_input(line: Picture, width: int) -> NDArray[np.float32]:
    import cv2

    own_width = _own_width(line, width)
    resized = cv2.resize(line[:, :, ::-1], (own_width, _HEIGHT)).astype(np.float32) / 127.5 - 1  # BGR in [-1, 1]
    padded = np.zeros((3, _HEIGHT, width), dtype=np.float32)
    padded[:, :, :own_width] = resized.transpose(2, 0, 1)
    return padded


def _ctc(best: NDArray[np.int64], confidence: NDArray[np.float32], alphabet: list[str], scale: float) -> list[Character]:
    """Greedy CTC: a run of equal columns is one character, with the confidence of its first column; blanks separate."""
    starts = np.flatnonzero(np.diff(best, prepend=-1))
    stops = np.append(starts[1:], len(best))
    return [
        # NFKC: the alphabet holds full-width characters.
        Character(unicodedata.normalize("NFKC", alphabet[best[a]]), float(confidence[a]), float(a + b) / 2 * scale)
        for a, b in zip(starts, stops, strict=True)
        if best[a]
    ]
