"""Annotations are checked at run time; the models are laid out once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

if importlib.util.find_spec("varrl_paddleocr") is None:  # what needs no PaddleOCR is tested without installing the plugin
    sys.path.insert(0, str(Path(__file__).parent.parent))
install_import_hook("varrl_paddleocr", "beartype.beartype")


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Detector and recogniser, or a skip where PaddleOCR is not installed."""
    if importlib.util.find_spec("paddleocr") is None:
        pytest.skip("paddleocr is not installed here; README.md says how to make an environment for it")
    from wheel_models import lay_out

    return lay_out(tmp_path_factory.mktemp("models"))
