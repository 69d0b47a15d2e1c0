"""The reward service as a real server process: what it answers, and what it survives."""

from __future__ import annotations

import base64
import http.client
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.served import ROOT, Mean, Service, service
from varrl_lightning.commands import serve as serving
from varrl_lightning.rewards.http_request import ItemError, decode_image, encode_request
from varrl_lightning.types import Prompt

KEY = "the-key-of-these-tests"
GREY = 51 / 255
"""Of the good image in requests that have bad ones beside it; an 8-bit number, so that its mean comes back exactly."""
Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("litserve", reason="the extra 'serve'")
    options = ("--max_images", "64", "--max_pixels", "100000", "--batch_timeout", "0.05")
    with service("tests.served.Mean", *options, folder=tmp_path_factory.mktemp("service"), key=KEY) as running:
        yield running


def ask(
    running: Service, body: Any, *, method: str = "POST", path: str = "/predict", key: str = KEY, kind: str = "application/json"
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request(method, path, body, {"Content-Type": kind, "X-API-Key": key})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    return response.status, json.loads(answer) if answer.startswith(b"{") else {"text": answer.decode()}


def png(grey: float = GREY, size: int = 8) -> str:
    request = json.loads(encode_request(torch.full((1, 3, size, size), grey), [Prompt("x")]))
    image: str = request["images"][0]
    return image


def request(*images: Any, prompts: Any = None) -> bytes:
    return json.dumps({"images": images, "prompts": [{"text": 'a "word"'}] * len(images) if prompts is None else prompts}).encode()


# --- what it answers --------------------------------------------------------------------------------------------------------


def test_a_group_is_answered_in_its_order(served: Service) -> None:
    greys = [i / 255 for i in range(0, 160, 10)]
    status, answer = ask(served, request(*(png(grey) for grey in greys)))
    assert status == 200
    assert answer["values"] == pytest.approx(greys, abs=1e-6)
    assert answer["regions"] == [[[0, 0, 1, 8]]] * 16
    assert answer["texts"] == [["word"]] * 16
    assert answer["errors"] == [None] * 16
    assert answer["components"]["batch"] == [16] * 16


def test_images_of_several_sizes_go_into_one_request(served: Service) -> None:
    _, answer = ask(served, request(png(0.2, 8), png(0.4, 16), png(0.6, 8)))
    assert answer["values"] == pytest.approx([0.2, 0.4, 0.6], abs=1e-6)
    assert answer["components"]["batch"] == [2, 1, 2]
    assert [boxes[0][3] for boxes in answer["regions"]] == [8, 16, 8]


def test_an_image_that_the_reward_fails_on_answers_for_itself(served: Service) -> None:
    with ThreadPoolExecutor(4) as pool:
        bodies = [request(*[png()] * 3, png(1.0), png()), *[request(*[png()] * 5)] * 3]
        answers = [answer for _, answer in pool.map(lambda body: ask(served, body), bodies)]
    assert answers[0]["values"] == pytest.approx([GREY] * 3 + [None] + [GREY])  # type: ignore[comparison-overlap]
    said = answers[0]["errors"][3]
    assert said.startswith("the reward 'tests.served.Mean' raised ValueError: too bright to look at (File ")
    assert said.endswith(f'served.py", line {Mean.__call__.__code__.co_firstlineno + 3}, in __call__)')
    assert 'raise ValueError("too bright to look at")' in served.log.read_text()
    assert answers[0]["regions"][3] == []
    for answer in answers[1:]:
        assert answer["values"] == pytest.approx([GREY] * 5)
        assert answer["errors"] == [None] * 5


def test_requests_at_one_time_are_scored_together(served: Service) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for _ in range(5) for _, answer in pool.map(lambda _: ask(served, request(png())), range(8))]
    assert max(answer["components"]["batch"][0] for answer in answers) >= 4


def test_prompts_that_the_reward_cannot_score_say_so(served: Service) -> None:
    _, answer = ask(served, request(png(), png(), prompts=[{"text": "a", "category": "none"}, {"text": "b"}]))
    assert answer["values"] == [None, pytest.approx(GREY)]
    assert answer["errors"] == ["the reward cannot score this prompt: 'a' is of no category", None]


@pytest.mark.parametrize("client", [[sys.executable, "client.py"], ["bash", "client.sh"]])
def test_the_examples_speak_the_protocol(served: Service, tmp_path: Path, client: list[str]) -> None:
    if client[0] == "bash" and not shutil.which("curl"):
        pytest.skip("needs curl")
    picture = tmp_path / "picture.png"
    picture.write_bytes(base64.b64decode(png(0.4)))
    arguments = [served.url, str(picture), "--prompt", "a"] if client[0] != "bash" else [served.url, str(picture), "a"]
    environment = {**os.environ, "VARRL_API_KEY": KEY}
    command = [client[0], str(ROOT / "examples" / "reward_service" / client[1]), *arguments]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    value = json.loads(said)["values"][0] if client[0] == "bash" else float(said.removeprefix(f"{picture}: "))
    assert value == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("key", ["", "wrong", KEY + "x", KEY[:-1]])
def test_a_wrong_key_is_refused(served: Service, key: str) -> None:
    for method, path in (("POST", "/predict"), ("GET", "/info"), ("GET", "/")):
        status, answer = ask(served, request(png()) if method == "POST" else None, method=method, path=path, key=key)
        assert status == 401
        assert "X-API-Key" in answer["detail"]


def test_the_health_page_needs_no_key_and_the_info_page_says_the_limits(served: Service) -> None:
    assert ask(served, None, method="GET", path="/health", key="") == (200, {"text": "ok"})
    status, answer = ask(served, None, method="GET", path="/info")
    assert status == 200
    assert answer["model"] == {
        "protocol": 1,
        "reward": "tests.served.Mean",
        "limits": {"body": 64 * 2**20, "images": 64, "pixels": 100000},
    }


def test_it_listens_on_this_machine_only(served: Service) -> None:
    addresses = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [a for a in addresses if a.endswith(f":{served.port:04X}")] == [f"0100007F:{served.port:04X}"]


# --- what it survives -------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> str:
    """A PNG that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return base64.b64encode(file).decode()


def two_headers(first: int, second: int) -> str:
    """A PNG that says it is small, and then that it is large."""
    headers = [struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) for side in (first, second)]
    rows = zlib.compress(bytes(second * (1 + 3 * second)))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(b"IHDR", h) for h in headers) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return base64.b64encode(file).decode()


def test_a_second_header_does_not_get_past_the_limit_of_pixels() -> None:
    with pytest.raises(ItemError, match=r"the PNG says 1 x 1 pixels, and then 200 x 200"):
        decode_image(two_headers(1, 200), pixels_left=100)
    assert decode_image(two_headers(8, 8), pixels_left=100).shape == (3, 8, 8)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def truncated(rng: random.Random) -> str:
    noise = json.loads(encode_request(torch.rand(1, 3, 16, 16), [Prompt("x")]))["images"][0]
    data = base64.b64decode(noise)
    return b64(data[: rng.randrange(len(data) - 50)])


def nested(depth: int) -> bytes:
    return b'{"images":' + b"[" * depth + b"]" * depth + b',"prompts":[]}'


BAD_IMAGES: dict[str, Callable[[random.Random], Any]] = {
    "random bytes": lambda rng: b64(rng.randbytes(rng.randrange(1, 3000))),
    "random bytes called a PNG": lambda rng: b64(b"\x89PNG\r\n\x1a\n" + rng.randbytes(rng.randrange(1, 3000))),
    "truncated PNG": truncated,
    "path": lambda rng: rng.choice(["/etc/passwd", "../../secret.png", "C:\\secret.png", "file:///etc/passwd"]),
    "address": lambda rng: rng.choice(["http://127.0.0.1:22/x.png", "https://example.com/a.png", "data:image/png;base64,AAAA"]),
    "bomb": lambda rng: bomb(rng.randrange(10**4, 2**31), rng.randrange(10**4, 2**31)),
    "bomb of zeros": lambda rng: bomb(20000, 20000, pixels=bytes(10**5)),
    "just too large": lambda rng: bomb(400, 400, pixels=bytes(400 * 1201)),
    "other kind": lambda rng: bomb(4, 4, *rng.choice([(16, 2), (8, 6), (8, 0), (8, 3), (1, 0)]), pixels=bytes(400)),
    "no pixels": lambda rng: bomb(*rng.choice([(0, 4), (4, 0)])),
    "JPEG": lambda rng: b64(b"\xff\xd8\xff\xe0" + rng.randbytes(200)),
    "no text": lambda rng: rng.choice([None, 3, 1.5, True, [], {}, ["a"], {"url": "http://x"}]),
    "not base64": lambda rng: rng.choice(["", "ä", "a", "====", "\ud800", png()[:-1] + "!", png() + "\n"]),
}
BAD_PROMPTS: tuple[Any, ...] = (
    None,
    "a word",
    3,
    [],
    {},
    {"text": ""},
    {"text": 3},
    {"text": "\ud800"},
    {"text": "a", "wrods": []},
    {"text": "a", "words": "b"},
    {"text": "a", "regions": [[0, 0, 0, 0]]},
    {"text": "a", "size": [0, 1]},
    {"text": "a", "label": True},
    {"text": "a", "category": "none"},
)
BAD_BODIES: dict[str, Callable[[random.Random], tuple[bytes, int]]] = {
    "random bytes": lambda rng: (rng.randbytes(rng.randrange(2000)), 400),
    "half a request": lambda rng: (request(png(), png())[: rng.randrange(150)], 400),
    "not an object": lambda rng: (rng.choice([b"3", b"null", b'"a"', b"[]", b"true", b"[[]]"]), 400),
    "other keys": lambda rng: (rng.choice([b"{}", b'{"images":[]}', b'{"images":[],"prompts":[],"pickle":"gA"}']), 400),
    "wrong lengths": lambda rng: (request(*[png()] * rng.randrange(1, 5), prompts=[{"text": "a"}] * rng.randrange(5, 9)), 400),
    "no lists": lambda rng: (json.dumps({"images": rng.choice([3, "a", {"0": "a"}, None]), "prompts": []}).encode(), 400),
    "no images": lambda rng: (request(), 400),
    "too many images": lambda rng: (request(*["a"] * rng.randrange(65, 300)), 413),
    "deeply nested": lambda rng: (nested(rng.choice([10**3, 10**5])), 400),
    "not quite JSON": lambda rng: (rng.choice([b'{"images":[NaN],"prompts":[1]}', b"9" * 5000, b"\xff\xfe{}", b"{'a': 1}"]), 400),
}


def malformed(number: int) -> tuple[bytes, int, bool]:
    """A body, the status it deserves, and whether a good image stands in it, in front of a bad one."""
    rng = random.Random(number)
    kind = rng.choice(["image", "image", "prompt", "body"])
    if kind == "body":
        return *BAD_BODIES[rng.choice([*BAD_BODIES])](rng), False
    if kind == "image":
        return request(png(), BAD_IMAGES[rng.choice([*BAD_IMAGES])](rng)), 200, True
    return request(png(), png(), prompts=[{"text": "good"}, rng.choice(BAD_PROMPTS)]), 200, True


def test_a_thousand_malformed_bodies(served: Service) -> None:
    worker = ask(served, request(png()))[1]["components"]["process"]
    bodies = [malformed(number) for number in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: ask(served, body[0]), bodies))
    for (body, expected, with_a_good_one), (status, answer) in zip(bodies, answers, strict=True):
        assert status == expected, (body[:200], answer)
        if with_a_good_one:
            assert answer["values"] == [pytest.approx(GREY), None], (body[-200:], answer)
            assert answer["errors"][0] is None
            assert len(answer["errors"][1]) > 20
        else:
            assert len(answer["detail"]) > 20
    assert set(Counter(status for status, _ in answers)) == {200, 400, 413}
    assert ask(served, request(png()))[1]["components"]["process"] == worker, "the worker has been started anew"


def test_a_body_of_200_megabytes_is_refused_clearly(served: Service) -> None:
    def zeros() -> Iterator[bytes]:
        yield from [bytes(2**20)] * 200

    for body in (zeros(), bytes(200 * 2**20)):  # in chunks, without a length in front; and at once
        status, answer = ask(served, body)
        assert (status, answer["detail"]) == (413, "the body is larger than 67108864 bytes; send fewer images in a request")
    assert ask(served, request(png()))[0] == 200


def test_other_methods_types_and_paths_are_refused(served: Service) -> None:
    assert ask(served, None, method="GET")[0] == 405
    assert ask(served, request(png()), kind="text/plain")[0] == 415
    assert ask(served, request(png()), path="/elsewhere")[0] == 404
    assert ask(served, None, method="GET", path="/docs")[0] == 404


def test_the_pixels_of_a_request_count_together(served: Service) -> None:
    _, answer = ask(served, request(*[png(size=200)] * 4))
    assert answer["values"] == [pytest.approx(GREY)] * 2 + [None] * 2
    assert answer["errors"][2:] == ["a PNG of 200 x 200 pixels; 20000 are left in this request"] * 2


# --- the command line -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ocrr", "--port", "8000"], "no reward named 'ocrr'. Did you mean 'ocr'"),
        (["tests.served.Meen", "--port", "8000"], "has no class 'Meen'. Did you mean 'Mean'"),
        (["ocr", "--port", "8000", "--init_args", '{"detekt": true}'], "has no init_arg 'detekt'. Did you mean 'detect'"),
        (
            ["ocr", "--port", "8000", "--init_args", '{"lam": "high"}'],
            "the init_arg 'lam' of 'ocr' must be of type float, got 'high'",
        ),
        (["ocr", "--port", "8000", "--init_args", "detect"], "--init_args must be a JSON object, got 'detect'"),
        (["ocr", "--port", "8000", "--init_args", "[1]"], "--init_args must be a JSON object"),
        (["ocr", "--port", "80"], "--port must be from 1024 to 65535, got 80"),
        (["ocr", "--port", "8000", "--host", "example.com"], "--host must be one of 127.0.0.1, 0.0.0.0, ::, got 'example.com'"),
        (["ocr", "--port", "8000", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in and needs a key"),
        (["ocr", "--port", "8000", "--api_key", "ä"], "must be printable ASCII"),
        (["ocr", "--port", "8000", "--max_batch_size", "0"], "--max_batch_size must be at least 1, got 0"),
        (["ocr", "--port", "8000", "--devices", "0"], "--devices must be at least 1, got 0"),
        (["ocr", "--port", "8000", "--batch_timeout", "-1"], "--batch_timeout must be from 0 to 300 seconds, got -1"),
        (["ocr", "--port", "8000", "--max_pixels", "0"], "the limit of pixels must be at least 1, got 0"),
        (["ocr", "--port", "8000", "--accelerator", "gpu"], "--accelerator must be one of auto, cpu, cuda, mps, got 'gpu'"),
    ],
)
def test_wrong_command_lines(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VARRL_API_KEY", raising=False)
    assert serving.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_said_before_the_reward_loads(served: Service, capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert serving.main(["ocr", "--port", str(served.port)]) == 1
    assert f"port {served.port} of 127.0.0.1 cannot be used: Address already in use" in capsys.readouterr().err
    assert time.monotonic() - start < 30


def test_a_worker_that_starts_while_the_service_ends_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """LitServe starts one where it is quicker to see that the others are gone than to end itself."""
    from varrl_lightning.rewards.http_request import Limits
    from varrl_lightning.serving.api import RewardAPI

    class LeftError(Exception):
        pass

    def leave(status: int) -> None:
        raise LeftError(status)

    monkeypatch.setattr("os._exit", leave)
    api = pickle.loads(pickle.dumps(RewardAPI("tests.served.Mean", {}, Limits())))
    api.ending = True
    with pytest.raises(LeftError, match="0"):
        api.setup("cpu")
    assert api.reward is None


def test_sigterm_leaves_no_process_behind(served: Service) -> None:
    """The last test: it ends the service."""
    assert served.process is not None
    family = [psutil.Process(served.process.pid), *psutil.Process(served.process.pid).children(recursive=True)]
    assert len(family) >= 4  # LitServe's manager, a worker, an HTTP server
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=30) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert "Traceback" not in served.log.read_text().rpartition("too bright to look at")[2]
