"""Text encoders: frozen, and outside of the trained module."""

from __future__ import annotations

from varrl_lightning.text_encoders.base import TextEncoder
from varrl_lightning.text_encoders.clip import ClipPair
from varrl_lightning.text_encoders.encoded import EncodedTexts
from varrl_lightning.text_encoders.given import Given, text_encoder_of
from varrl_lightning.text_encoders.t5 import T5Text

__all__ = ["ClipPair", "EncodedTexts", "Given", "T5Text", "TextEncoder", "text_encoder_of"]
