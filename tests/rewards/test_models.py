"""What every reward that is a model promises, on tiny random weights of the published layouts. Costs ten seconds."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.rewards.photos import photos
from tests.rewards.tiny_models import MODELS, model_prompts
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.rewards.answers import read_answer
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.weighted import WeightedRewards

PROMPTS = model_prompts()


class Made:
    """A reward by its name, and others of the same weights."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, MODELS[name].write(folder)
        self.reward = self.another()

    def another(self, **options: Any) -> Reward:
        arguments = MODELS[self.name].arguments(self.folder)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        return build(REWARDS, {"class_path": self.name, "init_args": plain | options})

    def values(self, images: Tensor, reward: Reward | None = None, first: int = 0) -> Tensor:
        answer = (reward or self.reward)(images, PROMPTS[first : first + len(images)])
        return read_answer(answer, len(images), self.name, images.device).values.detach()

    @property
    def modules(self) -> list[nn.Module]:
        return [part for part in vars(self.reward).values() if isinstance(part, nn.Module)]


@pytest.fixture(scope="module", params=sorted(MODELS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(request.param, tmp_path_factory.mktemp(request.param))


def test_rows_do_not_depend_on_their_batch(made: Made) -> None:
    images = photos(3, 24, 24)
    whole = made.values(images, made.another(images_at_once=2))
    assert whole.isfinite().all()
    assert whole.unique().numel() == 3
    single = torch.cat([made.values(images[i : i + 1], first=i) for i in range(3)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-6)
    assert made.values(images[:0]).shape == (0,)


def test_it_has_a_gradient_to_its_own_image(made: Made) -> None:
    images = photos(2, 30, 20).requires_grad_()
    values = (made.reward.differentiable or made.reward)(images, PROMPTS[:2])
    (gradient,) = torch.autograd.grad(values[0], images)  # type: ignore[index]
    assert gradient[0].abs().sum() > 0
    assert not gradient[1].any()
    if made.reward.differentiable is not None:
        answer = made.reward(images, PROMPTS[:2])
        assert not read_answer(answer, 2, made.name, images.device).values.requires_grad


def test_autocast_changes_nothing(made: Made) -> None:
    images = photos(2, 16, 16)
    plain = made.values(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(made.values(images), plain, rtol=0, atol=0)


def test_a_module_that_holds_it_neither_saves_nor_trains_it(made: Made) -> None:
    holder = nn.Module()
    holder.reward = WeightedRewards.from_spec(made.reward)
    assert not list(holder.parameters())
    assert not holder.state_dict()
    assert made.modules
    assert not any(part.training for part in made.modules)
    assert not any(p.requires_grad for part in made.modules for p in part.parameters())


def test_half_precision_of_weights_and_images(made: Made) -> None:
    images = photos(2, 16, 16)
    half = made.values(images.bfloat16(), made.another(dtype="bfloat16"))
    assert half.dtype == torch.float32
    difference = (half - made.values(images)).abs().max()
    assert 0 < difference < MODELS[made.name].half


def test_it_travels_to_another_process(made: Made) -> None:
    images = photos(2, 16, 16)
    torch.testing.assert_close(made.values(images, pickle.loads(pickle.dumps(made.reward))), made.values(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"images_at_once": 0}, "images_at_once must be at least 1, got 0"), ({"dtype": "int8"}, "int8")],
)
def test_wrong_arguments_of_all(made: Made, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        made.another(**arguments)
