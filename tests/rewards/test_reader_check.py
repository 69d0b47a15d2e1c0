"""Rewards that read text are tried on drawn words: what works passes, and each way of not working is found."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, features
from torch import Tensor

from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.base import BaseReward, Reading, score_images
from varrl_lightning.rewards.flow_grpo_ocr import FlowGRPOOCR
from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.rewards.http_answer import encode_answer, rows_of
from varrl_lightning.rewards.http_request import Limits, check_request, decode_image, decode_prompt
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.ocr_engines import RapidOCREngine, Word
from varrl_lightning.rewards.ocr_lines import Picture
from varrl_lightning.rewards.reader_check import MOST_WORDS, ReaderCheck, check_readers, distinct_words
from varrl_lightning.rewards.word_pictures import draw_word, load_face, needs_shaping, why_not_drawn
from varrl_lightning.types import Box, Prompt

WORDS = ["OPEN", "coffee", "Street", "Zürich", "Library", "Sale", "Museum", "Night", "42nd", "Welcome", "Garden", "Łódź"]
PROMPTS = [Prompt(f'a sign that says "{word}"') for word in WORDS]
Change = Callable[[Picture], Picture]


def grey(picture: Picture) -> Picture:
    return np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, axis=2)


def swapped(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[..., ::-1])


class Through:
    """Reads pictures after something has been done to them."""

    def __init__(self, engine: RapidOCREngine, change: Change) -> None:
        self.engine, self.change, self.detect = engine, change, engine.detect

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        return self.engine.read([np.ascontiguousarray(self.change(image)) for image in images])


class Garbage:
    detect = True

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        return [[Word("".join(random.choices("abcdefgh", k=5)), 0.9, Box(0, 0, 1, 1))] for _ in images]


class Blank:
    detect = True

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        return [[] for _ in images]


class Broken:
    detect = True

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        raise RuntimeError("no such device")


class InPercent(Through):
    """Its confidences are no shares, which the reward refuses."""

    def read(self, images: Sequence[Picture]) -> list[list[Word]]:
        return [[Word(w.text, 100 * w.confidence, w.box) for w in words] for words in super().read(images)]


class Slow(BaseReward):
    """Reads everything, a batch in a second of the clock that it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise NotImplementedError

    def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None]:
        self.calls += 1
        return [Reading(prompt.words[0], True) for prompt in prompts]


@pytest.fixture(scope="module")
def lines() -> RapidOCREngine:
    return RapidOCREngine(detect=False, threads=1)


@pytest.fixture(scope="module")
def anywhere() -> RapidOCREngine:
    return RapidOCREngine(threads=1)


def check(reward: Any, prompts: Sequence[Prompt] = PROMPTS, font: str | None = None) -> ReaderCheck:
    (found,) = check_readers({"ocr": (build(REWARDS, reward), True)}, prompts, font, seconds=60)
    return found


def test_rapidocr_reads_all(lines: RapidOCREngine, anywhere: RapidOCREngine) -> None:
    for reward in (OCRReward(engine=lines), OCRReward(engine=lines, case="keep"), FlowGRPOOCR(engine=lines)):
        found = check(reward)
        assert (found.checked, found.share, found.verdict) == (len(WORDS), 1, "passed"), str(found)
    assert str(found) == "ocr reads 12 of 12 drawn words right (1.00)"
    assert check(OCRReward(engine=anywhere), PROMPTS[:4]).share == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: grey(swapped(x)), id="channels swapped, then grey"),
        pytest.param(lambda x: x[::-1], id="upside down"),
        pytest.param(lambda x: x[:, ::-1], id="mirrored"),
        pytest.param(lambda x: x // 255, id="[0, 1] for [0, 255]"),
        pytest.param(lambda x: x.transpose(1, 0, 2), id="height for width"),
        pytest.param(lambda x: x.transpose(2, 0, 1).reshape(x.shape), id="channels first for last"),
    ],
)
def test_pictures_in_a_wrong_form_are_found(lines: RapidOCREngine, change: Change) -> None:
    assert check(OCRReward(engine=Through(lines, change))).verdict == "failed"
    assert check(OCRReward(engine=Through(lines, grey))).share == 1, "it is not the greyness"


@pytest.mark.parametrize("engine", [Garbage(), Blank()])
@pytest.mark.parametrize("kind", [OCRReward, FlowGRPOOCR])
def test_engines_that_do_not_read_are_found(kind: type[Any], engine: Any) -> None:
    found = check(kind(engine=engine))
    assert (found.share, found.verdict) == (0, "failed")
    assert f"reads 0 of {len(WORDS)} drawn words right (0.00); reads '" in str(found)
    assert "' as '" in str(found)


def test_an_engine_that_raises_is_found(lines: RapidOCREngine) -> None:
    found = check(OCRReward(engine=Broken()))
    assert found.verdict == "failed"
    assert str(found) == "ocr failed on drawn words: RuntimeError: no such device"
    assert "confidence must be in [0, 1]" in check(OCRReward(engine=InPercent(lines, lambda x: x))).problem


def test_words_are_compared_as_the_reward_does(lines: RapidOCREngine) -> None:
    class Capitals(Through):
        def read(self, images: Sequence[Picture]) -> list[list[Word]]:
            return [[Word(w.text.upper(), w.confidence, w.box) for w in words] for words in super().read(images)]

    prompts = [Prompt('"open"'), Prompt('"SALE"')]
    shares = [check(OCRReward(engine=Capitals(lines, lambda x: x), case=case), prompts).share for case in ("lower", "keep")]
    assert shares == [1, 0.5]


def test_unknown_characters_count_as_wrong_and_need_no_drawing(lines: RapidOCREngine) -> None:
    prompts = [Prompt(f'"{word}"') for word in ("ОТКРЫТО", "영업", "שלום", "OPEN")]
    found = check(OCRReward(engine=lines), prompts)
    assert (found.checked, found.share, found.verdict) == (4, 0.25, "failed")
    assert set(found.read) == {"OPEN"}
    assert "cannot write 'ОТКРЫ' of 'ОТКРЫТО', '영업' of '영업', 'שלום' of 'שלום'" in str(found)


def test_between_the_bounds_it_is_doubtful() -> None:
    def of(right: int) -> str:
        read = {str(i): Reading(str(i), i < right) for i in range(20)}
        return ReaderCheck("ocr", True, 20, 20, read).verdict

    assert [of(n) for n in (0, 9, 10, 17, 18, 20)] == ["failed", "failed", "doubtful", "doubtful", "passed", "passed"]


# --- which words ------------------------------------------------------------------------------------------------------------


def test_words_are_distinct_as_they_are_compared() -> None:
    prompts = [Prompt("a", words=("Hot tea", "OPEN")), Prompt("b", words=("open", "TEA  house", "\u3000"))]
    assert distinct_words(prompts) == ["Hot", "tea", "OPEN", "house"]


def test_of_many_words_the_same_64_are_read() -> None:
    prompts = [Prompt(f'"word{i}"') for i in range(500)]
    first, again = check(Slow(), prompts), check(Slow(), prompts)
    assert first.checked == first.chosen == MOST_WORDS
    assert list(first.read) == list(again.read)
    places = sorted(int(word.removeprefix("word")) for word in first.read)
    assert places[0] < 50, "from the beginning"
    assert places[-1] > 450, "to the end"


def test_it_stops_in_time_and_says_how_many_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, other = Slow(), Slow()
    monkeypatch.setattr(time, "monotonic", lambda: float(slow.calls + other.calls))
    prompts = [Prompt(f'"word{i}"') for i in range(100)]
    found = check_readers({"a": (slow, True), "b": (other, True)}, prompts, seconds=5)
    assert 2 <= slow.calls <= 3, "half of the time"
    assert slow.calls + other.calls <= 6
    assert found[0].checked == 4 * slow.calls
    assert f"{64 - found[0].checked} more of the 64 chosen not checked" in str(found[0])


def test_rewards_that_do_not_read_are_not_asked() -> None:
    def brightness(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise AssertionError("it was called")

    assert check_readers({"light": (build(REWARDS, brightness), True)}, PROMPTS) == []


# --- drawing ----------------------------------------------------------------------------------------------------------------


def test_words_without_glyphs_are_listed_as_not_checked() -> None:
    found = check(Slow(), [Prompt('"OPEN"'), Prompt('"영업"'), Prompt('"営業中"')])
    assert found.checked == 1
    assert str(found).endswith("not checked, since no font has its characters: '영업', '営業中'")
    assert "it has more than 64 characters" in str(check(Slow(), [Prompt(f'"{"long" * 20}"')]))
    nothing = check(Slow(), [Prompt('"영업"')])
    assert (nothing.share, nothing.verdict) == (None, "passed")
    assert str(nothing).startswith("ocr was given no drawn word; not checked")


def test_a_font_of_ones_own_comes_first() -> None:
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    own = load_face(str(fonts / "STIXNonUni.ttf"))
    assert why_not_drawn("OPEN", (own,)) is not None, "it has few letters"
    assert why_not_drawn("OPEN", (own, load_face())) is None
    serif = load_face(str(fonts / "DejaVuSerif.ttf"))
    one, other = (draw_word("OPEN", faces).pixels for faces in ((serif, load_face()), (load_face(),)))
    assert one.shape != other.shape
    with pytest.raises(ValueError, match=r"font must be a TrueType or OpenType file, got '.*pyproject\.toml'"):
        check(Slow(), font="pyproject.toml")
    with pytest.raises(ValueError, match=r"got '/nowhere\.ttf'"):
        check(Slow(), font="/nowhere.ttf")


def test_scripts_that_need_shaping_are_drawn_only_with_raqm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [word for word in ("OPEN", "cafe", "café", "日本", "مفتوح", "שלום", "เปิด", "खुला") if needs_shaping(word)] == [
        *("مفتوح", "שלום", "เปิด", "खुला")
    ]
    faces = (load_face(),)
    for there in (True, False):
        monkeypatch.setattr(features, "check", lambda feature, there=there: feature == "raqm" and there)
        assert why_not_drawn("OPEN", faces) is why_not_drawn("cafe\u0301", faces) is None
        assert (why_not_drawn("مفتوح", faces) is None) == there
    assert check(Slow(), [Prompt('"مفتوح"')]).undrawn == {"مفتوح": "Pillow cannot shape its script without raqm"}


def test_a_picture_holds_all_of_the_word() -> None:
    for word in ("OPEN", "gypsy", "ÅÉÎ", "a", "I\ufe0f"):
        picture = draw_word(word, (load_face(),))
        edges = [picture.pixels[0], picture.pixels[-1], picture.pixels[:, 0], picture.pixels[:, -1]]
        assert all(len(np.unique(edge, axis=0)) == 1 for edge in edges), "ground alone"
        box = picture.region
        inside = picture.pixels[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)]
        ink = (picture.pixels != picture.pixels[0, 0]).any(axis=2).sum()
        assert 0 < ink == (inside != picture.pixels[0, 0]).any(axis=2).sum()


# --- through a service ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(reward: Any) -> Iterator[str]:
    """The address of a service in a thread of this process."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = check_request(self.rfile.read(int(self.headers["Content-Length"])), Limits())
            prompts = [decode_prompt(prompt) for prompt in request["prompts"]]
            images = torch.stack([decode_image(image, 10**6) for image in request["images"]]).float() / 255
            scores = score_images(reward, images, prompts, "served")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(encode_answer(rows_of(scores))).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_service_is_tried_through_the_wire(lines: RapidOCREngine) -> None:
    with serving(OCRReward(engine=lines)) as url:
        assert check(HttpReward(url), PROMPTS[:6]).share == 1
    with serving(OCRReward(engine=Through(lines, lambda x: x[::-1]))) as url:
        assert check(HttpReward(url), PROMPTS[:6]).verdict == "failed"


def test_a_service_that_does_not_read_is_not_checked() -> None:
    with serving(lambda images, prompts: images.mean(dim=(1, 2, 3))) as url:
        assert check_readers({"light": (HttpReward(url), True)}, PROMPTS) == []


def test_a_service_that_is_away_says_nothing_about_its_reader() -> None:
    with serving(None) as url:
        pass
    with pytest.warns(UserWarning, match="no reward service"):
        found = check(HttpReward(url), PROMPTS[:4])
    assert (found.checked, found.verdict) == (0, "passed")
    assert "4 more of the 4 chosen not checked" in str(found)
