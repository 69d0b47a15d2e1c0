"""What the reward `vlm_judge` finds out before training, and its arguments."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from tests.rewards.chat_servers import ChatServer, chat_server, text_of
from tests.rewards.judges import QUICK, judge, spoken
from tests.tiny import tiny_module
from varrl_lightning.errors import PluginError
from varrl_lightning.registry import REWARDS, build, check
from varrl_lightning.rewards.judge_client import Price
from varrl_lightning.rewards.vlm_judge import KEY, VLMJudge
from varrl_lightning.types import Prompt


def test_a_judge_whose_answers_never_parse_is_named_before_training() -> None:
    with chat_server(lambda _: "I cannot judge this.") as server:
        reward = judge(server)
        with pytest.raises(
            ValueError, match=r"no answer of the judge at .* in 3 trials can be read: unreadable: expected a number"
        ):
            reward.check_prompts([Prompt(name) for name in "abcde"])
        assert len(server.requests) == 3
        with pytest.raises(ValueError, match="the reward 'vlm_judge' cannot score these prompts: no answer of the judge"):
            tiny_module(
                reward={"class_path": "vlm_judge", "init_args": {"url": server.url, "question": "?"}}, mask_source="full"
            ).check_prompts([Prompt("a")])


def test_the_trial_is_made_once_and_ends_with_the_first_number() -> None:
    answers = iter(["well", "4"])
    with chat_server(lambda _: next(answers)) as server:
        reward = judge(server)
        for _ in range(2):
            reward.check_prompts([Prompt(name) for name in "abcde"])
        assert len(server.requests) == 2
        assert reward.client.usage.asked == 0  # what is counted is what training asks


def test_every_question_is_tried_and_a_moment_of_trouble_waited_for() -> None:
    with (
        chat_server(lambda r: "4" if "one" in text_of(r) else "prose") as server,
        pytest.raises(ValueError, match=r"no answer of the judge at .* to the question 'b' in 1 trials can be read: unreadable"),
    ):
        judge(server, question={"a": "one", "b": "two"}).check_prompts([Prompt("a")])
    replies = iter([429, 500, "4"])
    with chat_server(lambda _: next(replies)) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge(server, patience=5.0).check_prompts([Prompt("a")])


def test_a_limit_of_costs_needs_a_price_and_a_server_that_counts() -> None:
    with chat_server(lambda _: {"choices": [{"message": {"content": "4"}}]}) as server:
        with pytest.raises(ValueError, match="does not say how many tokens it counts, so that max_cost has no effect"):
            judge(server, price=Price(1.0), max_cost=1.0).check_prompts([Prompt("a")])
        with pytest.raises(ValueError, match="max_cost needs a price"):
            judge(server, max_cost=1.0)
        with pytest.raises(ValueError, match="max_cost must be > 0, got 0"):
            judge(server, price=Price(1.0), max_cost=0)


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret\n")
    assert VLMJudge("http://127.0.0.1:9/v1", question="?").chat.api_key == "sk-secret"
    monkeypatch.setenv(KEY, "sk-se\ncret")
    with pytest.raises(ValueError, match="holds a character that no header can") as raised:
        VLMJudge("http://127.0.0.1:9/v1", question="?")
    assert "cret" not in str(raised.value)


def test_a_judge_of_pairs_cannot_judge_evaluations() -> None:
    pairs = {"class_path": "vlm_judge", "init_args": {"url": "http://127.0.0.1:9/v1", "preset": "unified_reward", "pairwise": True}}
    with pytest.raises(PluginError, match=r"evaluate_with: 'vlm_judge' compares the images of a group"):
        tiny_module(evaluate_with=[pairs])


def test_evaluations_count_what_a_judge_could_not_score() -> None:
    with chat_server(lambda r: "prose" if "TEA" in text_of(r) else spoken(r)) as server:
        module = tiny_module(evaluate_with={"look": judge(server, question="Is it {text}?")})
        module.eval()
        prompts = [Prompt("a 'TEA'"), Prompt("a 'POT'"), Prompt("a 'CUP'")]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "no number for 1 of 3|the reward 'judges/look' gave no score")
            module.evaluator.validate(prompts, module.parallel)
        metrics = module.evaluator.metrics()
    assert (metrics["val/judges/look/unscored"], metrics["val/judges/look/unreadable"], metrics["val/judges/look/asked"]) == (
        1,
        1,
        3,
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [(401, "the judge cannot be asked: .*401"), (404, "404"), (503, "has not answered for 0.3 seconds"), (400, "400")],
)
def test_a_judge_that_cannot_be_asked_is_named_before_training(reply: int, message: str) -> None:
    with chat_server(lambda _: reply) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            judge(server).check_prompts([Prompt("a")])


def test_no_endpoint_or_no_such_model() -> None:
    with pytest.raises(ValueError, match="does not say which models it has: ConnectionRefusedError"):
        VLMJudge("http://127.0.0.1:9", question="?", **QUICK).check_prompts([Prompt("a")])
    for models, there in (((), "none"), (("a", "b"), "a, b")):
        with (
            chat_server(spoken, models=models) as server,
            pytest.raises(ValueError, match=f"has the models {there}; choose one by `model`"),
        ):
            judge(server).check_prompts([Prompt("a")])


def test_prompts_without_what_is_asked_about_are_named(bright: ChatServer) -> None:
    with pytest.raises(ValueError, match=r"1 of 1 prompts have no field {place}"):
        judge(bright, question="Is it in {place}?").check_prompts([Prompt("a")])
    with pytest.raises(ValueError, match="the column 'questions' of prompt 'a' must be a list"):
        judge(bright, preset="yes_no").check_prompts([Prompt("a")])
    assert not bright.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a judge needs a `question`"),
        ({"preset": "unified"}, "no preset 'unified'"),
        ({"question": "{text.x}"}, "expected a name alone"),
        ({"question": "{question}"}, "name the column of questions by question_column"),
        ({"question": "Why?", "question_column": "q"}, "each question needs the field {question}"),
        ({"preset": "yes_no", "read": {"low": 0, "high": 5}}, r"must be a number in \[0, 1\], 1 for yes, 0 for no"),
        ({"question": "Which?", "pairwise": True}, r"must be a number in \[0, 1\], 1 if the first image is better"),
        ({"question": "Which?", "opponents": 3}, "opponents must be at least 1, and needs pairwise: true, got 3"),
        ({"question": "?", "url": "localhost:8000"}, "is no address of a service; expected the address of a chat endpoint"),
        ({"question": "?", "url": "http://a:b"}, "expected the address of a chat endpoint"),
        ({"question": {"cost": "?"}}, "a question cannot be named 'cost'"),
        ({"question": "?", "timeout": 0}, "timeout must be > 0"),
        ({"question": "?", "parallel": 0}, "parallel must be at least 1"),
        ({"question": "?", "retries": -1}, "retries must be at least 0"),
        ({"question": "?", "price": {"prompt": -1}}, "the price of prompt tokens must be at least 0"),
        ({"question": "?", "cache": "missing/folder/file"}, "cache 'missing/folder/file' cannot be used"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    spec = {"class_path": "vlm_judge", "init_args": {"url": "http://127.0.0.1:9/v1", **arguments}}
    with pytest.raises((ValueError, PluginError), match=message):
        build(REWARDS, spec)


def test_wrong_types_and_names_are_found_without_asking() -> None:
    for arguments, message in (
        ({"read": {"patern": "x"}}, "patern"),
        ({"read": "number"}, "must be of type"),
        ({"image_format": "gif"}, "must be of type"),
        ({"questions": "?"}, "has no init_arg 'questions'. Did you mean 'question'"),
    ):
        with pytest.raises(PluginError, match=message):
            check(REWARDS, {"class_path": "vlm_judge", "init_args": {"url": "http://127.0.0.1:9/v1", **arguments}})
