"""Numbers out of answers, and questions out of prompts. Costs less than a second."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import Any

import pytest

from varrl_lightning.rewards.answer_cache import KEPT, AnswerCache
from varrl_lightning.rewards.chat import AnswerToken, ChatAnswer, read_answer
from varrl_lightning.rewards.exchange import FailedError
from varrl_lightning.rewards.judge_answers import AnswerReader, UnreadableError
from varrl_lightning.rewards.judge_presets import UNIFIED_REWARD, UNIFIED_REWARD_PAIRS, YES_NO, preset_named
from varrl_lightning.rewards.judge_questions import ListedQuestion, check_fields, filled, listed_questions, share_of_yes
from varrl_lightning.types import Prompt

SIGN = Prompt("a sign 'OPEN'", id="sign", extra={"place": "street", "questions": ["Is there a sign?"]})


@pytest.mark.parametrize(
    ("read", "answer", "numbers"),
    [
        ({}, " 7.5\n", {"": 7.5}),
        ({}, "<think>3? no, 4</think>\n4", {"": 4}),
        ({"pattern": r"Score: ([\d.]+)"}, "Score: 2 at first. Score: 3.5 in the end", {"": 3.5}),
        ({"pattern": {"a": r"A: (\d)", "b": r"B: (\d)"}}, "B: 4\nA: 2", {"a": 2, "b": 4}),
        ({"field": "score"}, '```json\n{"score": 8, "why": "{}"}\n```', {"": 8}),
        ({"field": {"x": "s.x", "y": "s.y"}}, '{"s": {"x": 1, "y": "2"}}', {"x": 1, "y": 2}),
        ({"choices": {"yes": 1, "no": 0}}, "**Yes**.", {"": 1}),
        ({"choices": {True: 1, False: 0}}, "NO", {"": 0}),  # as YAML reads yes and no
        ({"pattern": r"^(\w+)", "choices": {"good": 1, "bad": -1}}, "bad, since it is dark", {"": -1}),
        ({"low": 1, "high": 5}, "5", {"": 5}),
    ],
)
def test_numbers_are_read(read: dict[str, Any], answer: str, numbers: dict[str, float]) -> None:
    assert AnswerReader(**read).read(ChatAnswer(answer)) == numbers


@pytest.mark.parametrize(
    ("read", "answer", "message"),
    [
        ({}, "I give it 7 of 10", "expected a number, got 'I give it 7 of 10'"),
        ({}, "nan", "expected a number, got 'nan'"),
        ({"low": 1, "high": 5}, "9", r"expected a number in \[1, 5\], got 9"),
        ({"low": 1}, "many", r"expected a number in \[1, inf\], got 'many'"),
        ({"pattern": r"Score: ([\d.]+)"}, "it is good", "nothing in the answer matches"),
        ({"pattern": r"Score: ([\d.]+)"}, "Score: 1.2.3", "expected a number"),
        ({"field": "score"}, '{"points": 3}', "expected a JSON object with the field 'score'"),
        ({"field": "score"}, "3", "expected a JSON object"),
        ({"field": "score"}, '{"score": true}', "expected a number"),
        ({"field": "score"}, '{"score": [3]}', "expected a number"),
        ({"choices": {"yes": 1, "no": 0}}, "yes and no", "expected one of yes, no, got 'yes and no'"),
        ({"tokens": {"yes": 1, "no": 0}}, "yes", "the server gave no log-probabilities"),
        ({"pattern": r"Score: ([\d.]+)"}, "<think>It would deserve Score: 2 at first", "ends within a thought"),
        ({"pattern": r"Score: ([\d.]+)"}, "Score: 3,5", "the number goes on behind"),
        ({"pattern": r"Score: (\d)"}, "Score: 10", "the number goes on behind"),
    ],
)
def test_other_answers_are_no_number(read: dict[str, Any], answer: str, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        AnswerReader(**read).read(ChatAnswer(answer))


def test_a_number_that_was_cut_off_is_unreadable_and_a_word_is_not() -> None:
    for read in ({}, {"pattern": r"Score: (\d+)"}, {"field": "s"}):
        with pytest.raises(UnreadableError, match="the answer is cut off; raise max_tokens"):
            AnswerReader(**read).read(ChatAnswer("1", truncated=True))
    assert AnswerReader(choices={"yes": 1, "no": 0}).read(ChatAnswer("yes", truncated=True)) == {"": 1}
    assert read_answer(b'{"choices": [{"message": {"content": "1"}, "finish_reason": "length"}]}').truncated


def test_truth_values_of_yaml_stand_for_all_their_spellings() -> None:
    for keys in ({True: 1, False: 0}, {"true": 1, "false": 0}):  # the second is what JSON makes of the first
        reader = AnswerReader(choices=keys)
        assert [reader.read(ChatAnswer(word))[""] for word in ("Yes", "True", "no", "false")] == [1, 1, 0, 0]


def token(text: str, **likeliest: float) -> AnswerToken:
    """A token with probabilities."""
    return AnswerToken(text, {name.replace("_", " "): math.log(p) for name, p in likeliest.items()})


def test_the_expected_value_over_score_tokens() -> None:
    reader = AnswerReader(tokens={1: 1, 2: 2, 3: 3})
    spread = AnswerToken("2", {"2": math.log(0.5), " 3": math.log(0.25), "1": math.log(0.05), "a": math.log(0.2)})
    expected = (0.5 * 2 + 0.25 * 3 + 0.05 * 1) / 0.8
    answer = ChatAnswer("\n2", (token("\n", a=1.0), spread))
    assert reader.read(answer)[""] == pytest.approx(expected)
    # Both spellings of a word count together.
    yes = AnswerReader(tokens={"yes": 1, "no": 0}).read(ChatAnswer("Yes", (token("Yes", Yes=0.3, _yes=0.3, no=0.4),)))
    assert yes[""] == pytest.approx(0.6)


def test_the_score_token_may_stand_behind_other_text() -> None:
    tokens = (token("Score", Score=1.0), token(":", **{":": 1.0}), token(" ", _=1.0), token("4", **{"4": 0.5, "5": 0.5}))
    reader = AnswerReader(tokens={4: 4, 5: 5}, after="Score:")
    assert reader.read(ChatAnswer("Score: 4", tokens))[""] == pytest.approx(4.5)
    with pytest.raises(UnreadableError, match="has no token after 'Final:'"):
        AnswerReader(tokens={4: 4, 5: 5}, after="Final:").read(ChatAnswer("Score: 4", tokens))
    with pytest.raises(UnreadableError, match=r"have a probability of 0.2 together, less than min_mass 0.5"):
        AnswerReader(tokens={"yes": 1, "no": 0}).read(ChatAnswer("I", (token("I", I=0.8, yes=0.1, no=0.1),)))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        ({"pattern": "(a)", "field": "b"}, "one of pattern, field and tokens, got pattern and field"),
        ({"pattern": "[0-9]+"}, "needs a group around the number"),
        ({"pattern": "(["}, "is no regular expression"),
        ({"low": 5, "high": 1}, "low must be below high, got 5 and 1"),
        ({"choices": {"yes": 1}}, "at least two different words"),
        ({"choices": {"yes": 1, "Yes!": 0}}, "at least two different words"),
        ({"tokens": {"a": 1, "b": math.inf}}, "finite numbers"),
        ({"tokens": {"a": 1, "b": 2}, "choices": {"a": 1, "b": 2}}, "leave choices out"),
        ({"tokens": {1: 1, 2: 2, 10: 10}}, "'1' begins '10'"),
        ({"min_mass": 0.0}, r"min_mass must be in \(0, 1\], got 0.0"),
    ],
)
def test_readings_that_cannot_be(read: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerReader(**read)


def test_answers_of_the_protocol() -> None:
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}]}
    assert read_answer(str(parts).replace("'", '"').encode()) == ChatAnswer("ab")
    withheld = b'{"choices": [{"message": {"content": null, "refusal": "I cannot"}, "finish_reason": "stop"}]}'
    assert read_answer(withheld).refused
    assert read_answer(b'{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}').refused
    for body in (
        b"<html>",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": "x"}]}',
        b'{"choices": [{"message": {"content": 3}}]}',
    ):
        with pytest.raises(FailedError, match="it answered in another form"):
            read_answer(body)


def test_templates_are_filled_from_the_prompt() -> None:
    assert (
        filled("{text} ({words}) in the {place}: {question} {{0}}", SIGN, "Big?") == "a sign 'OPEN' (OPEN) in the street: Big? {0}"
    )
    check_fields(["{text} {id} {place}"], [SIGN])
    with pytest.raises(ValueError, match=r"1 of 2 prompts have no field {place}: 'plain'"):
        check_fields(["{place}"], [SIGN, Prompt("plain")])
    with pytest.raises(ValueError, match=r"no field {place}"):
        check_fields(["{place}"], [Prompt("x", extra={"place": None})])
    with pytest.raises(ValueError, match=r"no field {plac}: 'sign'. Did you mean 'place'\?"):
        check_fields(["{plac}"], [SIGN])
    for template in ("{}", "{text.words}", "{text!r}", "{text:>4}", "{0}", "{text"):
        with pytest.raises(ValueError, match=r"is no template|expected a name alone"):
            filled(template, SIGN)


def test_questions_of_a_prompt() -> None:
    entries = [
        "Is there a dog?",
        {"question": "Is it blue?", "answer": False, "depends_on": [1]},
        {"question": "Big?", "depends_on": 0},
    ]
    questions = listed_questions(Prompt("a dog", extra={"questions": entries}), "questions")
    assert questions == [ListedQuestion("Is there a dog?"), ListedQuestion("Is it blue?", True, (0,)), ListedQuestion("Big?")]
    assert share_of_yes(questions, [0.9, 0.2, 0.5]) == pytest.approx((0.9 + 0.8 + 0.5) / 3)
    assert share_of_yes(questions, [0.4, 0.2, 0.5]) == pytest.approx((0.4 + 0.0 + 0.5) / 3)  # no dog, so none that is not blue


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "must be a list of at least one question, got None"),
        ([], "at least one question"),
        ("Is it?", "at least one question"),
        ([3], "question 1 in the column 'questions' of prompt 'x' must be a text or a mapping"),
        ([{"question": "a", "answer": "blue"}], "has the answer 'blue'; expected yes or no"),
        ([{"question": "a", "depends_on": 1.0}], r"has depends_on 1.0; expected numbers of questions from 1 to 1, or 0"),
        ([{"question": "a", "anser": "no"}], "has no key 'anser'. Did you mean 'answer'"),
        (["a", {"question": "b", "depends_on": [3]}], r"has depends_on .*; expected numbers of questions from 1 to 2, or 0"),
    ],
)
def test_questions_of_another_form(entries: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listed_questions(Prompt("x", extra={} if entries is None else {"questions": entries}), "questions")


def test_presets_read_what_their_judges_write() -> None:
    written = "Alignment Score (1-5): 4\nCoherence Score (1-5): 3.5\nStyle Score (1-5): 2"
    assert UNIFIED_REWARD.read.read(ChatAnswer(written)) == {"alignment": 4, "coherence": 3.5, "style": 2}
    with pytest.raises(UnreadableError, match="goes on"):
        UNIFIED_REWARD.read.read(ChatAnswer(written.replace("3.5", "3,5")))
    assert UNIFIED_REWARD_PAIRS.read.read(ChatAnswer("Image 1 has ... So Image 2 is better.")) == {"": 0}
    assert UNIFIED_REWARD_PAIRS.read.read(ChatAnswer("**Both images are equally good.**")) == {"": 0.5}
    assert YES_NO.read.read(ChatAnswer("Yes.")) == {"": 1}
    with pytest.raises(ValueError, match=r"no preset 'unified'\. Did you mean 'unified_reward'"):
        preset_named("unified", False)
    with pytest.raises(ValueError, match="no preset 'yes_no' for pairs"):
        preset_named("yes_no", True)


def test_the_cache_keeps_answers_in_a_file_and_in_memory(tmp_path: Any) -> None:
    answer = ChatAnswer("4", (AnswerToken("4", {"4": -0.1}),), prompt_tokens=3)
    key = AnswerCache.key("http://a", {"x": 1})
    assert key != AnswerCache.key("http://b", {"x": 1})
    first = AnswerCache(tmp_path / "answers.sqlite")
    first.add({key: answer})
    assert AnswerCache(tmp_path / "answers.sqlite").known([key, "other"]) == {key: answer}
    assert AnswerCache(None).known([key]) == {}
    memory = AnswerCache(None)
    memory.add({str(number): answer for number in range(KEPT + 5)})
    assert len(memory.known([str(number) for number in range(KEPT + 5)])) == KEPT
    with closing(sqlite3.connect(tmp_path / "other")) as connection:
        connection.execute("CREATE TABLE answers (a TEXT, b TEXT)")
    with pytest.raises(ValueError, match="cannot be used as a file of answers: no such column: request"):
        AnswerCache(tmp_path / "other")
    (tmp_path / "text").write_text("no database, but long enough to be read as one" * 50)
    for path in (tmp_path / "text", tmp_path / "missing" / "file"):
        with pytest.raises(ValueError, match="cannot be used as a file of answers"):
            AnswerCache(path)
