"""The interface of text encoders: texts in, named tensors out, and no weight ever trains."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varrl_lightning.weights.files import shortened
from varrl_lightning.weights.hub import download_matching, first_line, hub_id
from varrl_lightning.weights.sizes import dtype_named


class TextEncoder(nn.Module, ABC):
    """A frozen text encoder; a subclass defines `encode` and `device`."""

    @abstractmethod
    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Encode texts to named tensors, rows along dimension 0; called without gradients and outside autocast."""

    def kept_texts(self, texts: Sequence[str]) -> dict[str, str]:
        """What is read of those texts that the encoder cuts off; an encoder without a limit cuts none."""
        return {}

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the results."""

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Encode texts; the result does not depend on a Trainer's precision.

        Raises:
            TypeError: for a single string, since its letters would be read as texts.
            ValueError: for no texts.
        """
        if isinstance(texts, str):
            raise TypeError(f"a text encoder takes a list of texts, got the string {texts!r}")
        if not texts:
            raise ValueError("a text encoder takes at least one text, got none")
        with torch.autocast(self.device.type, enabled=False):
            return self.encode(list(texts))

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in evaluation mode."""
        return super().train(False)


def read_pretrained(path: str | Path, architecture: str, dtype: str) -> tuple[nn.Module, Any]:
    """Load a frozen model of the transformers library and its tokenizer.

    Args:
        path: a folder as transformers writes it, or a hub id `owner/name`.
        architecture: the model's class in transformers.
        dtype: of its weights, `float32`, `bfloat16` or `float16`.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds another model, or not all weights, which transformers would fill in at random.
    """
    return _read(path, architecture, dtype, _tokenizer)


def read_model(path: str | Path, architecture: str, dtype: str) -> nn.Module:
    """As `read_pretrained`, of a model that reads no text and has no tokenizer."""
    model, _ = _read(path, architecture, dtype, None)
    return model


def read_tokenizer(path: str | Path) -> Any:
    """Load a tokenizer of the transformers library, from a folder or a hub id `owner/name`.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
        ValueError: when it holds no tokenizer.
    """
    folder = small_files(path)
    try:
        return _tokenizer(folder)
    except Exception as error:  # OSError, ValueError, ImportError, and whatever a damaged file raises
        raise ValueError(
            f"{path} holds no tokenizer that transformers can read ({first_line(error)}); expected tokenizer.json, or "
            "the files of a vocabulary"
        ) from error


def small_files(path: str | Path) -> Path:
    """A local folder, or that of the settings and vocabularies of a repository, downloaded once.

    Raises:
        FileNotFoundError: when there is no such folder, and no such repository within reach.
    """
    local = Path(path).expanduser()
    return local if local.is_dir() else download_matching(hub_id(str(path))[0], ("*.json", "*.txt", "*.model"))


def _read(path: str | Path, architecture: str, dtype: str, read_tokenizer: Callable[[Path], Any] | None) -> tuple[nn.Module, Any]:
    weights = dtype_named(dtype)
    folder = small_files(path)
    is_local = Path(path).expanduser().is_dir()
    files = "config.json and the weights" if read_tokenizer is None else "config.json, the weights and the tokenizer's files"
    try:
        tokenizer = None if read_tokenizer is None else read_tokenizer(folder)
        model, missing = _model(str(folder) if is_local else str(path), architecture, weights)
    except Exception as error:  # OSError, ValueError, ImportError, and whatever a damaged file raises
        raise ValueError(
            f"{path} holds no {architecture} that transformers can read ({first_line(error)}); expected a folder with {files}, as "
            "`hf download owner/name --local-dir FOLDER` or `save_pretrained` write it"
        ) from error
    if missing:
        raise ValueError(f"{path} is no complete {architecture}: it has no {shortened(missing)}")
    return model.requires_grad_(False).eval(), tokenizer


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The file is read verbatim: AutoTokenizer would rebuild the tokenizer from its vocabulary, without some of its normalisers.
    verbatim = (folder / "tokenizer.json").is_file()
    return (PreTrainedTokenizerFast if verbatim else AutoTokenizer).from_pretrained(str(folder))


def _model(source: str, architecture: str, dtype: torch.dtype) -> tuple[nn.Module, list[str]]:
    """The model, and the names of the weights that its files do not have."""
    import transformers
    from transformers.utils import logging as messages

    verbosity = messages.get_verbosity()
    messages.set_verbosity(logging.ERROR)  # its table of the weights of other parts (decoder, image encoder) fills screens
    try:
        model, report = getattr(transformers, architecture).from_pretrained(source, dtype=dtype, output_loading_info=True)
    finally:
        messages.set_verbosity(verbosity)
    return model, sorted(report["missing_keys"])
