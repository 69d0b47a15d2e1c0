"""Classes by dotted path, and what is said when the path or the arguments are wrong."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest

from varrl_lightning.configuration.class_path import checked_arguments, import_class
from varrl_lightning.errors import ClassPathError, InitArgsError, did_you_mean


class Two:
    def __init__(self, first: int, *, second: int = 2) -> None:
        self.both = (first, second)


class Anything:
    def __init__(self, **options: Any) -> None:
        self.options = options


class Nothing:
    pass


def test_a_class_is_imported() -> None:
    assert import_class("collections.OrderedDict").__name__ == "OrderedDict"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_package.Class", "cannot import 'no_such_package.Class': ModuleNotFoundError: .*Expected module.Class"),
        ("argparse.Namespce", "'argparse' has no class 'Namespce'. Did you mean 'Namespace'\\? It has: .*ArgumentParser"),
        ("collections.abc.__doc__", "no class '__doc__'"),
        ("varrl_lightning.rewards.ocr.OCRRewrd", r"Did you mean 'OCRReward'\? It has: OCRReward\."),
    ],
)
def test_a_wrong_path(path: str, message: str) -> None:
    with pytest.raises(ClassPathError, match=message):
        import_class(path)


def test_a_module_that_raises_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_on_import.py").write_text("raise OSError('no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ClassPathError, match=r"cannot import 'raises_on_import\.Class': OSError: no such library") as caught:
        import_class("raises_on_import.Class")
    assert isinstance(caught.value.__cause__, OSError)


def test_arguments_are_passed() -> None:
    for cls, arguments in ((Two, {"first": 1, "second": 5}), (Anything, {"x": 1}), (Nothing, {})):
        assert checked_arguments(cls, "it", arguments) == arguments


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (Two, {"first": 1, "secnd": 2}, "'it' has no init_arg 'secnd'. Did you mean 'second'\\? It takes: first, second."),
        (Two, {"second": 2}, "'it' needs the init_args first. It takes: first, second."),
        (Nothing, {"x": 1}, "'it' has no init_arg 'x'. It takes: no arguments."),
    ],
)
def test_wrong_arguments_list_the_right_ones(cls: Any, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InitArgsError, match=message):
        checked_arguments(cls, "it", arguments)


def test_a_function_with_one_argument_is_told_how_a_reward_looks() -> None:
    def light(images: Any) -> Any:
        return images

    with pytest.raises(InitArgsError, match=r"needs the init_args images\. .* A function that is itself a reward takes images and"):
        checked_arguments(light, "it", {})


class Colour(enum.Enum):
    RED = 1


class Part:
    """Something that an argument may be."""

    def __init__(self, size: int = 1) -> None:
        if size < 1:
            raise ValueError("expected a positive size")
        self.size = size


if TYPE_CHECKING:
    from nowhere import Nowhere


class Typed:
    """Every kind of annotation, none of which its constructor looks at."""

    def __init__(
        self,
        number: float = 1.0,
        count: int = 1,
        flag: bool = False,
        text: str = "",
        mode: Literal["fast", "slow"] = "fast",
        limit: int | None = None,
        old_style: int = None,  # type: ignore[assignment] # noqa: RUF013
        where: str | Path = "",
        folder: Path = Path(),
        sizes: Sequence[float] = (),
        pair: tuple[int, int] = (1, 2),
        table: Mapping[str, int] | None = None,
        options: Mapping[str, Any] | None = None,
        colour: Colour = Colour.RED,
        part: Part | None = None,
        call: Callable[[int], int] = abs,
        anything: Any = None,
        hidden: Nowhere | None = None,
        untyped=None,
    ) -> None:
        pass


def typed_function(lam: float = 1.0, part: Part | None = None) -> Part:
    return part or Part()


class Forwards(Two):
    """Hands on whatever it is given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("number", "1e-3", 1e-3),  # a string, as YAML 1.1 reads it
        ("number", 2, 2.0),
        ("number", ".inf", float("inf")),
        ("count", "3", 3),
        ("flag", "true", True),
        ("text", "1", "1"),
        ("text", "null", "null"),
        ("mode", "slow", "slow"),
        ("limit", None, None),
        ("limit", 3, 3),
        ("old_style", None, None),
        ("where", "a/b", "a/b"),
        ("where", Path("a/b"), Path("a/b")),
        ("folder", "a/b", Path("a/b")),
        ("sizes", [1, 2.5], [1.0, 2.5]),
        ("sizes", (1, 2.5), [1.0, 2.5]),
        ("pair", [3, 4], (3, 4)),
        ("table", {"a": 1}, {"a": 1}),
        ("options", {"country": "no", "number": "1"}, {"country": "no", "number": "1"}),
        ("colour", "RED", Colour.RED),
        ("colour", Colour.RED, Colour.RED),
        ("call", "math.sqrt", math.sqrt),
        ("call", math.sqrt, math.sqrt),
        ("part", None, None),
        ("anything", "1", "1"),
        ("hidden", "1", "1"),
        ("untyped", "1", "1"),
        ("number", np.float32(0.5), np.float32(0.5)),  # an object is its caller's affair
    ],
)
def test_a_value_becomes_what_its_annotation_asks_for(key: str, value: Any, expected: Any) -> None:
    before = repr(value)
    result = checked_arguments(Typed, "it", {key: value})[key]
    assert result == expected
    assert type(result) is type(expected)
    assert repr(value) == before


def test_parts_by_class_path_as_objects_and_as_specs_that_are_built_later() -> None:
    by_path = checked_arguments(Typed, "it", {"part": f"{__name__}.Part"})["part"]
    assert isinstance(by_path, Part)
    for part in (Part(3), object(), {"class_path": "part"}):
        assert checked_arguments(Typed, "it", {"part": part})["part"] is part


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("number", "high", "float"),
        ("number", None, "float"),
        ("number", True, "float"),
        ("number", [1.0], "float"),
        ("number", {"class_path": "ocr"}, "float"),
        ("count", 1.5, "int"),
        ("count", "many", "int"),
        ("flag", "maybe", "bool"),
        ("flag", 1, "bool"),
        ("text", 3, "str"),
        ("mode", "quick", "Literal['fast', 'slow']"),
        ("limit", "none", "int | None"),
        ("where", 3, "str | Path"),
        ("sizes", ["a"], "Sequence[float]"),
        ("pair", [1, 2, 3], "tuple[int, int]"),
        ("table", {"a": "b"}, "Mapping[str, int] | None"),
        ("colour", "GREEN", "Colour"),
        ("part", 3, "Part | None"),
        ("part", "no.such.Part", "Part | None"),
        ("call", 3, "Callable[[int], int]"),
    ],
)
def test_a_value_of_another_type(key: str, value: Any, kind: str) -> None:
    message = re.escape(f"the init_arg {key!r} of 'it' must be of type {kind}, got {value!r}")
    with pytest.raises(InitArgsError, match=message):
        checked_arguments(Typed, "it", {key: value})


def test_factories_that_are_functions_and_constructors_that_take_anything() -> None:
    with pytest.raises(InitArgsError, match="the init_arg 'lam' of 'it' must be of type float, got 'high'"):
        checked_arguments(typed_function, "it", {"lam": "high"})
    assert checked_arguments(Forwards, "it", {"first": "high"}) == {"first": "high"}
    assert checked_arguments(Anything, "it", {"x": "1"}) == {"x": "1"}


def test_did_you_mean_says_nothing_when_nothing_is_close() -> None:
    assert did_you_mean("brightnes", ["ocr", "brightness"]) == " Did you mean 'brightness'?"
    assert did_you_mean("zzz", ["ocr", "brightness"]) == ""
