"""Prompt files, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from varrl_lightning.prompts import files as prompts_module
from varrl_lightning.prompts.files import OverlapError, PromptFileError, check_disjoint, load_prompts
from varrl_lightning.types import Box, Prompt

FULL = '{"id": "a", "text": "x", "words": ["Hot"], "regions": [[0, 1, 2, 3]], "category": "c", "label": 4, "size": [24, 64]}'


@pytest.fixture
def write(tmp_path: Path) -> object:
    def put(content: str | bytes) -> Path:
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return put


def test_every_field_is_read(write) -> None:
    first, second = load_prompts(write(f'{FULL}\n\n  {{"text": "the word \\"TEA\\""}}  \n'))
    assert first == Prompt("x", "a", ("Hot",), (Box(0, 1, 2, 3),), category="c", label=4, size=(24, 64))
    assert (second.id, second.words) == ('the word "TEA"', ("TEA",))


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(write) -> None:
    assert [p.text for p in load_prompts(write(b'\xef\xbb\xbf{"text": "caf\xc3\xa9"}\r\n{"text": "b"}\r\n'))] == ["café", "b"]


def test_an_unusual_line_separator_inside_a_text_does_not_end_the_line(write) -> None:
    assert [p.text for p in load_prompts(write('{"text": "a\u2028b"}\n{"text": "c\x85d"}\n'))] == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt; expected one JSON object a line"),
        ("\n \n", "holds no prompt"),
        ('{"text": "a"}\n{"text": }', r'prompts.jsonl, line 2: Expecting value: .*\n    \{"text": \}\nA line is a JSON object'),
        ('["a"]', "line 1: expected a JSON object, got a list"),
        ('{"txt": "a"}', r"line 1: 'text' must be a non-empty string, got None; the key 'txt' .*did you mean 'text'\?"),
        ('{"words": ["a"]}', "line 1: 'text' must be a non-empty string, got None"),
        ('{"text": "a", "words": "tea"}', "line 1: 'words' must be a list of non-empty strings, got 'tea'"),
        (
            '{"id": "a", "text": "c"}\n{"text": "b"}\n{"id": "a", "text": "d"}',
            "line 3: the id 'a' is already that of line 1; .*Give each a different 'id'",
        ),
        (b'{"text": "\xff"}', "prompts.jsonl is not UTF-8 text"),
        ('{"text": "' + "x" * 500 + '"', "x{150} \\.\\.\\.\n"),
    ],
)
def test_a_bad_file_names_the_line(write, content: str | bytes, message: str) -> None:
    with pytest.raises(PromptFileError, match=message):
        load_prompts(write(content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"cannot read the prompt file .*nowhere\.jsonl: No such file or directory"):
        load_prompts(tmp_path / "nowhere.jsonl")
    with pytest.raises(PromptFileError, match=r"cannot read the prompt file .*: Is a directory"):
        load_prompts(tmp_path)


def test_files_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts_module, "_ASSETS", tmp_path)
    (tmp_path / "lettering").mkdir()
    (tmp_path / "lettering" / "test.jsonl").write_text('{"text": "a"}')
    assert load_prompts("builtin:lettering/test.jsonl") == [Prompt("a")]
    with pytest.raises(PromptFileError, match=r"No such file.*\. Files in the package: builtin:lettering/test\.jsonl\."):
        load_prompts("builtin:lettering/tset.jsonl")


def test_sets_without_a_common_prompt_pass() -> None:
    check_disjoint([Prompt('"HOT TEA"'), Prompt("a cat")], [Prompt('"HOT"'), Prompt("a dog"), Prompt('a cat, "TEA"')])


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (['"TEA" in blue', "x"], ['a red "tea"'], "share 1 prompts: tea"),
        (["A cat"], ["a cat "], "share 1 prompts: a cat"),
        (['"A" and "B"'], ['"a", "b"'], r"share 1 prompts: a \| b"),
        ([f"p{i}" for i in range(12)], [f"p{i}" for i in range(12)], r"share 12 prompts: p0; p1; p10; .*; \.\.\."),
    ],
)
def test_a_shared_prompt_is_named(first: list[str], second: list[str], shared: str) -> None:
    with pytest.raises(OverlapError, match=f"train and test {shared}. Remove them"):
        check_disjoint([Prompt(t) for t in first], [Prompt(t) for t in second])
