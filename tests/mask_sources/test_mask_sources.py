"""Masks from boxes, pixel by pixel."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import PROMPTS, LeftBright, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights

from varrl_lightning.errors import MaskSourceError
from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.mask_sources.boxes import Boxes
from varrl_lightning.mask_sources.full import Full
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Box, Prompt, Rollout, Scores, Stage

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

HEIGHT, WIDTH = 7, 9


def rollout(n: int) -> Rollout:
    return Rollout(
        stage=Stage(0, 1, branches=2),
        prompts=[Prompt(text="x")],
        schedule=Schedule(((1, 1),)),
        tokens=[],
        tail_tokens=[],
        images=torch.zeros(n, 3, HEIGHT, WIDTH),
        log_probs=[],
    )


def brute_force(boxes: list[Box], padding: int) -> list[list[float]]:
    """A pixel is the square [x, x+1) x [y, y+1); it is on when a padded box reaches into it."""

    def touched(box: Box, x: int, y: int) -> bool:
        across = x + 1 > int(box.x0 // 1) - padding and x < -int(-box.x1 // 1) + padding
        down = y + 1 > int(box.y0 // 1) - padding and y < -int(-box.y1 // 1) + padding
        return across and down

    return [[float(any(touched(b, x, y) for b in boxes)) for x in range(WIDTH)] for y in range(HEIGHT)]


@pytest.mark.parametrize("padding", [0, 2])
def test_boxes_against_every_pixel(padding: int) -> None:
    rng = random.Random(0)
    regions = []
    for count in [0, 1, 2, 3] * 5:
        corners = [(rng.uniform(-3, 8), rng.uniform(-3, 6)) for _ in range(count)]
        regions.append([Box(x, y, x + rng.uniform(0.1, 6), y + rng.uniform(0.1, 5)) for x, y in corners])
    mask = Boxes(padding)(rollout(20), Scores(torch.zeros(20), regions=regions), policy=tiny_policy())
    assert mask is not None
    assert mask.tolist() == [brute_force(boxes, padding) for boxes in regions]
    assert 0 < mask.mean() < 1


def test_a_reward_without_regions_gives_no_mask() -> None:
    assert Boxes()(rollout(2), Scores(torch.zeros(2)), policy=tiny_policy()) is None


def test_full_is_all_ones() -> None:
    mask = Full()(rollout(2), Scores(torch.zeros(2)), policy=tiny_policy())
    assert mask.shape == (2, HEIGHT, WIDTH)
    assert (mask == 1).all()


def test_both_are_mask_sources() -> None:
    assert isinstance(Boxes(), MaskSource)
    assert isinstance(Full(), MaskSource)


def test_a_box_cannot_shrink() -> None:
    with pytest.raises(ValueError, match="padding must be 0 or more pixels, got -1"):
        Boxes(padding=-1)


# --- boxes of a named reward ------------------------------------------------------------------------------------------------


class Corner:
    """Scores brightness and finds one box, of a size of its own."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        return Scores(images.mean((1, 2, 3)), regions=[[Box(0, 0, self.size, self.size)]] * len(images))


def total(**rewards: Any) -> Scores:
    both = WeightedRewards.from_spec({name: {"reward": reward} for name, reward in rewards.items()})
    return both(torch.zeros(2, 3, HEIGHT, WIDTH), [Prompt("x")] * 2)


@pytest.mark.parametrize(("from_reward", "side"), [(None, 2), ("small", 2), ("large", 4)])
def test_the_boxes_are_those_of_the_named_reward(from_reward: str | None, side: int) -> None:
    scores = total(bright=LeftBright(), small=Corner(2), large=Corner(4))
    mask = Boxes(from_reward=from_reward)(rollout(2), scores, policy=tiny_policy())
    assert mask is not None
    assert mask.sum(dim=(1, 2)).tolist() == [side * side] * 2
    assert (mask[:, :side, :side] == 1).all()


def test_a_reward_without_regions_or_of_another_name() -> None:
    scores = total(bright=LeftBright(), small=Corner(2))
    with pytest.raises(ValueError, match="boxes: the reward 'bright' finds no regions; name one that does"):
        Boxes(from_reward="bright")(rollout(2), scores, policy=tiny_policy())
    unknown = r"boxes: from_reward names no reward of the run: 'smal'. Did you mean 'small'\? There are: bright, small."
    with pytest.raises(ValueError, match=unknown):
        Boxes(from_reward="smal")(rollout(2), scores, policy=tiny_policy())
    with pytest.raises(ValueError, match=unknown):
        Boxes(from_reward="smal").use_rewards({"bright": build(REWARDS, LeftBright()), "small": build(REWARDS, Corner(2))})
    with pytest.raises(ValueError, match=r"'ocr'\. There are: LeftBright"):
        tiny_module(tiny_policy(), mask_source=Boxes(from_reward="ocr"))


def test_a_tiny_run_with_the_boxes_of_the_second_reward() -> None:
    rewards = {"small": {"reward": Corner(1), "weight": 0.5}, "large": {"reward": Corner(12)}}
    module = tiny_module(tiny_policy(), reward=rewards, mask_source=Boxes(from_reward="large"))
    before = weights(module)
    tiny_trainer(max_steps=4).fit(module, tiny_loader(PROMPTS))
    assert not torch.equal(weights(module), before)


def broken(rollout: Rollout, scores: Scores, policy: Any) -> Any:
    return rollout.no_such_thing  # type: ignore[attr-defined]


def test_a_mask_source_that_raises_is_named_with_the_line_of_its_code() -> None:
    with pytest.raises(MaskSourceError) as caught:
        tiny_trainer(max_steps=1).fit(tiny_module(mask_source=broken), tiny_loader())
    said = str(caught.value)
    assert said.startswith("the mask source 'function' raised AttributeError: 'Rollout' object has no attribute 'no_such_thing'")
    assert said.endswith(f'(File "{__file__}", line {broken.__code__.co_firstlineno + 1}, in broken)')
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda images: images[:1, 0],
            r"a tensor of shape \(1, 16, 16\); expected a tensor of shape \(16, 16, 16\), one map per image",
        ),
        (lambda images: images, r"a tensor of shape \(16, 3, 16, 16\); expected"),
        (lambda images: images[:, 0].tolist(), "a list; expected a tensor"),
    ],
)
def test_a_mask_of_another_shape_is_refused(answer: Any, message: str) -> None:
    module = tiny_module(mask_source=lambda rollout, scores, policy: answer(rollout.images))
    with pytest.raises(MaskSourceError, match=f"the mask source 'function' returned {message}"):
        tiny_trainer(max_steps=1).fit(module, tiny_loader())
