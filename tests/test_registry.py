"""Plugins by entry point: discovery, and every way in which it can go wrong."""

from __future__ import annotations

import pickle
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from varrl_lightning.errors import BrokenPluginError, DuplicatePluginError, InitArgsError, PluginError, PluginNotFoundError
from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.mask_sources.saliency import Saliency
from varrl_lightning.registry import MASK_SOURCES, REWARDS, available, build, check, load, name_of
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.types import Prompt

Install = Callable[..., Path]
SOURCE = """
class Plugin:
    def __init__(self, strength=1.0, part=None):
        self.strength, self.part = strength, part

    def __call__(self, *what):
        return [self.strength] * len(what[0])
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
        "A class in a file of yours is given by its class path: module.Class. To give it a name, register it under "
        "[project.entry-points.\"varrl_lightning.rewards\"] (docs/rewards.md, 'Share a reward as a plugin')."
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


# --- the types of arguments -------------------------------------------------------------------------------------------------

TYPED = """
from __future__ import annotations
from collections.abc import Sequence
from typing import Any

class Plugin:
    def __init__(self, strength: float = 1.0, colours: Sequence[str] = (), part: object | None = None) -> None:
        self.strength, self.colours, self.part = strength, colours, part

    def __call__(self, images, prompts):
        return [self.strength] * len(images)

def make(strength: float = 2.0) -> Plugin:
    return Plugin(strength)
"""


@pytest.mark.parametrize(
    ("group", "name", "key", "value", "kind"),
    [
        (REWARDS, "ocr", "lam", "high", "float"),
        (REWARDS, "ocr", "lam", None, "float"),
        (REWARDS, "ocr", "detect", "sometimes", "bool"),
        (REWARDS, "ocr", "threads", 1.5, "int | None"),
        (REWARDS, "ocr", "match", "exact", "Literal['ld', 'ld*conf']"),
        (REWARDS, "varrl_lightning.rewards.ocr.OCRReward", "engine", 3, "OCREngine | None"),
        (REWARDS, "tesseract", "min_length", "long", "int"),
        (REWARDS, "flow_grpo_ocr", "without_words", "ignore", "Literal['error', 'skip']"),
        (REWARDS, "clip_score", "path", 5, "str | Path"),
        (REWARDS, "clip_score", "scale", [1.0], "float"),
        (REWARDS, "http", "url", 5, "str | list[str]"),
        (MASK_SOURCES, "boxes", "padding", "wide", "int"),
        (MASK_SOURCES, "boxes", "from_reward", 1, "str | None"),
        (MASK_SOURCES, "disagreement", "quantile", "none", "float | None"),
        (MASK_SOURCES, "saliency", "images_at_once", {"class_path": "full"}, "int"),
        (REWARDS, "glow", "strength", "strong", "float"),
        (REWARDS, "glow", "colours", ["red", 3], "Sequence[str]"),
        (REWARDS, "glow_plugin.Plugin", "strength", "strong", "float"),
        (REWARDS, "glow_plugin.make", "strength", "strong", "float"),
    ],
)
def test_a_value_of_another_type(install: Install, group: Any, name: str, key: str, value: Any, kind: str) -> None:
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin", "glow_plugin", TYPED)
    spec = {"class_path": name, "init_args": {key: value}}
    for make in (build, check):
        with pytest.raises(InitArgsError) as caught:
            make(group, spec)
        assert str(caught.value).startswith(f"the init_arg {key!r} of {name!r} must be of type {kind}, got {value!r}")


def test_a_value_of_another_type_in_a_nested_spec(install: Install) -> None:
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin", "glow_plugin", TYPED)
    inner = {"class_path": "ocr", "init_args": {"lam": "high"}}
    for group, name, key in ((REWARDS, "glow", "part"), (MASK_SOURCES, "saliency", "reward")):
        for make in (build, check):
            with pytest.raises(InitArgsError, match="the init_arg 'lam' of 'ocr' must be of type float, got 'high'"):
                make(group, {"class_path": name, "init_args": {key: inner}})  # type: ignore[call-overload]


def test_a_mask_source_takes_a_reward_by_name() -> None:
    inner = {"class_path": "ocr", "init_args": {"lam": "1e-1"}}
    source = build(MASK_SOURCES, {"class_path": "saliency", "init_args": {"reward": inner}})
    assert isinstance(source, Saliency)
    assert isinstance(source.reward, OCRReward)
    assert source.reward.lam == 0.1


@pytest.mark.parametrize("group", [REWARDS, MASK_SOURCES])
@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ("pickscor", "no reward named 'pickscor'. Did you mean 'pickscore'"),
        ({"class_path": "pickscor"}, "no reward named 'pickscor'. Did you mean 'pickscore'"),
        ({"class_path": "rank_of", "init_args": {"reward": "pickscor"}}, "no reward named 'pickscor'. Did you mean 'pickscore'"),
        ({"class_path": "ocr", "init_args": {"lma": 1}}, "'ocr' has no init_arg 'lma'. Did you mean 'lam'"),
        ({"ocr": 1.0}, "a reward is a name, a class path, or a mapping with class_path"),
        ("no_such_module.Reward", "no_such_module"),
    ],
)
def test_the_reward_of_a_plugin_is_checked_before_anything_is_built(group: Any, inner: Any, message: str) -> None:
    name = {REWARDS: "rank_of", MASK_SOURCES: "saliency"}[group]
    for make in (check, build):
        with pytest.raises(PluginError, match=message):
            make(group, {"class_path": name, "init_args": {"reward": inner}})
    check(group, {"class_path": name, "init_args": {"reward": "ocr"}})


def test_a_check_builds_nothing(install: Install) -> None:
    source = SOURCE.replace("self.strength, self.part =", "raise RuntimeError;")
    install("varrl_glow-2.1.dist-info", "glow = glow_plugin:Plugin", "glow_plugin", source)
    nested = {"class_path": "glow", "init_args": {"part": {"class_path": "glow"}}}
    for spec in ("glow", nested, OCRReward()):
        check(REWARDS, spec)
    with pytest.raises(RuntimeError):
        build(REWARDS, nested)


# --- members that a plugin need not have ------------------------------------------------------------------------------------


def mean(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    return images.mean((1, 2, 3))


class Plain:
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return mean(images, prompts)

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return mean(images, prompts)


class Slots(Plain):
    __slots__ = ("word",)


class OnlySlots:
    __slots__ = ("word",)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return mean(images, prompts)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        raise ValueError("no words")


@dataclass(frozen=True)
class Frozen:
    word: str = "hot"

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return mean(images, prompts)


@pytest.mark.parametrize(
    ("plain", "name"),
    [
        (Plain(), "Plain"),
        (Slots(), "Slots"),
        (OnlySlots(), "OnlySlots"),
        (Frozen(), "Frozen"),
        (mean, "function"),
        (Plain().score, "method"),
    ],
)
def test_a_plain_reward_gets_the_members_that_it_lacks(plain: Any, name: str) -> None:
    reward = build(REWARDS, plain)
    assert isinstance(reward, Reward)
    assert name_of(reward) == name
    assert build(REWARDS, reward) is reward
    images = torch.rand(2, 3, 4, 4)
    for each in (reward, pickle.loads(pickle.dumps(reward))):
        assert torch.equal(each(images, [Prompt("a")] * 2), mean(images, []))
        assert each.differentiable is None
        each.prepare()
        if name == "OnlySlots":
            with pytest.raises(ValueError, match="no words"):
                each.check_prompts([])
        else:
            each.check_prompts([])


def test_a_plain_mask_source_gets_the_members_that_it_lacks() -> None:
    def source(rollout: Any, scores: Any, policy: Any) -> None:
        return None

    built = build(MASK_SOURCES, source)
    assert built is source
    assert isinstance(built, MaskSource)
    assert built.whole_groups is False
    built.use_rewards({})


def test_members_of_its_own_stay() -> None:
    class Own(Plain):
        differentiable = mean

        def prepare(self) -> None:
            raise RuntimeError("no GPU")

    own = Own()
    assert build(REWARDS, own) is own
    assert own.differentiable.__func__ is mean  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="no GPU"):
        own.prepare()


@pytest.mark.parametrize("spec", [None, 3, object()])
def test_what_cannot_be_called(spec: Any) -> None:
    with pytest.raises(TypeError, match=r"a mask source is called with \(rollout, scores, policy\), got .*, which is not callable"):
        build(MASK_SOURCES, spec)
