"""The OCR reward by name: `reward: paddleocr`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from varrl_lightning.rewards.ocr import Bag, Duplicates, Match, OCRReward, WithoutWords
from varrl_lightning.types import Case, Prompt
from varrl_paddleocr.engine import PaddleOCREngine
from varrl_paddleocr.models import Runtime


class PaddleOCRReward(OCRReward):
    """The paper's text reward (Eq. 11-15) of the words that PaddleOCR reads: 2 is perfect, -lam is an empty image.

    Args:
        detect, engine, ocr_version, lang, det_dir, rec_dir, device, threads: see `PaddleOCREngine`.
        lam, match, bag, duplicates, case, without_words: see `OCRReward`.
    """

    engine: PaddleOCREngine

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
        lam: float = 0.6,
        match: Match = "ld",
        bag: Bag = "symmetric",
        duplicates: Duplicates = "set",
        case: Case = "lower",
        without_words: WithoutWords = "error",
    ) -> None:
        super().__init__(
            engine=PaddleOCREngine(
                detect,
                engine=engine,
                ocr_version=ocr_version,
                lang=lang,
                det_dir=det_dir,
                rec_dir=rec_dir,
                device=device,
                threads=threads,
            ),
            lam=lam,
            match=match,
            bag=bag,
            duplicates=duplicates,
            case=case,
            without_words=without_words,
        )

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Also open the models, so that missing ones are seen before training.

        Raises:
            ValueError: names the prompts without words.
            RuntimeError: see `PaddleOCREngine.open`.
        """
        super().check_prompts(prompts)
        self.engine.open()
