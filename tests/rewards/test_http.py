"""The client of the reward service: against a real one, and against one that says what no real one would."""

from __future__ import annotations

import contextlib
import json
import math
import re
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from tests.callbacks.running import datamodule, small_module, trainer
from tests.served import Service, free_port, service
from tests.tiny import PROMPTS as TINY_PROMPTS
from tests.tiny import LeftBright, tiny_module, weights
from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.errors import RewardError
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.module import VARGRPO
from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.rewards.http_answer import Row, decode_answer, encode_answer, rows_of, scores_of
from varrl_lightning.rewards.http_request import Limits, check_request, decode_image, decode_prompt, encode_request
from varrl_lightning.types import Box, Prompt, Scores

KEY = "the-key-of-these-tests"
IMAGES = torch.arange(5)[:, None, None, None].expand(5, 3, 4, 6) * 51 / 255
PROMPTS = [Prompt(text) for text in ("a", "a", "b", "b", "b")]
Reply = tuple[int, bytes]


# --- the protocol -----------------------------------------------------------------------------------------------------------


def test_what_is_sent_arrives() -> None:
    images = torch.rand(4, 3, 5, 7)
    prompts = [
        Prompt("plain"),
        Prompt('a "word"', id="1", regions=(Box(0, 1, 2, 3.5),), category="c", label=0, negative="", size=(5, 7)),
        Prompt("ü 字 \U0001f600", words=("x", "y z")),
        Prompt("two cups", extra={"include": [{"class": "cup", "count": 2}], "tag": None}),
    ]
    request = check_request(encode_request(images, prompts), Limits())
    assert [decode_prompt(prompt) for prompt in request["prompts"]] == prompts
    assert ["extra" in prompt for prompt in request["prompts"]] == [False, False, False, True]  # older services know no such key
    received = torch.stack([decode_image(image, 10**6) for image in request["images"]])
    assert torch.equal(received, (images * 255).round().byte())


def test_what_is_answered_arrives() -> None:
    scores = Scores(
        torch.tensor([0.1, math.nan, -3e-9, 5.0]),
        components={"part": torch.tensor([1.0, math.nan, math.inf, 2.0])},
        regions=[[Box(0, 1, 2, 3)], [], [Box(0.5, 0, 1, 1), Box(1, 1, 2, 2)], []],
        valid=torch.tensor([True, True, True, False]),
        texts=[["A", "ü"], [], ["\ud800"], []],
    )
    body = json.dumps(encode_answer(rows_of(scores)), allow_nan=False).encode()
    back = scores_of(decode_answer(body, 4))
    assert back.values[[0, 2]].equal(scores.values[[0, 2]])
    assert back.usable.tolist() == [True, False, True, False]
    assert back.values.isnan().tolist() == [False, True, False, True]
    assert back.components["part"].nan_to_num(-1).tolist() == [1.0, -1.0, -1.0, 2.0]
    assert back.regions == scores.regions
    assert back.texts == [["A", "ü"], [], ["?"], []]


def test_an_answer_without_regions_and_texts_has_none() -> None:
    back = scores_of(decode_answer(b'{"values": [1, null]}', 2))
    assert (back.regions, back.texts, back.components) == (None, None, {})
    mixed = scores_of([Row(1.0, {"a": 1.0}, [Box(0, 0, 1, 1)]), Row(error="no")])
    assert mixed.regions == [[Box(0, 0, 1, 1)], []]
    assert mixed.components["a"].isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("[1, 2]", "the answer must be an object"),
        ("{}", "values must be a list of 2, one entry per image, got null"),
        ('{"values": [1]}', "values must be a list of 2, one entry per image, got 1 entries"),
        ('{"values": [1, 2], "components": {"c": [1]}}', "the component 'c' must be a list of 2"),
        ('{"values": [1, 2], "components": [1]}', "the answer must be an object"),
        ('{"values": [1, 2], "texts": [[]]}', "texts must be a list of 2"),
        ("<html>", "the body is not JSON"),
    ],
)
def test_other_answers_are_refused(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_answer(answer.encode(), 2)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("NaN", "got nan"),
        ("Infinity", "got inf"),
        ("1e39", r"got 1e\+39"),
        ("-Infinity", "got -inf"),
        ("1e999", "got inf"),
        ('"NaN"', "got 'NaN'"),
        ('"-inf"', "got '-inf'"),
        ('"good"', "got 'good'"),
        ('""', "got ''"),
        ("true", "got True"),
        ("[1]", r"got \[1\]"),
        ("{}", "got {}"),
        ("1" + "0" * 400, "got 1000"),
    ],
)
def test_an_entry_that_is_no_number_costs_its_image_alone(entry: str, message: str) -> None:
    rows = decode_answer(f'{{"values": [0.5, {entry}, 0.25], "components": {{"c": [1, 2, {entry}]}}}}'.encode(), 3)
    assert [row.value for row in rows] == [0.5, None, 0.25]
    assert [row.components["c"] for row in rows] == [1, 2, None]
    errors = [row.error or "" for row in rows]
    assert errors[0] == ""
    assert re.fullmatch(rf"values\[1\]: expected a (finite )?number or null, {message}.*", errors[1])
    assert re.fullmatch(rf"the component 'c'\[2\]: expected a (finite )?number or null, {message}.*", errors[2])
    assert scores_of(rows).usable.tolist() == [True, False, True]


@pytest.mark.parametrize(("entry", "value"), [('"0.7"', 0.7), ('" -3e-2 "', -0.03), ('"1"', 1.0), ("2", 2.0)])
def test_a_number_in_a_string_is_read(entry: str, value: float) -> None:
    body = f'{{"values": [{entry}], "components": {{"c": [{entry}]}}, "regions": [[[0, 0, {entry}, 9]]]}}'
    (row,) = decode_answer(body.encode(), 1)
    assert (row.value, row.components, row.error) == (value, {"c": value}, None)
    assert row.regions == [Box(0, 0, value, 9)]


@pytest.mark.parametrize("entry", ["[[0, 0, 1]]", "[[0, 0, 1, null]]", "[[0, 0, 1, NaN]]", '[["x", 0, 1, 2]]', "3", '"a"', "[1]"])
def test_regions_and_texts_that_cannot_be_read_cost_their_image_alone(entry: str) -> None:
    """Its value may be right, but nobody knows which tokens it is about, or what was read."""
    for key in ("regions", "texts"):
        rows = decode_answer(f'{{"values": [1, 2, 3], "{key}": [[], {entry}, []]}}'.encode(), 3)
        assert [row.value for row in rows] == [1, None, 3]
        assert (rows[1].error or "").startswith(f"{key}[1]: expected ")
        assert [rows[0].error, rows[2].error] == [None, None]


def test_what_an_answer_leaves_out_for_one_image_is_no_error() -> None:
    rows = decode_answer(
        b'{"values": [1, null], "regions": [[[0, 0, 1, 1]], null], "texts": [["A"], null], "errors": [null, 3]}', 2
    )
    assert [row.value for row in rows] == [1, None]
    assert [row.error for row in rows] == [None, "3"]
    scores = scores_of(rows)
    assert (scores.regions, scores.texts) == ([[Box(0, 0, 1, 1)], []], [["A"], []])


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_service_writes_nothing_that_is_not_json(wrong: float) -> None:
    rows = [
        Row(wrong, {"c": wrong, "\ud800": 1.0}, [], ["a"]),
        Row(1.0, {"c": 2.0}, [Box(0, 0, 1, 1), Box(0, wrong, 1, 1)], ["b"]),
        Row(2.0, {}, [Box(0, 0, 1, 1)], ["\ud800"], "\ud800"),
    ]
    body = json.dumps(encode_answer(rows), allow_nan=False).encode()
    back = decode_answer(body, 3)
    assert [row.value for row in back] == [None, None, 2.0]
    assert back[1].error == "the reward's regions are not finite"
    assert [list(row.regions or ()) for row in back] == [[], [], [Box(0, 0, 1, 1)]]


# --- a service that says what the test wants --------------------------------------------------------------------------------


class Scripted:
    """Answers each request by the next reply of a script, and the last one for ever; remembers what it was sent."""

    def __init__(self, *script: Callable[[list[Any]], Reply]) -> None:
        self.script, self.bodies, self.headers = list(script), [], []  # type: ignore[var-annotated]
        self.lock = threading.Lock()
        script_of = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, b"ok")

            def do_POST(self) -> None:
                images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["images"]
                with script_of.lock:
                    script_of.bodies.append(images)
                    script_of.headers.append(dict(self.headers))
                    reply = script_of.script.pop(0) if len(script_of.script) > 1 else script_of.script[0]
                self._send(*reply(images))

            def _send(self, status: int, body: bytes) -> None:
                with contextlib.suppress(OSError):  # the client may have gone
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    running: list[Scripted] = []

    def start(*script: Callable[[list[Any]], Reply]) -> Scripted:
        running.append(Scripted(*script))
        threading.Thread(target=running[-1].server.serve_forever, args=(0.01,), daemon=True).start()
        return running[-1]

    yield start
    for one in running:
        one.server.shutdown()
        one.server.server_close()


def good(images: list[Any]) -> Reply:
    """The number of images as the value of each."""
    return 200, json.dumps({"values": [len(images)] * len(images)}).encode()


def bad(status: int, body: bytes = b"") -> Callable[[list[Any]], Reply]:
    return lambda images: (status, body)


def slow(images: list[Any]) -> Reply:
    time.sleep(0.5)
    return good(images)


def client(*urls: str, **options: Any) -> HttpReward:
    return HttpReward(list(urls), **{"backoff": 0.01, "timeout": 5.0, "patience": 0.5, "retries": 2} | options)


def test_one_request_for_each_group(scripted: Callable[..., Scripted]) -> None:
    server = scripted(good)
    assert client(server.url)(IMAGES, PROMPTS).values.tolist() == [2, 2, 3, 3, 3]
    assert sorted(map(len, server.bodies)) == [2, 3]
    assert "X-API-Key" not in server.headers[0]


def test_a_service_of_before_extra_scores_without_it() -> None:
    """As `decode_prompt` answered then."""
    asked: list[list[bool]] = []

    class Old(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            prompts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompts"]
            asked.append(["extra" in prompt for prompt in prompts])
            refusal = "the prompt cannot be read: unknown keys ['extra']; a prompt has ['category', 'id', 'label']"
            errors = [refusal if "extra" in prompt else None for prompt in prompts]
            body = json.dumps({"values": [None if error else 0.5 for error in errors], "errors": errors}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Old) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        reward = client(f"http://127.0.0.1:{server.server_address[1]}")
        prompts = [Prompt("a", extra={"n": 1})] * 2
        with pytest.warns(UserWarning, match=r"older than Prompt\.extra, and scores without it"):
            assert reward(IMAGES[:2], prompts).values.tolist() == [0.5, 0.5]
        assert reward(IMAGES[:2], prompts).values.tolist() == [0.5, 0.5]
        server.shutdown()
    assert asked == [[True, True], [False, False], [False, False]]


def test_equal_prompts_that_are_apart_are_different_groups(scripted: Callable[..., Scripted]) -> None:
    server = scripted(good)
    prompts = [PROMPTS[i] for i in (0, 2, 2, 0, 0)]
    assert client(server.url)(IMAGES, prompts).values.tolist() == [1, 2, 2, 2, 2]


def test_groups_are_asked_for_at_the_same_time(scripted: Callable[..., Scripted]) -> None:
    prompts = [Prompt(str(i)) for i in range(5)]
    start = time.monotonic()
    client(scripted(slow).url)(IMAGES, prompts)
    assert time.monotonic() - start < 1.5  # one after the other: 2.5


def test_several_addresses_take_turns(scripted: Callable[..., Scripted]) -> None:
    servers = [scripted(good), scripted(good)]
    client(*(s.url for s in servers))(IMAGES, [Prompt(str(i)) for i in range(5)])
    assert [len(s.bodies) for s in servers] == [3, 2]


def test_one_address_stands_in_for_another(scripted: Callable[..., Scripted]) -> None:
    for broken in (f"http://127.0.0.1:{free_port()}", scripted(bad(503)).url):
        scores = client(broken, scripted(good).url)(IMAGES, PROMPTS)  # without a warning: they are errors here
        assert scores.values.tolist() == [2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    "replies",
    [
        [bad(500, b"broken")] * 2,
        [bad(200, b'{"values": [1]}'), bad(200, b'{"values": [1, 2, 3, 4, 5, 6, 7]}')],
        [bad(200, b"<html>"), bad(200, b"")],
    ],
)
def test_a_request_that_went_wrong_is_sent_again_and_then_given_up(scripted: Callable[..., Scripted], replies: Any) -> None:
    prompts = [Prompt("a")] * 5
    server = scripted(*replies, good)
    assert client(server.url)(IMAGES, prompts).values.tolist() == [5] * 5
    assert len(server.bodies) == 3
    server = scripted(*replies, replies[0], good)
    with pytest.warns(UserWarning, match="no score for 5 of 5 images: http://127.0.0.1:.*it answered"):
        scores = client(server.url)(IMAGES, prompts)
    assert len(server.bodies) == 3
    assert scores.values.isnan().all()
    assert not scores.usable.any()


@pytest.mark.parametrize("answer", [b'{"values": [1]}', b"<html>", b"", b"[]"])
def test_a_malformed_answer_that_comes_again_is_not_asked_for_again(scripted: Callable[..., Scripted], answer: bytes) -> None:
    server = scripted(bad(200, answer))
    with pytest.warns(UserWarning, match="no score for 5 of 5 images: http://127.0.0.1:.*it answered in another form"):
        assert client(server.url, retries=10)(IMAGES, [Prompt("a")] * 5).values.isnan().all()
    assert len(server.bodies) == 2


@pytest.mark.parametrize("entry", ["NaN", "-Infinity", '"NaN"', "true", '"seven"'])
def test_one_bad_number_costs_one_image_and_no_request(scripted: Callable[..., Scripted], entry: str) -> None:
    server = scripted(bad(200, f'{{"values": [0.5, {entry}, 0.5, "0.75", 0.5]}}'.encode()))
    with pytest.warns(UserWarning, match=r"no score for 1 of 5 images: values\[1\]: expected a") as said:
        scores = client(server.url)(IMAGES, [Prompt("a")] * 5)
    assert len(said) == len(server.bodies) == 1
    assert scores.values.nan_to_num(-1).tolist() == [0.5, -1, 0.5, 0.75, 0.5]
    assert scores.usable.tolist() == [True, False, True, True, True]


def test_a_component_that_cannot_be_read_leaves_the_score(scripted: Callable[..., Scripted]) -> None:
    server = scripted(bad(200, b'{"values": [1, 2, 3, 4, 5], "components": {"c": [1, NaN, 3, 4, 5]}}'))
    with pytest.warns(UserWarning, match=r"no complete answer about 1 of 5 images: the component 'c'\[1\]: expected a finite"):
        scores = client(server.url)(IMAGES, [Prompt("a")] * 5)
    assert scores.values.tolist() == [1, 2, 3, 4, 5]
    assert scores.components["c"].isnan().tolist() == [False, True, False, False, False]


# --- rewards that compare the images of a group -----------------------------------------------------------------------------


def comparing(images: list[Any]) -> Reply:
    """What the service of a reward with `whole_groups` says: the number of images of the request."""
    return 200, json.dumps({"values": [len(images)] * len(images), "whole_groups": True}).encode()


def test_a_whole_group_is_one_request_whatever_is_drawn_at_one_time(scripted: Callable[..., Scripted]) -> None:
    server = scripted(comparing)
    module = tiny_module(reward={"compared": {"reward": client(server.url, whole_groups=True), "weight": 1.0}}, images_at_once=3)
    keys = prompt_keys(0, 0, TINY_PROMPTS[:2], torch.device("cpu"))
    _, scores = module.grpo.sample_and_score(module.policy, TINY_PROMPTS[:2], module.cycle[0], keys, images_at_once=3)
    assert [len(images) for images in server.bodies] == [8, 8]
    assert scores["compared"].values.tolist() == [8] * 16


def test_a_client_that_does_not_know_of_groups_is_told(scripted: Callable[..., Scripted]) -> None:
    server = scripted(comparing)
    with pytest.raises(RewardError, match="compares the images of a group; give the reward http whole_groups: true"):
        client(server.url)(IMAGES, [Prompt("a")] * 5)
    assert client(server.url, whole_groups=True)(IMAGES, [Prompt("a")] * 5).values.tolist() == [5] * 5


def test_a_whole_group_is_not_sent_in_halves(scripted: Callable[..., Scripted]) -> None:
    server = scripted(lambda images: comparing(images) if len(images) <= 2 else (413, b"too large"))
    with pytest.raises(RewardError, match="A group of 5 is not divided: raise its limits"):
        client(server.url, whole_groups=True)(IMAGES, [Prompt("a")] * 5)


def test_a_request_that_takes_too_long_is_not_a_service_that_is_away(scripted: Callable[..., Scripted]) -> None:
    server = scripted(slow, slow, good)
    assert client(server.url, timeout=0.1)(IMAGES, [Prompt("a")] * 5).values.tolist() == [5] * 5
    with pytest.warns(UserWarning, match="it did not answer within 0.1 seconds"):
        assert client(scripted(slow).url, timeout=0.1)(IMAGES, PROMPTS).values.isnan().all()


def test_what_one_group_lacks_the_others_keep(scripted: Callable[..., Scripted]) -> None:
    server = scripted(lambda images: good(images) if len(images) == 3 else (500, b"no"))
    with pytest.warns(UserWarning, match="no score for 2 of 5 images"):
        scores = client(server.url)(IMAGES, PROMPTS)
    assert scores.values.nan_to_num(-1).tolist() == [-1, -1, 3, 3, 3]


@pytest.mark.parametrize(("status", "hint"), [(401, "Set VARRL_API_KEY"), (403, "Set VARRL_API_KEY"), (404, ""), (400, "")])
def test_what_a_service_refuses_is_not_sent_again(scripted: Callable[..., Scripted], status: int, hint: str) -> None:
    server = scripted(bad(status, b"because"))
    with pytest.raises(RewardError, match=f"does not take the request: it answered {status} .*because.*{hint}"):
        client(server.url)(IMAGES, [Prompt("a")] * 5)
    assert len(server.bodies) == 1


def test_what_is_too_large_is_sent_in_halves(scripted: Callable[..., Scripted]) -> None:
    server = scripted(lambda images: good(images) if len(images) <= 2 else (413, b"too large"))
    scores = client(server.url)(IMAGES, [Prompt("a")] * 5)
    assert scores.values.tolist() == [2, 2, 1, 2, 2]
    assert [len(body) for body in server.bodies] == [5, 2, 3, 1, 2]


def test_one_image_that_is_too_large_stops_the_run(scripted: Callable[..., Scripted]) -> None:
    server = scripted(bad(413, b"too large"))
    with pytest.raises(RewardError, match=r"does not take the request: it answered 413 .*too large"):
        client(server.url)(IMAGES, [Prompt("a")] * 5)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_service_that_is_not_ready_is_waited_for(scripted: Callable[..., Scripted], status: int) -> None:
    server = scripted(*[bad(status)] * 4, good)
    with pytest.warns(UserWarning, match="reward service") as said:
        scores = client(server.url, retries=0)(IMAGES, [Prompt("a")] * 5)
    assert scores.values.tolist() == [5] * 5
    assert ["no reward service answers" in str(w.message) or "is back" in str(w.message) for w in said] == [True, True]


def test_patience_ends(scripted: Callable[..., Scripted]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with (
        pytest.warns(UserWarning, match=r"no reward service answers \(.*Refused.*\); waiting up to 0.5 seconds"),
        pytest.raises(RewardError, match="no reward service has answered for"),
    ):
        client(url)(IMAGES, PROMPTS)
    assert 0.3 < time.monotonic() - start < 5


def test_a_service_that_has_stopped_answering_at_all_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.warns(UserWarning, match="did not answer within 0.1 seconds, nor on its health page"),
            pytest.raises(RewardError, match="no reward service has answered for"),
        ):
            client(url, timeout=0.1, retries=0)(IMAGES, PROMPTS)


def test_an_image_that_is_not_finite_is_not_sent(scripted: Callable[..., Scripted]) -> None:
    server = scripted(good)
    images = IMAGES.clone()
    images[1, 0, 0, 0] = math.nan
    with pytest.warns(UserWarning, match="no score for 1 of 5 images: the image is not finite"):
        assert client(server.url)(images, PROMPTS).values.nan_to_num(-1).tolist() == [1, -1, 3, 3, 3]


def test_no_images_need_no_service() -> None:
    assert client("http://127.0.0.1:1")(IMAGES[:0], []).values.shape == (0,)


def test_the_key_comes_from_the_environment_or_the_argument(scripted: Callable[..., Scripted], monkeypatch: Any) -> None:
    monkeypatch.setenv("VARRL_API_KEY", "from-the-environment")
    server = scripted(good)
    for reward in (client(server.url), client(server.url, api_key="given")):
        reward(IMAGES[:1], PROMPTS[:1])
    assert [h["X-API-Key"] for h in server.headers] == ["from-the-environment", "given"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": []}, "url must be an address or a list of addresses, got none"),
        ({"url": "localhost:8000"}, "'localhost:8000' is no address of a service; expected http://host:port"),
        ({"url": [None]}, "url must be an address, got None; expected http://host:port"),
        ({"url": "ftp://localhost"}, "is no address of a service"),
        ({"url": "http://localhost:x"}, "expected http://host:port"),
        ({"timeout": 0}, "timeout must be > 0"),
        ({"timeout": math.inf}, "timeout must be > 0 and finite"),
        ({"backoff": -1.0}, "backoff must be > 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"parallel": 0}, "parallel must be at least 1, got 0"),
        ({"patience": math.nan}, "patience must be at least 0, got nan"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HttpReward(**{"url": "http://localhost:8000"} | options)


# --- a real service ---------------------------------------------------------------------------------------------------------


class Rounded(LeftBright):
    """`LeftBright` of what a PNG holds."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return super().__call__((images.clamp(0, 1) * 255).round() / 255, prompts)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    pytest.importorskip("litserve", reason="the extra 'serve'")
    folder = tmp_path_factory.mktemp("service")
    arguments = ("--init_args", json.dumps({"folder": str(folder)}))
    with service("tests.served.Hangs", *arguments, folder=folder, key=KEY) as running:
        yield running


def of(served: Service, **options: Any) -> HttpReward:
    return HttpReward(**{"url": served.url, "api_key": KEY, "backoff": 0.1, "patience": 120.0} | options)


def run(folder: Path, reward: Any, during: Callable[[int], None] = lambda step: None, ckpt_path: str | None = None) -> VARGRPO:
    """Three steps, with something happening before the rewards of each."""
    module = small_module(reward=reward)
    ask = module.rewards.score_all

    def score_all(images: Tensor, prompts: Sequence[Prompt]) -> dict[str, Scores]:
        during(module.rollouts_done)
        return ask(images, prompts)

    module.rewards.score_all = score_all  # type: ignore[method-assign]
    fitted = trainer(folder, [SafeStop(), Checkpoints(50)], 3, limit_val_batches=0)
    fitted.fit(module, datamodule=datamodule(folder / "data"), ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    return weights(run(tmp_path_factory.mktemp("undisturbed"), Rounded()))


def test_the_service_says_what_the_reward_says(served: Service) -> None:
    images, prompts = torch.rand(12, 3, 16, 24), [Prompt(str(i // 4)) for i in range(12)]
    reward = of(served)
    reward.check_prompts(prompts)
    scores = score_images(reward, images, prompts, "http")
    torch.testing.assert_close(scores.values, Rounded()(images, prompts), rtol=0, atol=0)


def test_a_wrong_key_is_said_before_training(served: Service) -> None:
    for reward in (of(served, api_key="wrong"), of(served, api_key="")):
        with pytest.raises(ValueError, match=r"it answered 401 .*Set VARRL_API_KEY to its key"):
            reward.check_prompts(PROMPTS)
        with pytest.raises(RewardError, match="401"):
            reward(IMAGES, PROMPTS)


def test_a_service_that_is_not_there_is_said_before_training(served: Service) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=r"no reward service answers .*Start one with `python -m varrl_lightning serve"):
        of(served, url=nowhere).check_prompts(PROMPTS)
    of(served, url=[nowhere, served.url]).check_prompts(PROMPTS)


def test_killed_in_the_middle_of_a_request_the_run_waits_and_no_step_becomes_wrong(
    served: Service, tmp_path: Path, undisturbed: Tensor
) -> None:
    folder = served.log.parent
    restarted = threading.Event()

    def disturb() -> None:
        while not (folder / "hung").exists():
            time.sleep(0.02)
        served.kill()
        time.sleep(0.5)
        served.start()
        restarted.set()

    def during(step: int) -> None:
        if step == 1:
            (folder / "armed").touch()
            threading.Thread(target=disturb, daemon=True).start()

    with pytest.warns(UserWarning, match="reward service") as said:
        module = run(tmp_path, of(served), during)
    assert restarted.is_set()
    messages = [str(w.message) for w in said if "reward service" in str(w.message)]
    assert len(messages) == 2, messages
    assert "no reward service answers" in messages[0]
    assert "the reward service is back after" in messages[1]
    assert torch.equal(weights(module), undisturbed)


@pytest.mark.slow
def test_when_it_never_is_back_the_run_stops_with_its_state_saved(served: Service, tmp_path: Path, undisturbed: Tensor) -> None:
    served.wait()
    with (
        pytest.warns(UserWarning, match="no reward service answers"),
        pytest.raises(RewardError, match="no reward service has answered for 1 seconds"),
    ):
        run(tmp_path, of(served, patience=1.0), lambda step: served.kill() if step == 1 else None)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["varrl"]["rollouts_done"] == 1
    served.start()
    served.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", category=FutureWarning)
        module = run(tmp_path, of(served), ckpt_path=str(last))
    assert torch.equal(weights(module), undisturbed)


def test_killed_alone_a_service_takes_its_processes_along(served: Service) -> None:
    """The last test: it ends the service."""
    assert served.process is not None
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) >= 3  # LitServe's manager, a worker, an HTTP server
    served.process.kill()
    served.process.wait()
    assert not psutil.wait_procs(family, timeout=20)[1]
