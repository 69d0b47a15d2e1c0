"""Where the images of a group differ, by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import PROMPTS, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from torch import Tensor

from varrl_lightning.mask_sources.disagreement import Disagreement
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt, Rollout, Scores, Stage

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def rollout(images: Tensor, branches: int, continuations: int) -> Rollout:
    prompts = [Prompt(f"p{i}") for i in range(len(images) // (branches * continuations))]
    stage = Stage(0, 1, branches=branches, continuations=continuations)
    return Rollout(stage, prompts, Schedule(((1, 1),)), tokens=[], tail_tokens=[], images=images, log_probs=[])


def test_standard_deviation_over_a_prompts_own_images() -> None:
    """Two prompts of four images each: one differs in a pixel's red, the other in another pixel of two strengths."""
    images = torch.full((8, 3, 2, 3), 0.5)
    images[:4, 0, 0, 1] = torch.tensor([0.0, 0.0, 1.0, 1.0])  # std .5 in one of three channels
    images[4:, :, 1, 2] = torch.tensor([0.2, 0.6, 0.2, 0.6])[:, None]  # std .2
    images[4:, :, 1, 0] = torch.tensor([0.45, 0.55, 0.55, 0.45])[:, None]  # std .05
    maps = Disagreement(smoothing=0, quantile=None)(rollout(images, 2, 2), Scores(torch.zeros(8)), policy=tiny_policy())
    first = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    second = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 1.0]])
    torch.testing.assert_close(maps, torch.stack([first] * 4 + [second] * 4))


def test_colours_count_by_their_mean_variance() -> None:
    images = torch.full((2, 3, 1, 2), 0.5)
    images[:, :, 0, 0] = torch.tensor([[0.4, 0.5, 0.5], [0.6, 0.5, 0.5]])  # sqrt(.01 / 3)
    images[:, :, 0, 1] = torch.tensor([[0.4, 0.4, 0.4], [0.6, 0.6, 0.6]])  # sqrt(.01)
    maps = Disagreement(smoothing=0, quantile=None)(rollout(images, 2, 1), Scores(torch.zeros(2)), policy=tiny_policy())
    torch.testing.assert_close(maps[0], torch.tensor([[3**-0.5, 1.0]]))


def test_the_quantile_keeps_the_pixels_that_differ_most() -> None:
    images = torch.zeros(2, 3, 2, 5)
    images[1] = torch.arange(10).view(2, 5) / 10
    maps = Disagreement(smoothing=0, quantile=0.7)(rollout(images, 2, 1), Scores(torch.zeros(2)), policy=tiny_policy())
    assert maps[0].tolist() == maps[1].tolist() == [[0.0] * 5, [0.0, 0.0, 1.0, 1.0, 1.0]]


def test_equal_images_say_nothing() -> None:
    images = (torch.ones(1, 3, 4, 4) * 0.3).repeat(6, 1, 1, 1)
    maps = Disagreement()(rollout(images, 3, 2), Scores(torch.zeros(6)), policy=tiny_policy())
    assert maps.shape == (6, 4, 4)
    assert not maps.any()


def test_smoothing_is_a_fraction_of_the_shorter_side() -> None:
    images = torch.zeros(2, 3, 20, 40)
    images[1, :, 10, 20] = 1.0
    maps = Disagreement(smoothing=0.1, quantile=None)(rollout(images, 2, 1), Scores(torch.zeros(2)), policy=tiny_policy())
    assert maps[0, 10, 20] == 1.0
    torch.testing.assert_close(maps[0, 10, 22], torch.tensor(0.5).exp() ** -1)  # exp(-2^2 / (2 sigma^2)) at sigma = 2


def test_a_bad_option() -> None:
    with pytest.raises(ValueError, match=r"quantile must be in \[0, 1\)"):
        Disagreement(quantile=2.0)


def test_a_tiny_run() -> None:
    """A cycle of prefix and suffix updates; part of the tokens is on."""
    module = tiny_module(tiny_policy(), mask_source="varrl_lightning.mask_sources.disagreement.Disagreement")
    before = weights(module)
    trainer = tiny_trainer(max_steps=4)
    trainer.fit(module, tiny_loader(PROMPTS))
    assert not torch.equal(weights(module), before)
    assert 0.0 < float(trainer.callback_metrics["suffix/mask_coverage"]) < 1.0
