"""The client of the reward service: what it sends to whom, and its arguments, against a service that follows a script."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from tests.rewards.scripted_service import IMAGES, PROMPTS, Reply, Scripted, bad, client, good, slow
from tests.served import free_port
from tests.tiny import PROMPTS as TINY_PROMPTS
from tests.tiny import tiny_module
from varrl_lightning.errors import RewardError
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.rewards.client_arguments import checked_address
from varrl_lightning.rewards.http import HttpReward
from varrl_lightning.types import Prompt


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


def test_an_address_that_is_no_text() -> None:
    with pytest.raises(ValueError, match="url must be an address, got None; expected http://host"):
        checked_address(None, "/predict", "http://host")
