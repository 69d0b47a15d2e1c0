"""PaddleOCR as the reader of the OCR reward."""

from varrl_paddleocr.engine import PaddleOCREngine
from varrl_paddleocr.reward import PaddleOCRReward

__all__ = ["PaddleOCREngine", "PaddleOCRReward"]
