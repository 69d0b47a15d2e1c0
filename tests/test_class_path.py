"""Classes by dotted path, and what is said when the path or the arguments are wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from varrl_lightning.configuration.class_path import import_class, instantiate
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
        ("no_such_package.Class", "cannot import 'no_such_package.Class': ModuleNotFoundError: .*Expected package.module.Class"),
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
    assert instantiate(Two, "two", {"first": 1, "second": 5}).both == (1, 5)
    assert instantiate(Anything, "anything", {"x": 1}).options == {"x": 1}
    assert isinstance(instantiate(Nothing, "nothing", {}), Nothing)


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
        instantiate(cls, "it", arguments)


def test_an_error_inside_a_constructor_stays_its_own() -> None:
    with pytest.raises(ValueError, match="expected a number"):
        instantiate(_raise, "it", {"value": 1})


def _raise(value: int) -> None:
    raise ValueError("expected a number")


def test_did_you_mean_says_nothing_when_nothing_is_close() -> None:
    assert did_you_mean("brightnes", ["ocr", "brightness"]) == " Did you mean 'brightness'?"
    assert did_you_mean("zzz", ["ocr", "brightness"]) == ""
