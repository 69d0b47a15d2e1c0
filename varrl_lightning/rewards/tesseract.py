"""Tesseract as an OCR engine: a judge that shares neither weights nor training data with PP-OCR."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import struct
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from varrl_lightning.rewards.ocr import Bag, Duplicates, Match, OCRReward, WithoutWords
from varrl_lightning.rewards.ocr_engines import Word
from varrl_lightning.rewards.ocr_lines import Picture
from varrl_lightning.types import Box, Case

_SPARSE_TEXT, _SINGLE_LINE = 11, 7  # page segmentation modes; 8, a single word, reads the picture's edge as a bar
_MAX_SCALE = 3
_MOST_PARTS = 1000
_CHARACTER_LISTS = (1, 21)
"""Parts of a language's data: the characters of the old recogniser, and of the one that is a neural network."""
_NO_CHARACTERS = ("NULL", "Joined", "|Broken|0|1")
_USUAL_PLACES = (
    "/usr/share/tesseract-ocr/5/tessdata",
    "/usr/share/tesseract-ocr/4.00/tessdata",
    "/usr/share/tessdata",
    "/usr/local/share/tessdata",
    "/opt/homebrew/share/tessdata",
    f"{sys.prefix}/share/tessdata",
    r"C:\Program Files\Tesseract-OCR\tessdata",
)


class TesseractEngine:
    """Tesseract 5 by tesserocr: less able than PP-OCR on noise and blur, but not the reader that was trained against.

    If its word accuracy falls while the reward rises, the generator writes for the reward's reader and not for people.
    About 5 ms for a line, 20 ms for a 64 x 64 image, 100 ms for 1024 x 1024. Opened on first use in each process, so
    that it can be pickled and forked.

    Args:
        detect: look for words anywhere; otherwise an image is one line.
        lang: Tesseract's names of languages, joined by `+`.
        tessdata: directory with `<lang>.traineddata`; when None, `TESSDATA_PREFIX` and the usual places are searched.
        min_confidence: words below it are dropped, in [0, 1]; Tesseract sees text in most textures.
        min_length: words with fewer letters and digits are dropped: set 1 if the prompts want such words.
        min_side: pictures whose shorter side is smaller are enlarged by a whole factor, at most 3.

    Raises:
        ModuleNotFoundError: without tesserocr.
        FileNotFoundError: when a language's data are nowhere.
    """

    def __init__(
        self,
        detect: bool = True,
        *,
        lang: str = "eng",
        tessdata: str | Path | None = None,
        min_confidence: float = 0.5,
        min_length: int = 3,
        min_side: int = 128,
    ) -> None:
        if not 0 <= min_confidence <= 1:
            raise ValueError(f"min_confidence must be in [0, 1], got {min_confidence}")
        if min_length < 1 or min_side < 1:
            raise ValueError(f"min_length and min_side must be at least 1, got {min_length} and {min_side}")
        if importlib.util.find_spec("tesserocr") is None:
            raise ModuleNotFoundError("Tesseract needs tesserocr: pip install 'varrl-lightning[tesseract]'")
        self.detect, self.lang, self.tessdata = detect, lang, find_tessdata(lang, tessdata)
        self.min_confidence, self.min_length, self.min_side = min_confidence, min_length, min_side
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        """The words of each image that are long and sure enough, in Tesseract's reading order."""
        return [self._words(image) for image in images]

    def alphabet(self) -> frozenset[str] | None:
        """The characters in the data of all its languages; None where a file does not list them."""
        listed = [characters_of(self.tessdata / f"{name}.traineddata") for name in self.lang.split("+")]
        known = [characters for characters in listed if characters is not None]
        return frozenset[str]().union(*known) if len(known) == len(listed) else None

    def _words(self, image: Picture) -> list[Word]:
        api, iterate_level, word_level = self._api()
        scale = enlargement(image, self.min_side)
        height, width = image.shape[:2]
        picture = Image.fromarray(image).resize((width * scale, height * scale), Image.Resampling.BICUBIC)
        api.SetImage(picture)
        api.SetSourceResolution(70)  # as it would guess, with a warning
        api.Recognize()
        iterator = api.GetIterator()
        words = [] if iterator is None else [self._word(part, word_level, scale) for part in iterate_level(iterator, word_level)]
        api.Clear()
        return [word for word in words if word is not None]

    def _word(self, part: Any, level: int, scale: int) -> Word | None:
        if part.Empty(level):
            return None
        text = unicodedata.normalize("NFKC", part.GetUTF8Text(level)).strip()
        confidence = part.Confidence(level) / 100
        if confidence < self.min_confidence or sum(map(str.isalnum, text)) < self.min_length:
            return None
        return Word(text, confidence, Box(*(corner / scale for corner in part.BoundingBox(level))))

    def _api(self) -> tuple[Any, Any, int]:
        tesserocr = importlib.import_module("tesserocr")
        if self._opened is None or self._opened[0] != os.getpid():
            mode = _SPARSE_TEXT if self.detect else _SINGLE_LINE
            api = tesserocr.PyTessBaseAPI(path=str(self.tessdata), lang=self.lang, psm=mode)
            api.SetVariable("debug_file", os.devnull)  # it tells of every speck that is too small
            self._opened = (os.getpid(), api)
        return self._opened[1], tesserocr.iterate_level, tesserocr.RIL.WORD


def enlargement(image: Picture, min_side: int) -> int:
    """The whole factor, 1 to 3, by which the shorter side reaches min_side, or comes closest."""
    height, width = int(image.shape[0]), int(image.shape[1])
    return min(_MAX_SCALE, math.ceil(min_side / max(1, min(height, width))))


def find_tessdata(lang: str, tessdata: str | Path | None = None) -> Path:
    """The directory that holds the data of all languages in `lang`.

    Raises:
        FileNotFoundError: says where it looked and how to install them.
    """
    files = [f"{name}.traineddata" for name in lang.split("+")]
    if tessdata is not None:
        places = [Path(tessdata).expanduser()]
    else:
        # Older versions of Tesseract mean the parent directory.
        prefix = [Path(os.environ["TESSDATA_PREFIX"])] if os.environ.get("TESSDATA_PREFIX") else []
        places = [*prefix, *(place / "tessdata" for place in prefix), *map(Path, _USUAL_PLACES)]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    raise FileNotFoundError(
        f"no {' and '.join(files)} in {', '.join(map(str, places))}. Install Tesseract's language data, for instance "
        "'apt install tesseract-ocr-eng', or download them from github.com/tesseract-ocr/tessdata_fast and give their "
        "directory as tessdata or TESSDATA_PREFIX."
    )


@lru_cache(maxsize=32)
def characters_of(traineddata: Path) -> frozenset[str] | None:
    """The characters that the data of a language can write; None where the file holds no list of them.

    The file begins with the number of its parts and their offsets, -1 for one that is absent; a list of characters is text with
    their number on the first line, and on each further one a character, a space and what is known of it. (tessdatamanager.cpp and
    unicharset.cpp of Tesseract.)
    """
    data = traineddata.read_bytes()
    (parts,) = struct.unpack_from("<i", data)
    offsets = struct.unpack_from(f"<{parts}q", data, 4) if 0 < parts <= _MOST_PARTS else ()
    lists = [
        data[start : min((stop for stop in offsets if stop > start), default=len(data))]
        for part, start in enumerate(offsets)
        if part in _CHARACTER_LISTS and start > 0
    ]
    entries = [line.split(" ", 1)[0] for part in lists for line in part.decode("utf-8", "replace").splitlines()[1:]]
    return frozenset(c for entry in entries if entry not in _NO_CHARACTERS for c in entry) if entries else None


def why_not_installed(lang: str = "eng", tessdata: str | Path | None = None) -> str | None:
    """What keeps a `TesseractEngine` from being built here, or None: an optional judge is asked before it is used."""
    try:
        TesseractEngine(lang=lang, tessdata=tessdata)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        return str(error)
    return None


class TesseractReward(OCRReward):
    """The paper's text reward (Eq. 11-15) of the words that Tesseract reads, in [-lam, 2].

    It is for evaluation, or for training at weight 0.

    Args:
        detect, lang, tessdata, min_confidence, min_length, min_side: see `TesseractEngine`.
        lam, match, bag, duplicates, case, without_words: see `OCRReward`.
    """

    def __init__(
        self,
        detect: bool = True,
        *,
        lang: str = "eng",
        tessdata: str | Path | None = None,
        min_confidence: float = 0.5,
        min_length: int = 3,
        min_side: int = 128,
        lam: float = 0.6,
        match: Match = "ld",
        bag: Bag = "symmetric",
        duplicates: Duplicates = "set",
        case: Case = "lower",
        without_words: WithoutWords = "error",
    ) -> None:
        engine = TesseractEngine(
            detect, lang=lang, tessdata=tessdata, min_confidence=min_confidence, min_length=min_length, min_side=min_side
        )
        super().__init__(
            engine=engine, lam=lam, match=match, bag=bag, duplicates=duplicates, case=case, without_words=without_words
        )
