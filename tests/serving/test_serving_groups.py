"""The worker of the reward service, called as LitServe calls it: rewards that compare images, and what it tells of errors."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.served import LeftBrightOf8Bits, service
from tests.tiny import PROMPTS, tiny_loader, tiny_module, tiny_trainer, weights
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.http_answer import decode_answer
from varrl_lightning.rewards.http_request import Limits, encode_request
from varrl_lightning.types import Box, Prompt, Scores

pytest.importorskip("litserve", reason="the extra 'serve'")


class Compared:
    """The number of images of a call; raises when one is white."""

    whole_groups = True

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        if bool((images.mean(dim=(1, 2, 3)) == 1).any()):
            raise ValueError("white")
        return torch.full((len(images),), float(len(images)))


class Alone(Compared):
    """The same of any images."""

    whole_groups = False


def answers(reward: Any, *requests: Tensor) -> list[bytes]:
    """The bodies of the answers to requests that came at one time."""
    from varrl_lightning.serving.api import RewardAPI

    api = RewardAPI("a reward", {}, Limits())
    api.reward, api.place = build(REWARDS, reward), torch.device("cpu")
    decoded = [api.decode_request(json.loads(encode_request(images, [Prompt("a")] * len(images)))) for images in requests]
    rows = api.predict(decoded)
    return [json.dumps(api.encode_response(of_request), allow_nan=False).encode() for of_request in rows]


def grey(n: int, size: int = 4) -> Tensor:
    return torch.full((n, 3, size, size), 0.5)


def test_a_request_is_a_group_which_is_compared_with_no_other() -> None:
    together, apart = answers(Compared(), grey(3), grey(2)), answers(Alone(), grey(3), grey(2))
    assert [row.value for row in decode_answer(together[0], 3)] == [3, 3, 3]
    assert [row.value for row in decode_answer(together[1], 2)] == [2, 2]
    assert [row.value for row in decode_answer(apart[0], 3)] == [5, 5, 5]
    assert json.loads(together[0])["whole_groups"] is True
    assert "whole_groups" not in json.loads(apart[0])


def test_a_group_that_the_reward_fails_on_is_lost_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.cat([grey(2), torch.ones(1, 3, 4, 4)])
    with caplog.at_level(logging.WARNING):
        lost, kept = answers(Compared(), images, grey(2))
    rows = decode_answer(lost, 3)
    assert [row.value for row in rows] == [None] * 3
    for row in rows:
        assert (row.error or "").startswith("the reward 'a reward' raised ValueError: white (File ")
        assert (row.error or "").endswith(", in __call__)")
    assert [row.value for row in decode_answer(kept, 2)] == [2, 2]


def test_the_log_of_the_service_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = decode_answer(answers(Alone(), torch.ones(1, 3, 4, 4))[0], 1)
    line = Compared.__call__.__code__.co_firstlineno + 2
    assert f'(File "{__file__}", line {line}, in __call__)' in (rows[0].error or "")
    assert "Traceback (most recent call last)" in caplog.text
    assert 'raise ValueError("white")' in caplog.text


def test_a_long_error_keeps_its_line() -> None:
    def long(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        raise ValueError("x" * 1000)

    (row,) = decode_answer(answers(long, grey(1))[0], 1)
    assert (row.error or "").startswith("the reward 'a reward' raised ValueError: xxx")
    assert (row.error or "").endswith(f"line {long.__code__.co_firstlineno + 1}, in long)")
    assert len(row.error or "") < 320


def test_images_of_several_sizes_are_no_group() -> None:
    from varrl_lightning.serving.api import RewardAPI

    api = RewardAPI("a reward", {}, Limits())
    api.reward, api.place = build(REWARDS, Compared()), torch.device("cpu")
    items = [json.loads(encode_request(grey(1, size), [Prompt("a")])) for size in (4, 8)]
    request = {key: [item[key][0] for item in items] for key in ("images", "prompts")}
    (rows,) = api.predict([api.decode_request(request)])
    assert [row.error for row in rows] == [
        "the reward compares the images of a request, which must be of one size, got 4 x 4, 8 x 8"
    ] * 2


@pytest.mark.filterwarnings("ignore:the reward 'a reward'")
def test_no_answer_holds_nan() -> None:
    """`answers` writes strict JSON."""

    def wild(images: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = torch.tensor([1.0, math.nan, math.inf])
        boxes = [[Box(0, 0, 1, math.nan)], [], [Box(0, 0, 1, 1)]]
        return Scores(values, {"c": values}, boxes, texts=[["a"], [], []])

    rows = decode_answer(answers(wild, grey(3))[0], 3)
    assert [row.value for row in rows] == [None] * 3
    assert [row.components["c"] for row in rows] == [1, None, None]
    assert rows[2].regions == [Box(0, 0, 1, 1)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:You defined a `validation_step`")
def test_an_order_within_groups_trains_alike_in_parts_and_through_the_service(tmp_path: Path) -> None:
    of = {"reward": f"{LeftBrightOf8Bits.__module__}.LeftBrightOf8Bits"}
    here = {"class_path": "rank_of", "init_args": of}
    with service("rank_of", "--init_args", json.dumps(of), folder=tmp_path) as running:
        there = {"class_path": "http", "init_args": {"url": running.url, "whole_groups": True}}
        trained = [_trained(*way) for way in ((here, None), (here, 3), (there, None), (there, 3))]
    for advantages, after in trained[1:]:
        torch.testing.assert_close(advantages, trained[0][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(after, trained[0][1], atol=1e-6, rtol=0)
    assert float(trained[0][0].std()) > 0.1
    alone, _ = _trained(of["reward"], None)
    assert not torch.allclose(alone, trained[0][0], atol=1e-2), "the order is another reward"


def _trained(reward: Any, images_at_once: int | None) -> tuple[Tensor, Tensor]:
    """The advantages of a rollout, and the weights after two updates, whose groups have eight images each."""
    sgd: dict[str, Any] = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    module = tiny_module(reward={"order": {"reward": reward, "weight": 1.0}}, images_at_once=images_at_once, **sgd)
    keys = prompt_keys(0, 0, PROMPTS[:2], torch.device("cpu"))
    stage = module.cycle[0]
    rollout, scores = module.grpo.sample(module.policy, PROMPTS[:2], stage, keys, images_at_once=images_at_once)
    advantages = module.grpo.assign(rollout, scores).advantages
    tiny_trainer(max_steps=2).fit(module, tiny_loader())
    return advantages, weights(module)
