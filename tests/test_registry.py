"""Plugins by entry point: discovery, and every way in which it can go wrong."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from varrl_lightning.errors import BrokenPluginError, DuplicatePluginError, InitArgsError, PluginError, PluginNotFoundError
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.registry import MASK_SOURCES, REWARDS, available, build, load
from varrl_lightning.rewards.ocr import OCRReward

Install = Callable[..., Path]
SOURCE = """
class Plugin:
    def __init__(self, strength=1.0, part=None):
        self.strength, self.part = strength, part
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution on sys.path: its entry_points.txt and, if given, its module."""

    def put(distribution: str, entries: str, module: str = "", source: str = SOURCE, group: str = REWARDS) -> Path:
        folder = tmp_path / f"site {len(list(tmp_path.iterdir()))}"
        (folder / distribution).mkdir(parents=True)
        (folder / distribution / "entry_points.txt").write_text(f"[{group}]\n{entries}\n")
        if module:
            (folder / f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(folder)
        return folder

    return put


def test_the_package_registers_its_own() -> None:
    assert load(REWARDS, "ocr") is OCRReward
    assert {"boxes", "full"} <= set(available(MASK_SOURCES))
    assert load(MASK_SOURCES, "boxes") is Boxes
    assert load(MASK_SOURCES, "full") is Full


def test_a_foreign_plugin_is_found(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin", "glow_plugin")
    assert available(REWARDS)["glow"] == "varrl_glow 2.1"
    assert load(REWARDS, "glow").__module__ == "glow_plugin"
    assert "glow" not in available(MASK_SOURCES)


def test_nothing_is_imported_before_it_is_asked_for(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = lazy_plugin:Plugin", "lazy_plugin")
    available(REWARDS)
    load(REWARDS, "ocr")
    assert "lazy_plugin" not in sys.modules


def test_a_missing_plugin(install: Install) -> None:
    install("varrl_brightness-0.1.0.dist-info", "brightness = nowhere:Plugin")
    others = ", ".join(sorted(set(available(REWARDS)) | {"brightness"}))
    with pytest.raises(PluginNotFoundError) as caught:
        load(REWARDS, "brightnes")
    assert str(caught.value) == (
        "no reward named 'brightnes'. Did you mean 'brightness'?\n"
        f"Installed: {others}.\n"
        "Register one under [project.entry-points.\"varrl_lightning.rewards\"] (README, 'Write a reward')."
    )


def test_a_missing_plugin_where_none_is_installed() -> None:
    with pytest.raises(
        PluginNotFoundError, match=r"no thing named 'ocr'\.\nInstalled: none; install varrl-lightning itself with pip"
    ):
        load("varrl_lightning.things", "ocr")
    with pytest.raises(PluginNotFoundError, match=r"no mask source named 'hull'\. Did you mean 'full'"):
        load(MASK_SOURCES, "hull")


def test_two_distributions_with_one_name(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = first_glow:Plugin")
    install("other_glow-0.3.dist-info", "glow = second_glow:Plugin")
    message = r"reward 'glow' is registered more than once, by other_glow 0.3 \(second_glow:Plugin\) and varrl_glow 2.1 \(first"
    for look in (lambda: load(REWARDS, "glow"), lambda: available(REWARDS)):
        with pytest.raises(DuplicatePluginError, match=message):
            look()
    assert load(REWARDS, "ocr") is OCRReward


@pytest.mark.parametrize("copy", ["varrl_glow-2.1.dist-info", "Varrl.Glow.egg-info", "varrl_glow-2.0.dist-info"])
def test_two_copies_of_one_distribution_are_no_duplicate(install: Install, copy: str) -> None:
    install("varrl_glow-2.1.dist-info", "glow = older_copy:Plugin")
    install(copy, "glow = newer_copy:Plugin", "newer_copy")
    assert load(REWARDS, "glow").__module__ == "newer_copy"  # first on sys.path, as Python imports


@pytest.mark.parametrize(
    ("target", "source", "cause"),
    [
        ("broken_plugin:Plugin", "import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'"),
        ("broken_plugin:Plugin", "raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
        ("broken_plugin:Plugin", "", "AttributeError: .*'Plugin'"),
        ("broken_plugin:Plugin!", SOURCE, "BadEntryPoint"),
    ],
)
def test_a_plugin_that_cannot_be_imported(install: Install, target: str, source: str, cause: str) -> None:
    install("varrl_glow-2.1.dist-info", f"glow = {target}", "broken_plugin", source)
    message = f"reward 'glow' = '{target}' of the distribution varrl_glow 2.1 cannot be imported: {cause}.*uninstall varrl_glow"
    with pytest.raises(BrokenPluginError, match=message) as caught:
        load(REWARDS, "glow")
    assert caught.value.__cause__ is not None
    assert load(REWARDS, "ocr") is OCRReward


def test_a_plugin_that_is_no_class(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = value_plugin:VALUE", "value_plugin", "VALUE = 3")
    with pytest.raises(BrokenPluginError, match=r"varrl_glow 2\.1 is a int; expected a class"):
        load(REWARDS, "glow")


def test_a_malformed_file_of_entry_points(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = a:B\nglow = c:D")
    with pytest.raises(BrokenPluginError, match=r"(?s)entry_points.txt is malformed: .*varrl_glow-2.1.*Reinstall"):
        available(REWARDS)


def test_what_a_config_may_name(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin\nglow.strong = glow_plugin:Plugin", "glow_plugin")
    cls = load(REWARDS, "glow")
    ready = cls(7.0)
    assert build(REWARDS, ready) is ready
    for spec in ("glow", "glow.strong", "glow_plugin.Plugin", cls, {"class_path": "glow"}, {"class_path": cls, "init_args": None}):
        assert type(build(REWARDS, spec)) is cls
    arguments = {"strength": 3.0}
    for path in ("glow", "glow_plugin.Plugin"):
        for spec in ({"class_path": path, "init_args": arguments}, Namespace(class_path=path, init_args=Namespace(**arguments))):
            assert build(REWARDS, spec).strength == 3.0


def test_an_argument_may_be_a_class_path_itself(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin", "glow_plugin")
    inner = {"class_path": "glow_plugin.Plugin", "init_args": {"strength": 5.0}}
    assert build(REWARDS, {"class_path": "glow", "init_args": {"part": inner}}).part.strength == 5.0
    plain = {"colour": "red"}
    assert build(REWARDS, {"class_path": "glow", "init_args": {"part": plain}}).part == plain


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"clas_path": "ocr"}, PluginError, r"a reward is a name, a class path, or a mapping .* got \{'clas_path': 'ocr'\}"),
        ({"class_path": "ocr", "args": {}}, PluginError, "a mapping with class_path and init_args, got"),
        ({"class_path": ""}, PluginError, "a reward is a name"),
        ({"class_path": "ocr", "init_args": [1]}, InitArgsError, r"init_args of 'ocr' must be a mapping .* got \[1\]"),
        ({"class_path": "ocr", "init_args": {"lamda": 1}}, InitArgsError, "no init_arg 'lamda'. Did you mean 'lam'"),
    ],
)
def test_a_malformed_spec(spec: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build(REWARDS, spec)
