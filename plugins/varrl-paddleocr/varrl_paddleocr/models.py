"""Where PaddleOCR's models are: local directories that are checked at once, or names that PaddleOCR downloads."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import yaml

Runtime = Literal["paddle", "onnxruntime"]

_WEIGHTS = {"onnxruntime": ("inference.onnx",), "paddle": ("inference.json", "inference.pdmodel")}
_PACKAGES = {
    "paddle": ("paddle", "pip install 'paddlepaddle>=3.3', or choose engine='onnxruntime'"),
    "onnxruntime": ("onnxruntime", "pip install onnxruntime"),
}


@dataclass(frozen=True)
class Model:
    """One model: the name that PaddleOCR knows it by, and its directory if it is local."""

    name: str
    folder: Path | None = None


def local_model(argument: str, folder: str | Path, engine: Runtime) -> Model:
    """The model in a directory, named as its `inference.yml` says.

    Raises:
        FileNotFoundError: when the directory, its description or its weights for this engine are missing.
        ValueError: when `inference.yml` names no model.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument} must be a directory with a PaddleOCR model, got {str(folder)!r}: no such directory")
    description = folder / "inference.yml"
    files = _WEIGHTS[engine]
    if not description.is_file() or not any((folder / file).is_file() for file in files):
        raise FileNotFoundError(
            f"{argument}={str(folder)!r} holds {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}; "
            f"engine={engine!r} needs inference.yml and {' or '.join(files)}."
        )
    content = yaml.safe_load(description.read_text(encoding="utf-8"))
    parts = content.get("Global") if isinstance(content, dict) else None
    name = parts.get("model_name") if isinstance(parts, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{description} names no model under Global: model_name; expected the file that PaddleOCR ships with it")
    return Model(name, folder)


@lru_cache(maxsize=8)
def characters_of(model: Model, engine: Runtime) -> frozenset[str] | None:
    """The characters that a recogniser can write, a space among them; None where its directory, or the list in it, is missing."""
    description = (model.folder or _downloaded(model.name, engine)) / "inference.yml"
    if not description.is_file():
        return None
    # As strings alone: a digit is a character here. libyaml reads the thousands of entries in a tenth of the time.
    content = yaml.load(description.read_text(encoding="utf-8"), getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    parts = content.get("PostProcess") if isinstance(content, dict) else None
    listed = parts.get("character_dict") if isinstance(parts, dict) else None
    return frozenset([*listed, " "]) if isinstance(listed, list) and listed else None


def _downloaded(name: str, engine: Runtime) -> Path:
    """Where PaddleX keeps what it has downloaded."""
    home = os.environ.get("PADDLE_PDX_CACHE_HOME") or Path.home() / ".paddlex"
    return Path(home, "official_models", f"{name}_onnx" if engine == "onnxruntime" else name)


def official_models(ocr_version: str, lang: str) -> tuple[Model, Model]:
    """Detector and recogniser that PaddleOCR itself takes for a version and a language.

    Raises:
        ValueError: when it has none.
    """
    # Private, but the only place that knows the names; the recogniser alone cannot be asked for by language.
    det, rec = importlib.import_module("paddleocr").PaddleOCR._get_ocr_model_names(None, lang, ocr_version)
    if det is None or rec is None:
        raise ValueError(f"PaddleOCR has no models for ocr_version={ocr_version!r} and lang={lang!r}; try 'PP-OCRv5' and 'en'")
    return Model(det), Model(rec)


def check_installed(engine: Runtime) -> None:
    """Raise a ModuleNotFoundError that says what to install."""
    for module, command in (("paddleocr", "pip install 'paddleocr>=3.7,<3.8'"), _PACKAGES[engine]):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"engine={engine!r} needs the package {module}: {command}")


def offline_help(models: tuple[Model, ...], engine: Runtime, ocr_version: str, lang: str) -> str:
    """What to do on a machine that cannot download."""
    suffix = "_onnx" if engine == "onnxruntime" else ""
    names = " and ".join(repr(model.name) for model in models)
    return (
        f"PaddleOCR has to download {names} and cannot. On a machine with a network, run\n"
        f'  python -c "from paddleocr import PaddleOCR; PaddleOCR(lang={lang!r}, ocr_version={ocr_version!r}, engine={engine!r}, '
        'use_doc_orientation_classify=False, use_doc_unwarping=False, use_textline_orientation=False)"\n'
        f"then copy its directories ~/.paddlex/official_models/*{suffix} here, and give them as "
        "det_dir (finds the lines) and rec_dir (reads them)."
    )
