"""Tesseract on words whose text and place are known, and on pictures without words."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import Fresh
from lines import drawn, ink, texts
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine
from varrl_lightning.rewards.tesseract import TesseractEngine, TesseractReward, enlargement, find_tessdata, why_not_installed
from varrl_lightning.types import Prompt

FOLDER = str(Path(__file__).parent)
MISSING = why_not_installed()
WORDS = ["NBIR", "CAT", "HOUSE", "TIMER", "WAVE", "FUZE", "TERSE", "NYLON", "BIRD"]

needs_tesseract = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_tesserocr = pytest.mark.skipif(importlib.util.find_spec("tesserocr") is None, reason="needs tesserocr")


def textless(seed: int, side: int) -> NDArray[np.uint8]:
    """Noise, blotches, rings or strokes, in turn."""
    rng = np.random.default_rng(seed)
    if seed % 4 == 0:
        return rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    if seed % 4 == 1:
        blotches = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        return np.asarray(blotches.resize((side, side), Image.Resampling.BICUBIC))
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(20):
        x, y = (sorted(rng.integers(0, side, 2).tolist()) for _ in range(2))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        if seed % 4 == 2:
            pen.ellipse((x[0], y[0], x[1] + 1, y[1] + 1), outline=colour, width=2)
        else:
            pen.line((x[0], y[0], x[1], y[1]), fill=colour, width=2)
    return np.asarray(image)


@pytest.fixture(scope="module")
def engine() -> TesseractEngine:
    return TesseractEngine()


@pytest.fixture(scope="module")
def line_engine() -> TesseractEngine:
    return TesseractEngine(detect=False)


@needs_tesseract
def test_lines_are_read_as_by_the_embedded_engine(line_engine: TesseractEngine) -> None:
    assert isinstance(line_engine, OCREngine)
    images = [drawn((word, 4, 3)) for word in WORDS]
    found = line_engine.read(images)
    assert texts(found) == [[word] for word in WORDS] == texts(RapidOCREngine(detect=False, threads=1).read(images))
    assert all(0.85 < words[0].confidence <= 1 for words in found)


@needs_tesseract
@pytest.mark.parametrize(("side", "size"), [(64, 10), (64, 14), (128, 14), (256, 30)])
def test_words_are_found_anywhere_and_boxed(engine: TesseractEngine, side: int, size: int) -> None:
    for i, word in enumerate(WORDS):
        image = drawn((word, 2 + i, (3 * i) % (side // 2)), size=size, height=side, width=side)
        ((read,),) = engine.read([image])
        assert read.text == word
        assert (read.box.x0, read.box.y0, read.box.x1, read.box.y1) == pytest.approx(ink(image), abs=1.5)


@needs_tesseract
def test_two_words_have_places_of_their_own(engine: TesseractEngine) -> None:
    places = [("HOUSE", 20, 15), ("BIRD", 110, 80)]
    (words,) = engine.read([drawn(*places, size=20, height=120, width=200)])
    assert [w.text for w in words] == ["HOUSE", "BIRD"]
    for word, place in zip(words, places, strict=True):
        expected = ink(drawn(place, size=20, height=120, width=200))
        assert (word.box.x0, word.box.y0, word.box.x1, word.box.y1) == pytest.approx(expected, abs=1.5)


@needs_tesseract
def test_small_letters_need_the_enlargement(engine: TesseractEngine) -> None:
    images = [drawn((word, 2 + i, 3 * i), size=10, height=64, width=64) for i, word in enumerate(WORDS)]
    assert texts(engine.read(images)) == [[word] for word in WORDS]
    as_they_are = texts(TesseractEngine(min_side=1).read(images))
    assert sum(found != [word] for found, word in zip(as_they_are, WORDS, strict=True)) >= 2


@needs_tesseract
def test_textures_are_not_text(engine: TesseractEngine) -> None:
    images = [textless(seed, 64) for seed in range(40)]
    credulous = TesseractEngine(min_confidence=0, min_length=1)
    assert sum(map(bool, credulous.read(images))) >= 10
    assert sum(map(bool, engine.read(images))) <= 2


@needs_tesseract
def test_short_words_on_request() -> None:
    image = drawn(("OK", 4, 3))
    assert texts(TesseractEngine(detect=False).read([image])) == [[]]
    assert texts(TesseractEngine(detect=False, min_length=2).read([image])) == [["OK"]]
    sure = TesseractEngine(detect=False, min_length=1, min_confidence=1.0)
    assert texts(sure.read([image])) == [[]]


@needs_tesseract
def test_odd_pictures_are_no_words(engine: TesseractEngine, line_engine: TesseractEngine) -> None:
    odd = [drawn(height=64), drawn(height=2, width=3), drawn(height=1, width=300)]
    assert engine.read(odd) == line_engine.read(odd) == [[], [], []]
    assert engine.read([]) == []


@needs_tesseract
def test_a_result_does_not_depend_on_what_was_read_before(engine: TesseractEngine) -> None:
    images = [drawn((word, 4, 20), height=64, width=100) for word in WORDS]
    alone = [TesseractEngine().read([image])[0] for image in images]
    assert engine.read([textless(3, 64), *images, textless(2, 64)])[1:-1] == alone


@needs_tesseract
def test_pickling(engine: TesseractEngine) -> None:
    image = drawn(("BIRD", 4, 20), height=64)
    expected = engine.read([image])
    assert texts(expected) == [["BIRD"]]
    assert pickle.loads(pickle.dumps(engine)).read([image]) == expected


@needs_tesseract
def test_forking_in_silence(fresh: Fresh) -> None:
    # In a process of its own: forking this one, full of torch's threads, is not safe.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        "from lines import drawn; from varrl_lightning.rewards.tesseract import TesseractEngine;"
        "engine = TesseractEngine(); images = [drawn(('BIRD', 4, 3)), drawn(height=1, width=300)];"
        "engine.read(images); before = engine._opened[1];"
        "pid = os.fork();"
        "status = os.waitpid(pid, 0)[1] if pid else None;"
        "text = engine.read(images)[0][0].text;"
        "fresh = engine._opened[1] is not before;"
        "pid or os._exit(0 if fresh and text == 'BIRD' else 1);"
        "sys.exit(0 if status == 0 and not fresh else 1)"
    )
    done = fresh(code, FOLDER)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_tesseract
def test_the_reward_of_a_case_by_hand() -> None:
    """Wanted hot, tea; read HOT at s1 and TEE at s2.

    Comp = (s1 + 0) / 2; Sim = (1 s1 + (1 - 1/3) s2) / 2; Pen = .6 (one e too many + one a missing) / (6 + 6) = .1.
    """
    reward = build(REWARDS, {"class_path": "varrl_lightning.rewards.tesseract.TesseractReward", "init_args": {"detect": False}})
    picture = drawn(("HOT TEE", 4, 4), width=90)
    ((hot, tee),) = reward.engine.read([picture])
    image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255
    scores = reward(image, [Prompt("a sign", words=("hot", "tea"))])
    assert scores.texts == [["HOT", "TEE"]]
    expected = hot.confidence / 2 + (hot.confidence + 2 / 3 * tee.confidence) / 2 - 0.1
    assert scores.values.item() == pytest.approx(expected, abs=1e-5)
    assert scores.regions == [[hot.box, tee.box]]


def test_every_argument_of_the_ocr_reward_is_there() -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in (TesseractReward, OCRReward))
    readers = inspect.signature(TesseractEngine).parameters
    of_the_engine = {*inspect.signature(RapidOCREngine).parameters, "engine"}
    scoring = {name: p for name, p in theirs.items() if name not in of_the_engine}
    for name, parameter in {**readers, **scoring}.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind)
    assert set(ours) == set(readers) | set(scoring)


@needs_tesseract
def test_arguments_reach_the_score_and_the_engine() -> None:
    reading = {"detect": False, "min_confidence": 0.25, "min_length": 1, "min_side": 64}
    scoring = {"lam": 0.1, "match": "ld*conf", "bag": "max", "duplicates": "multiset", "case": "keep", "without_words": "skip"}
    reward = TesseractReward(**reading, **scoring)  # type: ignore[arg-type]
    assert {name: getattr(reward, name) for name in scoring} == scoring
    assert {name: getattr(reward.engine, name) for name in reading} == reading


def test_enlargement() -> None:
    factors = {1: 3, 24: 3, 43: 3, 64: 2, 127: 2, 128: 1, 1024: 1}
    for side, factor in factors.items():
        assert enlargement(np.zeros((side, 2000, 3), dtype=np.uint8), 128) == factor
        assert enlargement(np.zeros((2000, side, 3), dtype=np.uint8), 128) == factor


def test_language_data_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "tessdata"
    inner.mkdir()
    for language in ("eng", "zzz"):
        (inner / f"{language}.traineddata").touch()
    assert find_tessdata("eng+zzz", inner) == inner
    for prefix in (inner, tmp_path):
        monkeypatch.setenv("TESSDATA_PREFIX", str(prefix))
        assert find_tessdata("zzz") == inner
    with pytest.raises(FileNotFoundError) as caught:
        find_tessdata("zzz+yyy", tmp_path)
    assert str(caught.value).startswith(f"no zzz.traineddata and yyy.traineddata in {tmp_path}. Install Tesseract's language data")
    with pytest.raises(FileNotFoundError, match=r"no yyy.traineddata in .*/usr/share/tessdata, .*apt install tesseract-ocr-eng"):
        find_tessdata("yyy")


@needs_tesserocr
def test_data_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no eng\.traineddata in"):
        TesseractEngine(tessdata=tmp_path)
    assert str(why_not_installed(tessdata=tmp_path)).startswith("no eng.traineddata in")


def test_tesserocr_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tesserocr", None)  # as if it were not there
    reason = "Tesseract needs tesserocr: pip install 'varrl-lightning[tesseract]'"
    with pytest.raises(ModuleNotFoundError) as caught:
        TesseractEngine()
    assert str(caught.value) == reason == why_not_installed()


def test_impossible_options() -> None:
    with pytest.raises(ValueError, match=r"min_confidence must be in \[0, 1\], got 50"):
        TesseractEngine(min_confidence=50)
    with pytest.raises(ValueError, match="min_length and min_side must be at least 1, got 0 and 128"):
        TesseractEngine(min_length=0)
    with pytest.raises(ValueError, match="min_length and min_side must be at least 1, got 3 and 0"):
        TesseractEngine(min_side=0)


def test_nothing_is_imported_before_it_is_used(fresh: Fresh) -> None:
    code = "import sys, varrl_lightning.rewards.tesseract; sys.exit('tesserocr' in sys.modules)"
    assert fresh(code).returncode == 0
