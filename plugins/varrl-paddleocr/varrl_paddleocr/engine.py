"""PaddleOCR as an OCR engine: images in, words with confidences and boxes out."""

from __future__ import annotations

import importlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from varrl_lightning.rewards.ocr_engines import Word, one_of
from varrl_lightning.types import Box
from varrl_paddleocr.models import Model, Runtime, characters_of, check_installed, local_model, official_models, offline_help

# PaddleX 3.7 raises a bare Exception with one of these in it.
_OFFLINE = ("model hosting platforms", "model source is available", "when download model")


class PaddleOCREngine:
    """PaddleOCR 3.7: a line's text and confidence, split on whitespace into words.

    A word has the confidence and the box of its line. The models are opened at the first `read` of each process, so that
    an engine can be pickled and forked; `open` does it at once.

    Args:
        detect: find the lines first; otherwise an image is one line.
        engine: `onnxruntime` runs on any CPU; `paddle` needs paddlepaddle.
        ocr_version: generation of the models to download, when no directories are given.
        lang: language of the models to download, when no directories are given.
        det_dir: directory of a local detector; goes with `rec_dir`, and is not used without `detect`.
        rec_dir: directory of a local recogniser.
        device: `cpu`, `gpu` (this process's own: `LOCAL_RANK`) or `gpu:<number>`.
        threads: on the CPU; torch's number when None.

    Raises:
        FileNotFoundError: when a directory holds no model for this engine.
        ModuleNotFoundError: when the engine's package is not installed.
    """

    def __init__(
        self,
        detect: bool = True,
        *,
        engine: Runtime = "onnxruntime",
        ocr_version: str = "PP-OCRv5",
        lang: str = "en",
        det_dir: str | Path | None = None,
        rec_dir: str | Path | None = None,
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        one_of("engine", engine, Runtime)
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or null for torch's number, got {threads}")
        if device not in ("cpu", "gpu") and not (device.startswith("gpu:") and device[4:].isdigit()):
            raise ValueError(f"device must be 'cpu', 'gpu' or 'gpu:<number>', got {device!r}")
        if (detect and (det_dir is None) != (rec_dir is None)) or (rec_dir is None and det_dir is not None):
            raise ValueError(
                f"det_dir and rec_dir go together, got det_dir={det_dir!r} and rec_dir={rec_dir!r}; "
                "give both, or neither to download the models of ocr_version and lang"
            )
        check_installed(engine)
        self.detect, self.engine, self.ocr_version, self.lang = detect, engine, ocr_version, lang
        self.device, self.threads = device, threads or torch.get_num_threads()
        self._det = local_model("det_dir", det_dir, engine) if detect and det_dir is not None else None
        self._rec = local_model("rec_dir", rec_dir, engine) if rec_dir is not None else None
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Word]]:
        """The words of each image, (H, W, 3) RGB bytes: lines from top to bottom, left to right in a line.

        Raises:
            TypeError: when an image is not (H, W, 3) bytes: PaddleOCR would find no text in it, and say nothing.
            RuntimeError: when the models are neither here nor to be downloaded, or PaddleOCR drops an image.
        """
        if not images:
            return []
        pictures = [_bgr(image) for image in images]
        results = list(self.open().predict(pictures))
        if len(results) != len(pictures):
            raise RuntimeError(f"PaddleOCR answered {len(results)} times for {len(pictures)} images; expected one answer each")
        if self.detect:
            return [words_of_lines(r["rec_texts"], r["rec_scores"], r["rec_polys"]) for r in results]
        corners = [[(0, 0), (image.shape[1], image.shape[0])] for image in images]
        return [words_of_lines([r["rec_text"]], [r["rec_score"]], [c]) for r, c in zip(results, corners, strict=True)]

    def alphabet(self) -> frozenset[str] | None:
        """The characters that the recogniser can write, as its `inference.yml` lists them; None where that does not.

        Raises:
            RuntimeError: see `open`, which downloads what is not here.
        """
        if self._rec is None:
            self.open()
        return characters_of(self._rec or official_models(self.ocr_version, self.lang)[1], self.engine)

    def open(self) -> Any:
        """The pipeline or recogniser of this process, loaded once.

        Raises:
            RuntimeError: offline without local models; says what to download and how to pass it.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            local = (self._det, self._rec) if self._rec is not None else None
            self._opened = (os.getpid(), self._build(*(local or official_models(self.ocr_version, self.lang))))
        return self._opened[1]

    def _build(self, det: Model | None, rec: Model) -> Any:
        paddleocr = importlib.import_module("paddleocr")  # seconds
        logging.getLogger("paddlex").setLevel(logging.CRITICAL)  # it tells of every model and every enlarged image
        common: dict[str, Any] = {"engine": self.engine, "device": _device(self.device), "cpu_threads": self.threads}
        if self.engine == "onnxruntime":
            common["engine_config"] = {"intra_op_num_threads": self.threads}
        try:
            if not self.detect:
                return paddleocr.TextRecognition(model_name=rec.name, model_dir=_path(rec), **common)
            assert det is not None
            return paddleocr.PaddleOCR(
                text_detection_model_name=det.name,
                text_detection_model_dir=_path(det),
                text_recognition_model_name=rec.name,
                text_recognition_model_dir=_path(rec),
                use_doc_orientation_classify=False,
                use_doc_unwarping=False,
                use_textline_orientation=False,
                **common,
            )
        except Exception as error:  # PaddleX raises Exception itself
            if not any(sign in str(error) for sign in _OFFLINE):
                raise
            wanted = (det, rec) if self.detect and det is not None else (rec,)
            raise RuntimeError(offline_help(wanted, self.engine, self.ocr_version, self.lang)) from error


def words_of_lines(texts: Iterable[str], scores: Iterable[float], outlines: Iterable[Any]) -> list[Word]:
    """Lines as words in NFKC, split on whitespace; each has its line's confidence and the rectangle around its outline."""
    words = []
    for text, score, outline in zip(texts, scores, outlines, strict=True):
        points = np.asarray(outline, dtype=np.float64)
        box = Box(*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        # Split first: NFKC makes a lone accent, which may be an apostrophe, a space with a combining one.
        words += [Word(unicodedata.normalize("NFKC", word), float(score), box) for word in text.split()]
    return words


def _bgr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} of shape {tuple(image.shape)}" if hasattr(image, "dtype") else type(image).__name__
        raise TypeError(f"PaddleOCR reads arrays of uint8 of shape (height, width, 3), got {what}")
    return np.ascontiguousarray(image[:, :, ::-1])


def _device(device: str) -> str:
    """`gpu` alone would be the first one in every process of a node."""
    return f"gpu:{os.environ.get('LOCAL_RANK', '0')}" if device == "gpu" else device


def _path(model: Model) -> str | None:
    return None if model.folder is None else str(model.folder)
