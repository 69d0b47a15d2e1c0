"""The reward `vlm_judge` against scripted and faulty endpoints. Costs ten seconds."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.rewards.chat_servers import ChatServer, brightness, chat_server, pictures_of, text_of
from tests.tiny import tiny_module
from varrl_lightning.errors import PluginError, RewardError
from varrl_lightning.registry import REWARDS, build, check
from varrl_lightning.rewards.base import score_images
from varrl_lightning.rewards.exchange import RefusedError, ServiceGoneError
from varrl_lightning.rewards.judge_client import Price
from varrl_lightning.rewards.vlm_judge import KEY, VLMJudge
from varrl_lightning.rewards.weighted import ask_for_groups
from varrl_lightning.types import Prompt, Scores

QUICK: dict[str, Any] = {"timeout": 0.5, "backoff": 0.01, "retries": 2, "patience": 0.3}
GREYS = torch.tensor([0.2, 0.6, 0.4, 1.0])
IMAGES = GREYS[:, None, None, None].expand(4, 3, 6, 8)
CUPS = [Prompt("a cup")] * 4


def spoken(request: dict[str, Any]) -> str:
    """Ten times the brightness."""
    return f"{10 * brightness(request):.1f}"


def judge(server: ChatServer, **arguments: Any) -> VLMJudge:
    """A judge that is quick to give up, with the question for a number."""
    settings = {"question": "How bright is {text}?"} if "preset" not in arguments else {}
    return VLMJudge(server.url, **{**QUICK, **settings, **arguments})


def scores(server: ChatServer, images: Tensor = IMAGES, prompts: list[Prompt] = CUPS, **arguments: Any) -> Scores:
    """A judge's scores, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return judge(server, **arguments)(images, prompts)


@pytest.fixture
def bright() -> Iterator[ChatServer]:
    """A judge of brightness."""
    with chat_server(spoken) as server:
        yield server


# --- what is asked and what comes of it -------------------------------------------------------------------------------------


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


# --- pairs ------------------------------------------------------------------------------------------------------------------


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


# --- faults -----------------------------------------------------------------------------------------------------------------


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


# --- before training --------------------------------------------------------------------------------------------------------


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
        ({"question": "?", "url": None}, "url must be an address, got None"),
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


def test_no_score_is_ever_made_up(bright: ChatServer) -> None:
    scored = score_images(judge(bright), IMAGES, CUPS, "judge")
    assert scored.values.tolist() == pytest.approx([2, 6, 4, 10])
    assert scored.valid is not None
    assert scored.valid.all()
