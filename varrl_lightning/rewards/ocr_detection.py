"""Finding the lines of text in an image, with the PP-OCR model inside the rapidocr wheel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varrl_lightning.rewards.ocr_lines import Picture
from varrl_lightning.types import Box

_UPRIGHT = 1.5


@dataclass(frozen=True)
class Line:
    """A line of text, cut out and laid flat.

    Args:
        image: the line, reading from left to right.
        corners: where its top left, top right, bottom right and bottom left lie in the whole image, as (x, y).
    """

    image: Picture
    corners: NDArray[np.float32]

    def box(self, x0: float, x1: float) -> Box:
        """The rectangle in the whole image around columns `[x0, x1)` of the line."""
        top_left, top_right, bottom_right, bottom_left = self.corners
        along = np.clip(np.array([[x0], [x1]]) / self.image.shape[1], 0, 1)
        points = np.concatenate([top_left + along * (top_right - top_left), bottom_left + along * (bottom_right - bottom_left)])
        return Box(*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


class LineFinder:
    """Detects lines; opened on first use in each process, so that it can be pickled and forked.

    Args:
        threads: of onnxruntime.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def find(self, image: Picture) -> list[Line]:
        """The lines of an image, from top to bottom."""
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        boxes = self._detector()(bgr, use_det=True, use_cls=False, use_rec=False).boxes
        return [] if boxes is None else [_cut(image, np.asarray(box, dtype=np.float32)) for box in boxes]

    def _detector(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            from rapidocr import RapidOCR

            detector = RapidOCR(
                params={
                    "Global.log_level": "critical",
                    "Det.limit_side_len": 64,  # by default every image is enlarged to 736 pixels
                    "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
                }
            )
            self._opened = (os.getpid(), detector)
        return self._opened[1]


def whole(image: Picture) -> Line:
    """An image that is one line of text."""
    height, width = image.shape[:2]
    return Line(image, np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32))


def _cut(image: Picture, corners: NDArray[np.float32]) -> Line:
    import cv2

    width, height = _size(corners)
    if height >= _UPRIGHT * width:  # written upwards or downwards: lay it on its side
        corners = np.roll(corners, -1, axis=0)
        width, height = height, width
    flat = np.array([(0, 0), (width, 0), (width, height), (0, height)], dtype=np.float32)
    transform = cv2.getPerspectiveTransform(corners, flat)
    cut = cv2.warpPerspective(image, transform, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return Line(np.asarray(cut, dtype=np.uint8), corners)


def _size(corners: NDArray[np.float32]) -> tuple[int, int]:
    """Width and height of a quadrangle, in whole pixels, at least 1."""
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)  # top, right, bottom, left
    return max(1, int(max(sides[0], sides[2]))), max(1, int(max(sides[1], sides[3])))
