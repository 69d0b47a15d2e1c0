"""The reward `vlm_judge` against endpoints that fail, refuse, or answer too late."""

from __future__ import annotations

import itertools
import time
import warnings
from typing import Any

import pytest
import torch

from tests.rewards.chat_servers import ChatServer, brightness, chat_server
from tests.rewards.judges import CUPS, IMAGES, judge, scores, spoken
from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.exchange import RefusedError, ServiceGoneError


@pytest.mark.parametrize(
    ("fault", "reason", "counted", "attempts"),
    [
        ("I would say it is good", "unreadable: expected a number", "unreadable", 1),
        ("", "refused: an empty answer", "refused", 1),
        ({"choices": [{"message": {"content": None, "refusal": "I cannot"}}]}, "refused", "refused", 1),
        (500, "failed: .* answered 500", "failed", 3),
        (b'{"choices": [', "failed: it answered in another form", "failed", 3),
        (b"", "failed: it answered in another form", "failed", 3),
        (None, "failed: RemoteDisconnected", "failed", 3),
        (400, "failed: .* answered 400", "failed", 1),
        ("slow", "failed: it did not answer within 0.5 seconds", "failed", 3),
        ("drip", "failed: it did not answer within 0.5 seconds", "failed", 3),
    ],
)
def test_a_fault_costs_its_image_alone(fault: Any, reason: str, counted: str, attempts: int) -> None:
    asked = itertools.count()

    def answer(request: dict[str, Any]) -> Any:
        if abs(brightness(request) - 0.4) > 0.1:
            return spoken(request)
        next(asked)
        if fault == "slow":
            time.sleep(1)
            return "7"
        return fault

    began = time.monotonic()
    with chat_server(answer) as server:
        reward = judge(server)
        with pytest.warns(UserWarning, match=f"no number for 1 of 4 .*{reason}"):
            scored = reward(IMAGES, CUPS)
    assert time.monotonic() - began < 10
    assert scored.usable.tolist() == [True, True, False, True]
    assert scored.values[[0, 1, 3]].tolist() == pytest.approx([2, 6, 10])
    assert getattr(reward.client.usage, counted) == 1
    assert next(asked) == attempts


def test_a_moment_of_trouble_changes_nothing() -> None:
    trouble = itertools.count()

    def answer(request: dict[str, Any]) -> Any:
        return {0: 503, 1: 500, 2: 429, 3: None}.get(next(trouble), spoken(request))

    with chat_server(answer) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        scored = judge(server, patience=5.0, parallel=1)(IMAGES, CUPS)
    said = [str(warning.message)[9:] for warning in warned if warning.category is UserWarning]
    assert [line.split(" (")[0].split(" after")[0] for line in said] == ["no judge answers", "the judge is back"]  # once for both
    assert scored.values.tolist() == pytest.approx([2, 6, 4, 10])


def test_a_judge_that_is_gone_or_refuses_stops_the_run() -> None:
    with chat_server(spoken) as server:
        reward = judge(server)
        reward(IMAGES, CUPS)
    with (
        pytest.warns(UserWarning, match="no judge answers"),
        pytest.raises(ServiceGoneError, match=r"has not answered for 0.3 seconds"),
    ):
        reward(IMAGES * 0.5, CUPS)
    for status in (401, 403, 404):
        with chat_server(lambda _, status=status: status) as server, pytest.raises(RefusedError, match=f"answered {status}"):
            judge(server)(IMAGES, CUPS)


def test_one_late_or_forbidden_picture_costs_itself_alone() -> None:
    for status in (408, 502, 504, 403):
        with chat_server(lambda r, status=status: status if abs(brightness(r) - 0.4) < 0.1 else spoken(r)) as server:
            reward = judge(server, parallel=1)
            with pytest.warns(UserWarning, match=f"no number for 1 of 4 .* answered {status}"):
                assert reward(IMAGES, CUPS).usable.tolist() == [True, True, False, True]


def test_what_others_were_answered_meanwhile_is_kept() -> None:
    def answer(request: dict[str, Any]) -> Any:
        time.sleep(0.3 if abs(brightness(request) - 0.2) < 0.1 else 0.0)
        return 401 if abs(brightness(request) - 0.2) < 0.1 else spoken(request)

    with chat_server(answer) as server:
        reward = judge(server, parallel=4)
        with pytest.raises(RefusedError):
            reward(IMAGES, CUPS)
        assert reward.counters()["asked"] == 3
        assert reward(IMAGES[1:], CUPS[1:]).usable.all()
        assert len(server.requests) == 4


def test_what_was_answered_before_the_end_is_kept() -> None:
    left = iter(["3", 401])
    with chat_server(lambda _: next(left)) as server:
        reward = judge(server, parallel=1)
        with pytest.raises(RefusedError):
            reward(IMAGES[:2], CUPS[:2])
        assert reward(IMAGES[:1], CUPS[:1]).values.tolist() == [3.0]
        assert len(server.requests) == 2


def test_images_that_are_not_finite_are_not_sent(bright: ChatServer) -> None:
    images = IMAGES.clone()
    images[1, 0, 0, 0] = torch.nan
    assert scores(bright, images).usable.tolist() == [True, False, True, True]
    assert len(bright.requests) == 3


def test_no_score_is_ever_made_up(bright: ChatServer) -> None:
    scored = score_images(judge(bright), IMAGES, CUPS, "judge")
    assert scored.values.tolist() == pytest.approx([2, 6, 4, 10])
    assert scored.valid is not None
    assert scored.valid.all()
