"""The embedded OCR engine on words whose text and place are known."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from fresh import Fresh
from lines import drawn, ink, texts

from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine, one_of
from varrl_lightning.rewards.ocr_lines import LineReader, _ctc

FOLDER = str(Path(__file__).parent)
WORDS = ["NBIR", "CAT", "HOUSE", "TIMER", "WAVE", "FUZE", "OK", "TERSE", "NYLON", "BIRD"]


@pytest.fixture(scope="module")
def line_engine() -> RapidOCREngine:
    return RapidOCREngine(detect=False, threads=2)


@pytest.fixture(scope="module")
def engine() -> RapidOCREngine:
    return RapidOCREngine(threads=2)


def test_lines_are_read(line_engine: RapidOCREngine) -> None:
    assert isinstance(line_engine, OCREngine)
    found = line_engine.read([drawn((word, 4, 3)) for word in WORDS])
    assert texts(found) == [[word] for word in WORDS]
    assert all(0.5 < words[0].confidence <= 1 for words in found)


def test_boxes_of_a_line_lie_on_the_ink(line_engine: RapidOCREngine) -> None:
    """To a token or so: the recogniser has a column for every 4 pixels of these images."""
    images = [drawn((word, x, 3), size=13) for word, x in zip(WORDS, range(0, 20, 2), strict=True)]
    for image, (word,) in zip(images, line_engine.read(images), strict=True):
        x0, _, x1, _ = ink(image)
        assert word.box.x0 == pytest.approx(x0, abs=5.5)
        assert word.box.x1 == pytest.approx(x1, abs=5.5)
        assert (word.box.y0, word.box.y1) == (0, 24)


def test_a_line_is_split_into_words_with_boxes_of_their_own(line_engine: RapidOCREngine) -> None:
    image = drawn(("HOT TEA", 5, 4), width=100)
    ((hot, tea),) = line_engine.read([image])
    assert (hot.text, tea.text) == ("HOT", "TEA")
    assert hot.confidence == tea.confidence  # that of the line
    middle = ink(drawn(("HOT", 5, 4), width=100))[2]
    assert hot.box.x1 - 5 < middle < tea.box.x0
    own = RapidOCREngine(detect=False, threads=1, confidence="word")
    (words,) = own.read([image])
    assert words[0].confidence != words[1].confidence


def test_an_empty_line_has_no_words(line_engine: RapidOCREngine) -> None:
    assert line_engine.read([drawn()]) == [[]]
    assert line_engine.read([]) == []


def test_a_result_does_not_depend_on_the_batch_or_the_threads(line_engine: RapidOCREngine) -> None:
    images = [drawn((word, 4, 3), width=40 + 12 * i) for i, word in enumerate(WORDS)]
    alone = [RapidOCREngine(detect=False, threads=1).read([image])[0] for image in images[:4]]
    for one, together in zip(alone, line_engine.read(images), strict=False):
        assert [w.text for w in one] == [w.text for w in together]
        assert [w.confidence for w in one] == pytest.approx([w.confidence for w in together], abs=1e-5)
        assert [w.box for w in one] == [w.box for w in together]


def test_words_are_found_anywhere(engine: RapidOCREngine) -> None:
    image = drawn(("HOUSE", 20, 15), ("BIRD", 110, 80), size=20, height=120, width=200)
    (words,) = engine.read([image])
    assert [w.text for w in words] == ["HOUSE", "BIRD"]
    for word, (x, y) in zip(words, [(20, 15), (110, 80)], strict=True):
        only = drawn((word.text, x, y), size=20, height=120, width=200)
        assert (word.box.x0, word.box.y0, word.box.x1, word.box.y1) == pytest.approx(
            ink(only), abs=9
        )  # detected lines are generous


def test_writing_on_its_side_is_read(engine: RapidOCREngine) -> None:
    image = drawn(("HOUSE", 40, 8), size=20, height=40, width=140, turn=True)  # 40 wide, 140 high, read upwards
    flat = engine.read([np.ascontiguousarray(np.rot90(image, k=-1))])
    assert texts(flat) == [["HOUSE"]]
    downwards = np.ascontiguousarray(np.rot90(image, k=2))
    (words,) = engine.read([downwards])
    assert [w.text for w in words] == ["HOUSE"]
    assert words[0].confidence > 0.95  # upside down it is read at .84
    box = words[0].box
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx(ink(downwards), abs=8)


def test_no_text_is_no_words(engine: RapidOCREngine) -> None:
    assert engine.read([drawn(height=64)]) == [[]]


@pytest.mark.parametrize("detect", [True, False])
def test_an_engine_survives_pickling_and_forking(detect: bool) -> None:
    engine = RapidOCREngine(detect=detect, threads=1)
    image = drawn(("BIRD", 4, 3))
    expected = engine.read([image])
    assert texts(expected) == [["BIRD"]]
    assert pickle.loads(pickle.dumps(engine)).read([image]) == expected
    assert b"InferenceSession" not in pickle.dumps(engine)


def test_an_engine_that_was_used_works_in_a_forked_process(fresh: Fresh) -> None:
    """onnxruntime's threads do not survive a fork: the session has to be opened anew, or this hangs."""
    # In a process of its own: forking this one, full of torch's threads, is not safe.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        "from lines import drawn; from varrl_lightning.rewards.ocr_lines import LineReader;"
        "reader = LineReader(1); image = drawn(('BIRD', 4, 3)); reader.read([image]); before = reader._opened[1];"
        "pid = os.fork();"
        "status = os.waitpid(pid, 0)[1] if pid else None;"
        "text = ''.join(c.text for c in reader.read([image])[0]);"
        "fresh = reader._opened[1] is not before;"
        "pid or os._exit(0 if fresh and text == 'BIRD' else 1);"
        "sys.exit(0 if status == 0 and not fresh else 1)"
    )
    done = fresh(code, FOLDER)
    assert done.returncode == 0, done.stderr


def test_the_engine_is_quiet(fresh: Fresh) -> None:
    # In a process of its own: rapidocr's log handler keeps the stderr that it found on import.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from lines import drawn; from varrl_lightning.rewards.ocr_engines import RapidOCREngine;"
        "RapidOCREngine(threads=1).read([drawn(('BIRD', 4, 3)), drawn(height=64)])"
    )
    done = fresh(code, FOLDER)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_threads_default_to_those_of_torch() -> None:
    assert RapidOCREngine()._reader.threads == torch.get_num_threads()


def test_impossible_threads() -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, or null for torch's number, got 0"):
        RapidOCREngine(threads=0)


def test_one_of() -> None:
    one_of("confidence", "line", Literal["line", "word"])
    with pytest.raises(ValueError, match="confidence must be one of 'line', 'word', got 'letter'"):
        one_of("confidence", "letter", Literal["line", "word"])


def test_ctc_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    alphabet = ["", "a", "b", "Ａ", " "]  # the last letter is full-width
    for _ in range(200):
        best = rng.integers(0, 5, size=9)
        confidence = rng.random(9).astype(np.float32)
        expected, previous = [], 0
        for column, symbol in enumerate(best):
            if symbol != previous and symbol:
                expected.append(("A" if symbol == 3 else alphabet[symbol], confidence[column]))
            previous = symbol
        found = _ctc(best, confidence, alphabet, scale=4.0)
        assert [(c.text, np.float32(c.confidence)) for c in found] == expected


def test_ctc_places_a_character_in_the_middle_of_its_run() -> None:
    (character,) = _ctc(np.array([0, 0, 1, 1, 1, 0]), np.ones(6, dtype=np.float32), ["", "a"], scale=4.0)
    assert character.x == 14.0  # columns 2, 3, 4 of 4 pixels are pixels 8 to 20


def test_a_line_is_not_stretched() -> None:
    """Narrow and wide images with letters of one size are all read, and answered in the order of the call."""
    words, widths = ["CAT", "TEN", "BIRD", "SUN"], [300, 30, 64, 300]
    lines = [drawn((word, 0, 3), size=13, width=width) for word, width in zip(words, widths, strict=True)]
    assert ["".join(c.text for c in line).strip() for line in LineReader(1).read(lines)] == words


def test_a_squeezed_line_is_read_alike_and_its_boxes_stay_on_the_ink() -> None:
    """The words fill 60 of 180 columns: at 96 they are half as wide for the model, and where they were in the picture."""
    engine = RapidOCREngine(detect=False, threads=1, max_line_width=96)
    spaced = [
        drawn(*((letter, 1 + 12 * i, 0) for i, letter in enumerate(word)), size=13, height=16, width=60) for word in WORDS[:4]
    ]
    read = engine.read(spaced)
    assert texts(read) == [[word] for word in WORDS[:4]]
    for image, (word,) in zip(spaced, read, strict=True):
        x0, _, x1, _ = ink(image)
        assert word.box.x0 == pytest.approx(x0, abs=6)
        assert word.box.x1 == pytest.approx(x1, abs=6)


def test_lines_are_squeezed_to_a_width_that_can_hold_a_letter() -> None:
    with pytest.raises(ValueError, match="max_line_width must be at least 32 pixels, got 16"):
        RapidOCREngine(max_line_width=16)


def test_a_line_that_is_hardly_read_holds_no_text() -> None:
    """Bricks are read as a 1, with little confidence; a word is kept."""
    ground = np.full((16, 60, 3), 200, np.uint8)
    ground[7::8] = ground[:, 7::8] = 120
    sure, word = RapidOCREngine(detect=False, threads=1), drawn(("BIRD", 4, 0), size=13, height=16, width=60)
    (found,), (kept,) = sure.read([ground]), sure.read([word])
    assert found[0].confidence < 0.5 < kept[0].confidence
    doubting = RapidOCREngine(detect=False, threads=1, min_confidence=0.5)
    assert texts(doubting.read([ground, word])) == [[], ["BIRD"]]
    with pytest.raises(ValueError, match=r"min_confidence must be in \[0, 1\], got 50"):
        RapidOCREngine(min_confidence=50)
