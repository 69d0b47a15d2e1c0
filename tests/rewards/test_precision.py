"""A reward's numbers do not depend on who computes them: on autocast, default dtype and device, inference mode, thread or part."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import PROMPTS, tiny_loader, tiny_module, tiny_trainer
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.base import BaseReward, Reading, score_images
from varrl_lightning.rewards.precision import full_precision
from varrl_lightning.rewards.reader_check import check_readers
from varrl_lightning.rewards.weighted import WeightedReward, WeightedRewards
from varrl_lightning.types import Prompt, Rollout, Scores

WEIGHTS = torch.randn(48, 1, generator=torch.Generator().manual_seed(0))
IMAGE = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
ONE = [Prompt("a")]
CPU = torch.device("cpu")


class Linear:
    """Any model of torch: a matrix product, a constant made by the default dtype, and a mean of integers."""

    def __init__(self) -> None:
        self.states: list[tuple[Any, ...]] = []

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        self.states.append(state())
        third = torch.tensor(1 / 3) + torch.arange(2) / 3
        return (images.flatten(1) @ WEIGHTS)[:, 0] + third.sum().to(images.device)


def state() -> tuple[Any, ...]:
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps", "xpu"))
    device = torch.zeros(1).device.type
    return autocast, torch.get_default_dtype(), device, torch.is_inference_mode_enabled(), torch.is_grad_enabled()


NEUTRAL = (False, torch.float32, "cpu", False, False)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast of another device": lambda: torch.autocast("mps", torch.float16),
    "bf16 by default": lambda: default_dtype(torch.bfloat16),
    "fp64 by default": lambda: default_dtype(torch.float64),
    "another device by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.filterwarnings("ignore:.*autocast.*is not available", "ignore:.*MPS Autocast")
def test_a_number_is_the_same_in_every_context(context: str) -> None:
    alone = float(score_images(Linear(), IMAGE, ONE, "linear").values)
    before = torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
    with CONTEXTS[context]():
        outside = state()
        found = score_images(reward := Linear(), IMAGE, ONE, "linear").values
        assert state() == outside, "the caller's state comes back"
    assert (torch.get_default_dtype(), torch.is_autocast_enabled("cpu")) == before
    assert reward.states == [NEUTRAL]
    assert outside != NEUTRAL
    assert float(found) == alone


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.filterwarnings("ignore:.*autocast.*is not available", "ignore:.*MPS Autocast")
def test_a_number_is_the_same_in_every_part(context: str) -> None:
    """The worker thread scores the first parts, the caller's thread the last one."""
    reward = Linear()
    with CONTEXTS[context](), BackgroundScoring(WeightedRewards({"linear": WeightedReward(reward)})) as scoring:
        for _ in range(3):
            scoring.add(IMAGE, ONE)
        values = scoring.result()["linear"].values
    assert values.tolist() == [float(score_images(Linear(), IMAGE, ONE, "linear").values)] * 3
    assert reward.states == [NEUTRAL] * 3


def test_the_sampler_keeps_its_default_dtype_while_a_part_is_scored() -> None:
    """It is a setting of all threads: what needs another one than the sampler must wait."""
    seen, ready = [], threading.Event()

    class Slow(Linear):
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            ready.set()
            return super().__call__(images, prompts)

    with default_dtype(torch.bfloat16), BackgroundScoring(WeightedRewards.from_spec(Slow())) as scoring:
        for _ in range(3):
            scoring.add(IMAGE, ONE)
            ready.wait(timeout=0.05)
            seen.append(torch.zeros(1).dtype)
        scoring.result()
    assert seen == [torch.bfloat16] * 3


def test_images_of_inference_mode_can_be_differentiated_by_a_reward() -> None:
    def slope(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        with torch.enable_grad():
            images = images.requires_grad_()
            (gradient,) = torch.autograd.grad((images**2).sum(), images)
        return gradient.mean((1, 2, 3))

    with torch.inference_mode():
        found = score_images(slope, IMAGE * 1, ONE, "slope").values
    assert float(found) == pytest.approx(2 * float(IMAGE.mean()), rel=1e-6)


def test_the_gpu_of_the_images_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one is current is each thread's own, and 0 in a new one. There is no GPU here: this is what torch is asked for."""
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    with full_precision(torch.device("cuda", 1)):
        assert asked == [torch.device("cuda", 1)]
    with full_precision(CPU):
        assert len(asked) == 1


class Noting:
    """A mask source that notes in which state it is called, and multiplies matrices."""

    def __init__(self) -> None:
        self.states: list[tuple[Any, ...]] = []

    def __call__(self, rollout: Rollout, scores: Scores, policy: Any) -> Tensor:
        self.states.append(state()[:4])
        rows = rollout.images.mean(dim=1)
        assert (rows @ rows.transpose(1, 2)).dtype == torch.zeros(1).dtype == torch.float32
        return torch.ones_like(rows)


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:the trained weights are bfloat16")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_run_scores_in_full_precision(precision: Any) -> None:
    """Rewards, a judge and the mask source; in training by parts, in validation and test."""
    reward, judge, mask_source = Linear(), Linear(), Noting()

    def small(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return reward(images[:, :, :4, :4], prompts)

    def second(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return judge(images[:, :, :4, :4], prompts)

    module = tiny_module(reward=small, evaluate_with=[second], mask_source=mask_source, images_at_once=3, alternation=["prefix"])
    trainer = tiny_trainer(max_steps=1, precision=precision, limit_val_batches=1, limit_test_batches=1)
    trainer.fit(module, tiny_loader(), tiny_loader(PROMPTS[:2]))
    trainer.test(module, tiny_loader(PROMPTS[:2]), verbose=False)
    assert set(reward.states) == set(judge.states) == {NEUTRAL}
    assert len(reward.states) > 5
    assert mask_source.states == [NEUTRAL[:4]]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:the trained weights are bfloat16")
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("wrt", ["latent", "pixels"])
def test_saliency_has_its_gradients_in_every_precision(precision: Any, wrt: str) -> None:
    module = tiny_module(mask_source={"class_path": "saliency", "init_args": {"wrt": wrt}}, alternation=["suffix"])
    trainer = tiny_trainer(max_steps=1, precision=precision)
    trainer.fit(module, tiny_loader(), tiny_loader(PROMPTS[:2]))
    assert 0 < float(trainer.callback_metrics["mask_coverage"]) < 1


def test_a_reader_is_checked_in_full_precision() -> None:
    class Reader(BaseReward):
        def __init__(self) -> None:
            self.states: list[tuple[Any, ...]] = []

        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return images.mean((1, 2, 3))

        def read_back(self, images: Tensor, prompts: Sequence[Prompt]) -> list[Reading | None] | None:
            self.states.append(state())
            return [Reading(prompt.words[0], True) for prompt in prompts]

    with torch.autocast("cpu", torch.bfloat16):
        check_readers({"reader": (reader := Reader(), True)}, PROMPTS)
    assert reader.states
    assert set(reader.states) == {NEUTRAL}
