"""The client of the reward service against one that fails, refuses, waits or lies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.rewards.scripted_service import IMAGES, PROMPTS, Scripted, bad, client, good, slow
from tests.served import free_port
from varrl_lightning.errors import RewardError
from varrl_lightning.types import Prompt


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
