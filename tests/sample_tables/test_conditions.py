"""Conditions hold where they should, and everything else is refused with its place; no model, milliseconds."""

from __future__ import annotations

import pytest

from tests.sample_tables.made_rows import row
from varrl_lightning.sample_tables.columns import UnknownColumnError, column_named, columns_of
from varrl_lightning.sample_tables.conditions import DEEPEST, parse_condition
from varrl_lightning.sample_tables.tokens import LONGEST, ConditionError

ROW = row()
COLUMNS = columns_of([ROW])


def holds(condition: str) -> bool:
    return parse_condition(condition, COLUMNS)(ROW)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("advantage < -1", True),
        ("advantage<-1.5", False),
        ("advantage <= -15e-1", True),
        ("-1 > advantage", True),
        ("branch == 3 and group != 1", True),
        ("branch == 3.0", True),
        ("step >= 41 or reward > .2", True),
        ("not step >= 41", True),
        ("not not step >= 41", False),
        ("-2 < advantage < -1", True),
        ("-2 < advantage < -1.7", False),
        # `and` binds closer than `or`, and `not` closer than `and`.
        ("step == 40 or step == 1 and step == 2", True),
        ("(step == 40 or step == 1) and step == 2", False),
        ("not step == 1 and step == 2", False),
        ("return == 0.5", True),
        ("rewards.ocr < 0.3", True),
        ("parts.ocr.ned == 0.5 and parts.ned == 0.5", True),
        ("stage == 'prefix'", True),
        ('stage != "prefix"', False),
        ("stage in ('suffix', 'prefix')", True),
        ("branch not in (1, 3)", False),
        ("'STONE' in prompt", True),
        ("prompt contains 'STONE'", True),
        ("prompt contains 'stone'", False),
        ("'STONE' in words and not 'STONE' in read", True),
        ("read contains 'ST0NE'", True),
        ("read contains 'ST0'", False),  # words are compared whole
        ("read not contains 'ST0NE'", False),
        ("'STONE' not in read", True),
        ("read != words", True),
        ("prompt contains ' and ('", False),
    ],
)
def test_it_holds(condition: str, expected: bool) -> None:
    assert holds(condition) is expected


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_a_missing_value_fulfils_no_comparison(sign: str) -> None:
    assert not holds(f"rewards.my-clip {sign} 0")
    assert not holds(f"reward {sign} rewards.my-clip")
    assert holds(f"not rewards.my-clip {sign} 0")


def test_missing_values_are_asked_for_by_name() -> None:
    assert holds("rewards.my-clip is missing")
    assert holds("reward is not missing")
    unread = row(read=None)
    condition = parse_condition("read contains 'x' or read not contains 'x' or read == words or read != words", COLUMNS)
    assert not condition(unread)
    assert not parse_condition("rewards.my-clip not in (1, 2)", COLUMNS)(ROW)
    assert parse_condition("read is missing", COLUMNS)(unread)


@pytest.mark.parametrize(
    ("condition", "place", "reason"),
    [
        ("advantage <", 12, "expected a column, a number or quoted text"),
        ("advantage", 10, "expected a comparison: < <= > >= == != in, contains, is missing"),
        ("(reward < 1", 12, "expected ')'"),
        ("reward < 1)", 11, "expected 'and', 'or' or the end, got ')'"),
        ("reward < 1 and", 15, "expected a column, a number or quoted text"),
        ("reward = 1", 8, "write == for 'equals'"),
        ("prompt contains 'STONE", 17, "the text that begins with ' has no end"),
        ("reward is 3", 11, "expected 'missing', got '3'"),
        ("branch in (1, 2", 16, "expected ',' or ')'"),
        ("and reward", 1, "expected a column, a number or quoted text, got 'and'"),
        ("", 1, "expected a column, a number or quoted text"),
        ("branch ** 2 > 1", 8, "'*' has no meaning here"),
        ("prompt < 3", 1, "'<' compares values of one kind, got prompt (text) and 3 (a number)"),
        ("reward == 'a'", 1, "'==' compares values of one kind, got reward (a number) and 'a' (text)"),
        ("stage < 'a'", 1, "'<' compares numbers, got stage (text) and 'a' (text)"),
        ("reward in prompt", 1, "'in' looks for text in text or in a list of words, got reward (a number) and prompt (text)"),
        ("reward contains 'a'", 1, "'contains' looks for text in text or in a list of words, got reward (a number) and 'a' (text)"),
        ("step == 1 and branch in (1, 'a')", 15, "'==' compares values of one kind, got branch (a number) and 'a' (text)"),
    ],
)
def test_what_cannot_be_read_is_shown_with_its_place(condition: str, place: int, reason: str) -> None:
    with pytest.raises(ConditionError) as raised:
        holds(condition)
    first, shown, mark = str(raised.value).split("\n")
    assert first.startswith(f"the condition cannot be read at character {place}: {reason}")
    assert (shown, mark) == (f"  {condition}", f"  {' ' * (place - 1)}^")


@pytest.mark.parametrize(
    "condition",
    [
        "__import__('os').system('touch /tmp/x') == 0",
        "reward.__class__.__mro__ == 1",
        "().__class__.__bases__[0].__subclasses__() == 1",
        "open('/etc/passwd') == 1",
        "9**9**9**9 > 1",
        "reward if reward > 1 else 2",
        "lambda: 1",
        "[x for x in read] == 1",
        "reward; import os",
        "reward := 1",
        "f'{reward}' == 'a'",
        "prompt.format == 'a'",
        "image == 'a'",
        "rewards == 1",
        "rewards.__class__ == 1",
        "parts. == 1",
        "reward < 1\x00",
        "eval('1') == 1",
        "reward.real > 0",
        "`reward` > 0",
        "0x10 < 1",
        "1.2.3 < reward",
    ],
)
def test_code_is_refused(condition: str) -> None:
    with pytest.raises((ConditionError, UnknownColumnError)):
        holds(condition)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("(" * 10_000, f"has 10000 characters; at most {LONGEST} are read"),
        ("(" * 1000 + "reward < 1" + ")" * 900, f"more than {DEEPEST} parentheses"),
        ("not " * 400 + "reward < 1", f"more than {DEEPEST} parentheses"),
    ],
)
def test_the_parser_cannot_be_exhausted(condition: str, reason: str) -> None:
    with pytest.raises(ConditionError, match=reason.replace("(", r"\(")):
        holds(condition)


def test_as_many_parentheses_as_are_allowed() -> None:
    assert holds("(" * (DEEPEST - 1) + "reward < 1" + ")" * (DEEPEST - 1))
    assert holds("reward < " + "9" * 1000)  # a number too large for a float is infinite


def test_unknown_columns_are_named_with_the_closest() -> None:
    with pytest.raises(UnknownColumnError, match=r"the table has no 'rewrd'\. Did you mean 'reward") as raised:
        holds("step > 1 and rewrd < 1")
    assert "rewards.my-clip, parts.ocr.ned" in " ".join(str(raised.value).split())
    with pytest.raises(
        UnknownColumnError, match=r"several rewards have the part 'both': write parts.ocr.both or parts.my-clip.both"
    ):
        column_named("parts.both", list(COLUMNS))
