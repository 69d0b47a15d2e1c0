"""What the reward `vlm_judge` asks scripted endpoints, and what comes of their answers."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.rewards.chat_servers import ChatServer, brightness, chat_server, pictures_of, text_of
from tests.rewards.judges import CUPS, GREYS, IMAGES, judge, scores, spoken
from varrl_lightning.errors import RewardError
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.judge_client import Price
from varrl_lightning.rewards.vlm_judge import KEY
from varrl_lightning.rewards.weighted import ask_for_groups
from varrl_lightning.types import Prompt


def test_each_image_has_the_number_of_its_own_answer(bright: ChatServer) -> None:
    scored = scores(bright)
    assert scored.values.tolist() == pytest.approx([2, 6, 4, 10])
    request = bright.requests[0]
    assert text_of(request) == "How bright is a cup?"
    assert {name: request[name] for name in ("model", "max_tokens", "temperature")} == {
        "model": "judge",  # the only one that is there
        "max_tokens": 64,
        "temperature": 0.0,
    }
    assert pictures_of(request)[0].shape == (6, 8, 3)


def test_the_pixels_arrive(bright: ChatServer) -> None:
    images = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    scores(bright, images, CUPS[:1])
    expected = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert (pictures_of(bright.requests[0])[0] == expected).all()
    scores(bright, images, CUPS[:1], image_format="jpeg")
    assert bright.requests[1]["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_several_questions_are_averaged_and_logged_by_name() -> None:
    with chat_server(lambda r: "1" if "first" in text_of(r) else "4") as server:
        scored = scores(server, question={"one": "The first?", "two": "The second?"})
        assert scored.values.tolist() == [2.5] * 4
        assert (scored.components["one"].tolist(), scored.components["two"].tolist()) == ([1.0] * 4, [4.0] * 4)
        assert scores(server, question=["The first?", "b?", "c?"]).values.tolist() == [3.0] * 4


def test_several_numbers_of_one_answer() -> None:
    answer = "Alignment Score (1-5): 4\nCoherence Score (1-5): 2\nStyle Score (1-5): 3"
    with chat_server(lambda _: answer) as server:
        scored = scores(server, preset="unified_reward")
    assert scored.values.tolist() == [3.0] * 4
    assert scored.components["coherence"].tolist() == [2.0] * 4
    assert "Text Caption: [a cup]" in text_of(server.requests[0])


def test_questions_of_the_prompts_own_are_asked_one_by_one() -> None:
    prompts = [Prompt("a", extra={"questions": ["Is it dark?", {"question": "Is it blue?", "depends_on": 1}]}), Prompt("b")]
    prompts[1] = Prompt("b", extra={"questions": ["Is it bright?"]})

    def answer(request: dict[str, Any]) -> str:
        question = text_of(request)
        return "Yes." if ("dark" in question) == (brightness(request) < 0.5) and "blue" not in question else "No."

    with chat_server(answer) as server:
        scored = scores(server, IMAGES[:2], prompts, preset="yes_no")
    assert scored.values.tolist() == [0.5, 1.0]
    assert sorted(text_of(r).splitlines()[0] for r in server.requests) == ["Is it blue?", "Is it bright?", "Is it dark?"]


def test_equal_questions_about_equal_pictures_are_asked_once(bright: ChatServer, tmp_path: Path) -> None:
    same = IMAGES[:1].expand(5, 3, 6, 8)
    reward = judge(bright, cache=str(tmp_path / "answers.sqlite"))
    for _ in range(2):
        assert reward(same, [Prompt("a cup")] * 5).values.tolist() == [2.0] * 5
    assert len(bright.requests) == 1
    assert (reward.client.usage.asked, reward.client.usage.cached) == (1, 9)
    # Another process reads the file; another question is another one.
    assert scores(bright, same, [Prompt("a cup")] * 5, cache=str(tmp_path / "answers.sqlite")).values.tolist() == [2.0] * 5
    assert len(bright.requests) == 1
    scores(bright, same, [Prompt("a mug")] * 5, cache=str(tmp_path / "answers.sqlite"))
    assert len(bright.requests) == 2


def test_requests_run_at_one_time() -> None:
    def slow(request: dict[str, Any]) -> str:
        time.sleep(0.05)
        return spoken(request)

    with chat_server(slow) as server:
        images = torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        assert scores(server, images, [Prompt("a cup")] * 12, parallel=3).usable.all()
        assert server.most_at_once == 3


def test_costs_are_counted_and_bounded(bright: ChatServer) -> None:
    reward = judge(bright, price=Price(prompt=2.0, completion=10.0), max_cost=0.001)
    assert reward(IMAGES, CUPS).usable.all()
    counted = reward.counters()
    assert counted["cost"] == pytest.approx(4 * (100 * 2 + 7 * 10) / 1e6)
    assert (counted["asked"], counted["prompt_tokens"], counted["completion_tokens"], counted["failed"]) == (4, 400, 28, 0)
    with pytest.raises(RewardError, match=r"the judge has cost 0\.00108 in this process, and max_cost is 0\.001"):
        reward(IMAGES * 0.5, CUPS)
    assert reward(IMAGES, CUPS).usable.all()  # what is known costs nothing


def test_further_fields_and_the_key(bright: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "secret")
    scores(bright, request={"max_tokens": None, "max_completion_tokens": 5, "seed": 1}, system="Be strict.", model="mine")
    request = bright.requests[0]
    assert "max_tokens" not in request
    assert (request["max_completion_tokens"], request["seed"], request["model"]) == (5, 1, "mine")
    assert request["messages"][0] == {"role": "system", "content": "Be strict."}
    assert bright.headers[0]["Authorization"] == "Bearer secret"


def test_expected_values_of_score_tokens() -> None:
    def answer(request: dict[str, Any]) -> dict[str, Any]:
        p = brightness(request)
        top = [{"token": "Yes", "logprob": math.log(p)}, {"token": "no", "logprob": math.log(max(1 - p, 1e-9))}]
        choice = {"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": 0.0, "top_logprobs": top}]}}
        return {"choices": [choice]}

    with chat_server(answer) as server:
        reward = build(
            REWARDS,
            {
                "class_path": "vlm_judge",
                "init_args": {"url": server.url, "question": "Bright?", "read": {"tokens": {True: 1, False: 0}}},
            },
        )
        assert reward(IMAGES, CUPS).values.tolist() == pytest.approx(GREYS.tolist(), abs=1e-3)  # type: ignore[union-attr]
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 20)


def test_pairs_give_win_rates_within_the_group() -> None:
    def answer(request: dict[str, Any]) -> str:
        """The brighter one, but the first where they are close: the place is favoured."""
        first, second = (brightness(request, image) for image in (0, 1))
        return "Image 1 is better." if first > second - 0.25 else "Image 2 is better."

    with chat_server(answer) as server:
        scored = scores(server, preset="unified_reward", pairwise=True)
        # .2 < .4 < .6 < 1: neighbours of less than .25 tie, since each wins where it is first.
        assert scored.values.tolist() == pytest.approx([0.5 / 3, 1.5 / 3, (0.5 + 0.5) / 3, 1.0])
        assert len(server.requests) == 12
        assert text_of(server.requests[0]).startswith("Image 1:\nImage 2:\n")
        assert scores(server, IMAGES[:1], CUPS[:1], preset="unified_reward", pairwise=True).usable.tolist() == [False]


def test_fewer_opponents_are_those_far_off_on_a_ring() -> None:
    with chat_server(lambda r: "A" if brightness(r) > brightness(r, 1) else "B") as server:
        images = torch.linspace(0, 1, 6)[:, None, None, None].expand(6, 3, 4, 4)
        choices = {"pattern": "(A|B)", "choices": {"A": 1, "B": 0}}
        spec = {"url": server.url, "question": "A or B?", "read": choices, "pairwise": True, "opponents": 2}
        reward = build(REWARDS, {"class_path": "vlm_judge", "init_args": spec})
        assert reward.whole_groups
        assert ask_for_groups({"class_path": "vlm_judge", "init_args": spec})
        values = reward(images, [Prompt("a cup")] * 6).values.tolist()  # type: ignore[union-attr]
        assert values == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]  # i against i - 2 and i + 2, of six
        assert len(server.requests) == 12


def test_an_unreadable_comparison_costs_its_pair_alone() -> None:
    def answer(request: dict[str, Any]) -> str:
        first, second = (round(brightness(request, image), 1) for image in (0, 1))
        return "I like both" if (first, second) == (0.2, 1.0) else "Image 1 is better." if first > second else "Image 2 is better."

    with (
        chat_server(answer) as server,
        pytest.warns(UserWarning, match="no number for 1 of 12 comparisons: unreadable: nothing in"),
    ):
        scored = judge(server, preset="unified_reward", pairwise=True)(IMAGES, CUPS)
    assert scored.values.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 1])
