"""PaddleOCR model directories made from the ONNX files inside the rapidocr wheel, and words drawn for them."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import onnxruntime
import yaml
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
DECODE = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}
NORMALIZE = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "scale": "1./255.", "order": "hwc"}
"""As the wheel's own configuration has it; with ImageNet's numbers the boxes of these weights are looser."""


def lay_out(root: Path) -> tuple[Path, Path]:
    """Write `PP-OCRv6_small_det` and `PP-OCRv6_small_rec` below root, as PaddleOCR would have downloaded them."""
    det_post = {"name": "DBPostProcess", "thresh": 0.3, "box_thresh": 0.6, "max_candidates": 1000, "unclip_ratio": 1.5}
    det_pre = [DECODE, {"DetResizeForTest": {"resize_long": 960}}, {"NormalizeImage": NORMALIZE}, {"ToCHWImage": None}]
    det = _directory(root, "det", det_pre, det_post)
    rec_pre = [DECODE, {"RecResizeImg": {"image_shape": [3, 48, 320]}}]
    return det, _directory(root, "rec", rec_pre, {"name": "CTCLabelDecode", "character_dict": _alphabet()})


def _wheel() -> Path:
    spec = importlib.util.find_spec("rapidocr")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"


def _alphabet() -> list[str]:
    session = onnxruntime.InferenceSession(str(_wheel() / "PP-OCRv6_rec_small.onnx"), providers=["CPUExecutionProvider"])
    characters: list[str] = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    return characters


def _directory(root: Path, kind: str, pre: list[dict[str, Any]], post: dict[str, Any]) -> Path:
    name = f"PP-OCRv6_small_{kind}"
    folder = root / name
    folder.mkdir(parents=True)
    shutil.copyfile(_wheel() / f"PP-OCRv6_{kind}_small.onnx", folder / "inference.onnx")
    description = {"Global": {"model_name": name}, "PreProcess": {"transform_ops": pre}, "PostProcess": post}
    (folder / "inference.yml").write_text(yaml.safe_dump(description, allow_unicode=True), encoding="utf-8")
    return folder


def drawn(*texts: tuple[str, int, int], size: int = 15, height: int = 24, width: int = 64) -> NDArray[np.uint8]:
    """Dark words on light grey, each at its own x and y."""
    image = Image.new("RGB", (width, height), (230, 230, 230))
    for text, x, y in texts:
        ImageDraw.Draw(image).text((x, y), text, font=ImageFont.truetype(FONT, size), fill=(20, 20, 20))
    return np.asarray(image)


def ink(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of all that is dark."""
    rows, columns = np.nonzero(image.min(axis=2) < 180)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
