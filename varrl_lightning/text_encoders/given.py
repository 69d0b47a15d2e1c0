"""Builds a text encoder from any of the forms in which users give one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from varrl_lightning.text_encoders.encoded import EncodedTexts

Given = list[str] | nn.Module | str | Path | None
"""An encoder; a folder or hub id, or several for a family with several encoders; a .safetensors file of encoded texts; or None."""


def text_encoder_of(given: Given, load: Callable[..., nn.Module]) -> nn.Module | None:
    """Return the given encoder, or build it from its folders, hub ids or file.

    Args:
        load: builds the family's encoder from folders or hub ids.
    """
    if given is None or isinstance(given, nn.Module):
        return given
    if isinstance(given, (str, Path)):
        return EncodedTexts(given) if str(given).endswith(".safetensors") else load(given)
    return load(*given)
