"""PaddleOCR itself, on models from the rapidocr wheel and words whose text and place are known."""

from __future__ import annotations

import os
import pickle
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from varrl_paddleocr import PaddleOCREngine
from varrl_paddleocr.engine import _bgr, _device, words_of_lines
from varrl_paddleocr.models import Model, characters_of
from wheel_models import drawn, ink

from varrl_lightning.policies.lettering_sign import Sign
from varrl_lightning.pretraining.rendering import LINE_HEIGHT, render_signs
from varrl_lightning.rewards.ocr_engines import OCREngine, RapidOCREngine, Word
from varrl_lightning.types import Box

HERE = Path(__file__).parent
WORDS = ["NBIR", "CAT", "HOUSE", "TIMER", "WAVE", "FUZE", "OK", "TERSE", "NYLON", "BIRD"]
SIGNS = [
    [("HOUSE", 20, 15), ("BIRD", 110, 80)],
    [("Hot tea,", 10, 10), ("no milk", 60, 70)],
    [("OPEN", 70, 50)],
    [("Room 42", 30, 40)],
    [("left", 5, 20), ("right", 120, 20)],
    [],
]
Make = Callable[..., PaddleOCREngine]


@pytest.fixture(scope="session")
def make(directories: tuple[Path, Path]) -> Make:
    det, rec = directories

    def build(**options: Any) -> PaddleOCREngine:
        return PaddleOCREngine(**{"engine": "onnxruntime", "det_dir": det, "rec_dir": rec, "threads": 1, **options})

    return build


@pytest.fixture(scope="session")
def engine(make: Make) -> PaddleOCREngine:
    return make()


@pytest.fixture(scope="session")
def line_engine(make: Make) -> PaddleOCREngine:
    return make(detect=False)


def signs() -> list[np.ndarray]:
    return [drawn(*sign, size=20, height=120, width=200) for sign in SIGNS]


def texts(found: list[list[Word]]) -> list[list[str]]:
    return [[word.text for word in words] for words in found]


def test_words_are_read(engine: PaddleOCREngine, line_engine: PaddleOCREngine) -> None:
    assert isinstance(engine, OCREngine)
    images = [drawn((word, 4, 3)) for word in WORDS]
    for reader in (engine, line_engine):
        found = reader.read(images)
        assert texts(found) == [[word] for word in WORDS]
        assert all(0.5 < words[0].confidence <= 1 for words in found)


def test_the_alphabet_is_that_of_the_model(engine: PaddleOCREngine, line_engine: PaddleOCREngine) -> None:
    """The models are those of the rapidocr wheel."""
    expected = RapidOCREngine(detect=False, threads=1).alphabet()
    assert engine.alphabet() == line_engine.alphabet() == expected
    assert {"0", "~", " ", "é", "字"} <= expected


def test_a_model_need_not_list_its_alphabet(tmp_path: Path) -> None:
    (tmp_path / "inference.yml").write_text("PostProcess: {name: CTCLabelDecode}", encoding="utf-8")
    assert characters_of(Model("rec", tmp_path), "onnxruntime") is None
    assert characters_of(Model("rec", tmp_path / "nowhere"), "onnxruntime") is None
    (tmp_path / "inference.yml").write_text("PostProcess: {character_dict: [a, 1, no, '~']}", encoding="utf-8")
    assert characters_of(Model("rec", tmp_path), "paddle") == {"a", "1", "no", "~", " "}


def test_the_pictures_of_the_embedded_model_are_read(line_engine: PaddleOCREngine) -> None:
    words = [word for word in WORDS if len(word) > 2]  # it writes three to five letters
    for pictures in render_signs([Sign((word,)) for word in words], seed=0):  # plain and whole
        line = pictures[:, :, LINE_HEIGHT : 2 * LINE_HEIGHT]  # where one word stands
        images = (line * 255).byte().permute(0, 2, 3, 1).numpy()
        assert texts(line_engine.read(list(images))) == [[word] for word in words]


def test_words_are_found_anywhere(engine: PaddleOCREngine) -> None:
    (words,) = engine.read(signs()[:1])
    assert [w.text for w in words] == ["HOUSE", "BIRD"]
    for word, place in zip(words, SIGNS[0], strict=True):
        x0, y0, x1, y1 = ink(drawn(place, size=20, height=120, width=200))
        assert (word.box.x0, word.box.y0, word.box.x1, word.box.y1) == pytest.approx((x0, y0, x1, y1), abs=9)  # generous


def test_a_line_is_split_into_words_that_share_it(line_engine: PaddleOCREngine) -> None:
    ((hot, tea),) = line_engine.read([drawn(("HOT TEA", 5, 4), width=100)])
    assert (hot.text, tea.text) == ("HOT", "TEA")
    assert hot.confidence == tea.confidence
    assert hot.box == tea.box == Box(0, 0, 100, 24)


def test_no_text_is_no_words(engine: PaddleOCREngine, line_engine: PaddleOCREngine) -> None:
    for reader in (engine, line_engine):
        assert reader.read([drawn()]) == [[]]
        assert reader.read([]) == []


def test_a_result_does_not_depend_on_the_others(engine: PaddleOCREngine, line_engine: PaddleOCREngine) -> None:
    lines = [drawn((word, 4, 3), width=40 + 30 * i) for i, word in enumerate(WORDS)]
    for reader, images in ((engine, signs()), (line_engine, lines)):
        assert [reader.read([image])[0] for image in images] == reader.read(images)


def test_it_agrees_with_the_embedded_engine(make: Make) -> None:
    """The same weights: the same words, confidences .02 apart on average, .15 at most: PaddleOCR pads short lines more."""
    lines = [drawn((word, x, 3), size=13) for x in (2, 6) for word in WORDS]
    for detect, images in ((False, lines), (True, lines + signs())):
        ours, theirs = make(detect=detect).read(images), RapidOCREngine(detect, threads=1).read(images)
        assert texts(ours) == texts(theirs)
        gaps = [abs(a.confidence - b.confidence) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
        assert statistics.fmean(gaps) < 0.02
        assert max(gaps) < 0.15


def test_it_survives_pickling(make: Make) -> None:
    image = drawn(("BIRD", 4, 3))
    for detect in (True, False):
        engine = make(detect=detect)
        before = pickle.loads(pickle.dumps(engine))
        expected = engine.read([image])
        assert texts(expected) == [["BIRD"]]
        assert before.read([image]) == expected
        assert pickle.loads(pickle.dumps(engine)).read([image]) == expected
        assert engine.open() is engine.open()


SCRIPT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from wheel_models import drawn
from varrl_paddleocr import PaddleOCREngine
engine = PaddleOCREngine(engine="onnxruntime", det_dir=sys.argv[2], rec_dir=sys.argv[3], threads=1)
images = [drawn(("BIRD", 4, 3)), drawn(height=64), drawn(height=3, width=300)]  # the last is enlarged too much
before = engine.open()
engine.read(images)
pid = os.fork()
status = os.waitpid(pid, 0)[1] if pid else None
right = engine.read(images)[0][0].text == "BIRD" and (engine.open() is before) == bool(pid)
pid or os._exit(0 if right else 1)
sys.exit(0 if right and status == 0 else 1)
"""


def run(script: str, directories: tuple[Path, Path], **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, str(HERE), *map(str, directories)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment})


def test_it_works_in_a_forked_process_and_is_quiet(directories: tuple[Path, Path]) -> None:
    # In a process of its own: forking this one, full of torch's threads, is not safe.
    done = run(SCRIPT, directories)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_offline_without_models_it_says_what_to_do(directories: tuple[Path, Path], tmp_path: Path) -> None:
    script = """
from varrl_paddleocr import PaddleOCREngine
for detect in (True, False):
    try:
        PaddleOCREngine(detect, engine="onnxruntime").open()
    except RuntimeError as error:
        print(error)
"""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    done = run(script, directories, **nowhere, no_proxy="", PADDLE_PDX_CACHE_HOME=str(tmp_path))
    both, one = done.stdout.split("PaddleOCR has to download ")[1:]
    assert both.startswith("'PP-OCRv5_server_det' and 'en_PP-OCRv5_mobile_rec' and cannot. On a machine with a network, run\n")
    assert "PaddleOCR(lang='en', ocr_version='PP-OCRv5', engine='onnxruntime', use_doc_orientation_classify=False" in both
    assert "official_models/*_onnx here, and give them as det_dir (finds the lines) and rec_dir (reads them)." in both
    assert one.startswith("'en_PP-OCRv5_mobile_rec' and cannot.")


def test_models_that_do_not_exist(make: Make, directories: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no models for ocr_version='PP-OCRv5' and lang='xx'; try 'PP-OCRv5' and 'en'"):
        make(det_dir=None, rec_dir=None, lang="xx").open()
    with pytest.raises(FileNotFoundError, match=r"det_dir must be a directory .*/none': no such directory"):
        make(det_dir=tmp_path / "none")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"rec_dir=.* holds readme.txt; engine='onnxruntime' needs inference.yml and inf"):
        make(rec_dir=tmp_path)
    (tmp_path / "inference.onnx").touch()
    (tmp_path / "inference.yml").write_text(yaml.safe_dump({"Global": {}}))
    with pytest.raises(ValueError, match=r"inference.yml names no model under Global: model_name"):
        make(rec_dir=tmp_path)


def test_one_directory_of_two(make: Make, directories: tuple[Path, Path]) -> None:
    for options in ({"det_dir": None}, {"rec_dir": None}, {"rec_dir": None, "detect": False}):
        with pytest.raises(ValueError, match="det_dir and rec_dir go together"):
            make(**options)
    alone = make(det_dir=None, detect=False)
    assert texts(alone.read([drawn(("BIRD", 4, 3))])) == [["BIRD"]]


def test_pictures_that_paddleocr_would_silently_find_empty(engine: PaddleOCREngine) -> None:
    image = drawn(("BIRD", 4, 3))
    for wrong, what in (
        (image.astype(np.float32) / 255, "float32 of shape (24, 64, 3)"),
        (image[..., 0], "uint8 of shape (24, 64)"),
        (image.transpose(2, 0, 1), "uint8 of shape (3, 24, 64)"),
        (torch.from_numpy(image.copy()), "torch.uint8 of shape (24, 64, 3)"),
    ):
        with pytest.raises(TypeError) as caught:
            # Through the plain function: with annotations enforced the call itself would be refused.
            getattr(_bgr, "__wrapped__", _bgr)(wrong)
        assert str(caught.value) == f"PaddleOCR reads arrays of uint8 of shape (height, width, 3), got {what}"


def test_colours_are_given_as_paddleocr_takes_them() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[..., 0] = 200  # red
    assert _bgr(image)[0, 0].tolist() == [0, 0, 200]
    assert _bgr(image).flags.c_contiguous


def test_an_answer_too_few(make: Make) -> None:
    engine = make()

    class Drops:
        def predict(self, images: list[Any]) -> list[Any]:
            return [{"rec_texts": [], "rec_scores": [], "rec_polys": []} for _ in images[1:]]

    engine._opened = (os.getpid(), Drops())
    with pytest.raises(RuntimeError, match="PaddleOCR answered 1 times for 2 images; expected one answer each"):
        engine.read([drawn(), drawn()])


def test_lines_to_words() -> None:
    outline = [(5, 7), (30, 5), (31, 20), (6, 22)]
    words = words_of_lines(["ＨＯＴ\u3000tea ", " "], [0.75, 0.5], [outline, outline])  # full-width letters and space
    assert words == [Word("HOT", 0.75, Box(5, 5, 31, 22)), Word("tea", 0.75, Box(5, 5, 31, 22))]


def test_a_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert [_device(d) for d in ("cpu", "gpu", "gpu:2")] == ["cpu", "gpu:0", "gpu:2"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [_device(d) for d in ("cpu", "gpu", "gpu:2")] == ["cpu", "gpu:3", "gpu:2"]


def test_impossible_options(make: Make) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, or null for torch's number, got 0"):
        make(threads=0)
    for device in ("cuda", "gpu:", "gpu:x"):
        with pytest.raises(ValueError, match=f"device must be 'cpu', 'gpu' or 'gpu:<number>', got '{device}'"):
            make(device=device)
    assert make(threads=None).threads == torch.get_num_threads()


def test_a_runtime_that_is_not_installed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paddle", None)  # as if it were not there
    with pytest.raises(ModuleNotFoundError, match=r"engine='paddle' needs the package paddle: pip install 'paddlepaddle>=3.3', or"):
        PaddleOCREngine(engine="paddle")
