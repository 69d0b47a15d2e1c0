"""The gradient of a reward as a mask: by hand, by finite differences, through a real decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROMPTS, LeftBright, M, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from torch import Tensor

from tests.families import load_var
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.mask_sources.saliency import Saliency, SaliencyError, last_latent
from varrl_lightning.registry import REWARDS, build
from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Prompt, Rollout, Sampling, Scores, Stage

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

PATH = "varrl_lightning.mask_sources.saliency.Saliency"


def halves(length: int) -> tuple[slice, slice]:
    return slice(0, length // 2), slice(length // 2, length)


def rollout(images: Tensor) -> Rollout:
    stage = Stage(0, 1, branches=2, continuations=len(images) // 2)
    tokens = [torch.zeros(2, 1, dtype=torch.int64)]
    return Rollout(stage, [Prompt("x")], Schedule(((1, 1),)), tokens, tail_tokens=[], images=images, log_probs=[])


def maps_of(source: Saliency, drawn: Rollout, policy: Any = None) -> Tensor:
    return source(drawn, Scores(torch.zeros(len(drawn.images))), policy or tiny_policy())


def weighed(weights: Tensor) -> Any:
    """R = sum w x^2, so that dR/dx = 2 w x."""
    return lambda images, prompts: (weights * images**2).sum(dim=(1, 2, 3))


def drawn(policy: Any, continuations: int = 2, prompts: Sequence[Prompt] = PROMPTS[:2]) -> Rollout:
    keys = prompt_keys(0, 0, prompts, torch.device("cpu"))
    return sample_tree(policy, prompts, Stage(0, M, 2, continuations), Sampling(top_k=8), keys)


# --- pixels -----------------------------------------------------------------------------------------------------------------


def test_norm_of_the_gradient_over_colours_by_hand() -> None:
    images = torch.full((2, 3, 1, 3), 0.5)
    images[1] = 0.25
    w = torch.zeros(3, 1, 3)
    w[:, 0, 0] = torch.tensor([3.0, 4.0, 0.0])  # gradient 2 * .5 * (3, 4, 0), norm 5
    w[:, 0, 1] = torch.tensor([0.0, -1.0, 0.0])  # norm 1: the sign does not matter
    maps = maps_of(Saliency(reward=weighed(w), wrt="pixels", smoothing=0, quantile=None), rollout(images))
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0.2, 0.0]]] * 2))


def test_each_image_is_scaled_by_itself_and_cut_at_its_own_quantile() -> None:
    images = torch.linspace(0.1, 1.0, 10).view(1, 1, 2, 5) * torch.tensor([1.0, 0.01, 1e-6, 0.0]).view(4, 1, 1, 1)
    source = Saliency(reward=weighed(torch.ones(3, 2, 5)), wrt="pixels", smoothing=0, quantile=0.8)
    maps = maps_of(source, rollout(images.expand(4, 3, 2, 5)))
    top_two = [[0.0] * 5, [0.0, 0.0, 0.0, 1.0, 1.0]]
    assert maps.tolist() == [top_two] * 3 + [[[0.0] * 5] * 2]  # the black image has no gradient


@pytest.mark.parametrize("images_at_once", [1, 3, 16])
def test_parts_give_the_same(images_at_once: int) -> None:
    torch.manual_seed(0)
    images, w = torch.rand(8, 3, 4, 5), torch.randn(3, 4, 5)
    whole = maps_of(Saliency(reward=weighed(w), wrt="pixels", quantile=None, images_at_once=8), rollout(images))
    parts = maps_of(Saliency(reward=weighed(w), wrt="pixels", quantile=None, images_at_once=images_at_once), rollout(images))
    torch.testing.assert_close(parts, whole)


def test_each_image_goes_with_its_own_prompt() -> None:
    class ByPrompt:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            assert [p.text for p in prompts] == ["left"] * 2 + ["right"] * 2
            column = torch.tensor([0 if p.text == "left" else 2 for p in prompts])
            return images.mean(dim=(1, 2)).gather(1, column[:, None])[:, 0]

    stage = Stage(0, 1, branches=2)
    both = Rollout(stage, [Prompt("left"), Prompt("right")], Schedule(((1, 1),)), [], [], torch.rand(4, 3, 1, 3), [])
    maps = maps_of(Saliency(reward=ByPrompt(), wrt="pixels", smoothing=0, quantile=None), both)
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0, 0]], [[1.0, 0, 0]], [[0, 0, 1.0]], [[0, 0, 1.0]]]))


def test_scores_and_a_method_named_differentiable_are_understood() -> None:
    class Both:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
            raise AssertionError("called in place of `differentiable`")

        def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return images[:, 0, 0, 0]

    images = torch.rand(2, 3, 1, 2)
    by_method = maps_of(Saliency(reward=Both(), wrt="pixels", smoothing=0), rollout(images))
    by_scores = maps_of(Saliency(reward=lambda i, p: Scores(i[:, 0, 0, 0]), wrt="pixels", smoothing=0), rollout(images))
    assert by_method.tolist() == by_scores.tolist() == [[[1.0, 0.0]]] * 2


def test_neither_the_callers_no_grad_nor_the_rewards_own_weights_are_touched() -> None:
    model = torch.nn.Conv2d(3, 1, 1)
    source = Saliency(reward=lambda images, prompts: model(images).sum(dim=(1, 2, 3)), wrt="pixels")
    images = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        maps = maps_of(source, rollout(images))
    assert maps.any()
    assert not maps.requires_grad
    assert model.weight.grad is None
    assert not images.requires_grad


# --- through the decoder ----------------------------------------------------------------------------------------------------


def test_the_last_latent_is_that_of_the_images() -> None:
    policy = tiny_policy()
    for stage in (Stage(0, M, 2, 3), Stage(M, len(policy.schedule()), 4)):
        keys = prompt_keys(0, 0, PROMPTS[:2], torch.device("cpu"))
        found = sample_tree(policy, PROMPTS[:2], stage, Sampling(top_k=8), keys)
        for rows in (slice(0, 100), slice(2, 5)):
            decoded = policy.decode_latent(last_latent(found, policy, rows))
            torch.testing.assert_close(decoded, found.images[rows], rtol=0, atol=1e-3)  # of weights that amplify rounding


def test_latent_gradient_against_finite_differences() -> None:
    """Cells all over one image's latent moved up and down, channel by channel, decoded and scored."""
    policy = tiny_policy()
    # Differences see the kink where the decoder clamps: keep away from it.
    policy.tokenizer.mean.fill_(0.5)
    for parameter in policy.tokenizer.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(1 / 6)
    found = drawn(policy)
    assert found.images.min() > 0.05
    assert found.images.max() < 0.95
    w = torch.randn(3, *found.images.shape[-2:], generator=torch.Generator().manual_seed(1))
    reward = weighed(w)
    maps = maps_of(Saliency(reward=reward, smoothing=0, quantile=None), found, policy)
    assert maps.shape == (8, *found.images.shape[-2:])
    latent, step = last_latent(found, policy, slice(5, 6)), 1e-2
    # Every 7th cell, which is all columns, and the one that the map is scaled by.
    cells = [int(maps[5].argmax()), *range(0, maps[5].numel(), 7)]
    channels = latent.shape[1]
    moves = torch.zeros(len(cells), channels, channels, maps[5].numel())
    for number, cell in enumerate(cells):
        moves[number, :, :, cell] = step * torch.eye(channels)
    moves = moves.view(-1, *latent.shape[1:])
    with torch.no_grad():
        up, down = (reward(policy.decode_latent(latent + sign * moves).double(), []) for sign in (1, -1))
    differences = ((up - down) / (2 * step)).view(-1, channels).norm(dim=1)
    torch.testing.assert_close(maps[5].flatten()[cells], (differences / differences[0]).float(), rtol=1e-2, atol=1e-3)


def test_a_coarse_latent_is_enlarged_to_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cells, each drawn as 4 pixels: the left one counts twice as much."""

    def initial_latent(rows: int, schedule: Schedule) -> Tensor:
        return torch.full((rows, 2, 1, 2), 0.25)

    def accumulate(latent: Tensor, tokens: Tensor, scale: int, schedule: Schedule) -> Tensor:
        return latent + tokens[..., None, None] * 0.25

    def decode_latent(latent: Tensor) -> Tensor:
        # (R, 2, 1, 2) -> (R, 3, 2, 8): red and green are the channels, blue is nothing.
        wide = latent.repeat_interleave(2, dim=2).repeat_interleave(4, dim=3)
        return torch.cat((wide, torch.zeros_like(wide[:, :1])), dim=1)

    two_cells = tiny_policy()
    for method in (initial_latent, accumulate, decode_latent):
        monkeypatch.setattr(two_cells, method.__name__, method)
    w = torch.zeros(3, 2, 8)
    w[0, 0, 0], w[1, 1, 7] = 2.0, 1.0
    source = Saliency(reward=lambda i, p: (w * i).sum((1, 2, 3)), smoothing=0, quantile=None)
    maps = maps_of(source, rollout(torch.zeros(2, 3, 2, 8)), two_cells)
    # Bilinear from centres at pixels 1.5 and 5.5: 1, 1, then in quarters of the way from 1 to 1/2.
    expected = torch.tensor([1, 1, 1 - 0.5 / 8, 1 - 1.5 / 8, 1 - 2.5 / 8, 1 - 3.5 / 8, 0.5, 0.5])
    torch.testing.assert_close(maps, expected.expand(2, 2, 8))


def test_through_the_decoder_of_var(weights_folder: Path) -> None:
    """A latent of few cells, each drawn as a block of pixels by convolutions: what a quarter hangs on is mostly there."""
    policy = load_var(weights_folder)
    found = drawn(policy, prompts=[Prompt("hen", label=7)])
    height, width = found.images.shape[-2:]
    latent = last_latent(found, policy, slice(1, 3))
    assert latent.shape[-2:] == found.schedule.grids[-1] != (height, width)
    torch.testing.assert_close(policy.decode_latent(latent), found.images[1:3], rtol=0, atol=1e-5)
    quarters = [(..., rows, columns) for rows in halves(height) for columns in halves(width)]
    for number, quarter in enumerate(quarters):
        source = Saliency(reward=lambda i, p, seen=quarter: i[seen].sum((1, 2, 3)), smoothing=0, quantile=None)
        maps = maps_of(source, found, policy)
        assert maps.shape == (4, height, width)
        assert max(range(4), key=lambda q: float(maps[quarters[q]].mean())) == number


# --- what cannot be differentiated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (torch.no_grad()(lambda i, p: i.mean((1, 2, 3))), "Its values are cut off from the images: by no_grad"),
        (lambda i, p: torch.tensor(i.mean((1, 2, 3)).tolist()), "Its values are cut off"),
        (lambda i, p: torch.from_numpy(i.numpy()).mean((1, 2, 3)), "it raised RuntimeError.*Can't call numpy"),
        (lambda i, p: [0.0] * len(i), "It answered with a list; expected a tensor of shape"),
        (lambda i, p: i.mean(), r"It answered with shape \(\); expected a tensor of shape \(2,\)"),
        (lambda i, p: torch.ones(len(i), requires_grad=True) * 2, "but not that of the images"),
    ],
)
def test_a_reward_without_a_gradient_is_named(reward: Any, message: str) -> None:
    with pytest.raises(
        SaliencyError, match=f"the reward function gives saliency no gradient.*boxes, disagreement, full.*{message}"
    ):
        maps_of(Saliency(reward=reward, wrt="pixels"), rollout(torch.rand(2, 3, 2, 2)))


def test_an_image_whose_gradient_is_not_finite_has_no_mask() -> None:
    images = torch.full((2, 3, 1, 2), 0.25)
    images[0] = 0.0  # the slope of a root at zero
    source = Saliency(reward=lambda i, p: i.sum((1, 2, 3)).sqrt(), wrt="pixels", quantile=None)
    with pytest.warns(UserWarning, match="the gradient of some images is not finite"):
        maps = maps_of(source, rollout(images))
    assert maps.tolist() == [[[0.0, 0.0]], [[1.0, 1.0]]]


def test_an_image_without_a_score_has_no_mask() -> None:
    def reward(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.where(torch.tensor([True, False]), images.sum((1, 2, 3)), torch.nan)

    maps = maps_of(Saliency(reward=reward, wrt="pixels", quantile=None), rollout(torch.rand(2, 3, 1, 2)))
    assert maps.tolist() == [[[1.0, 1.0]], [[0.0, 0.0]]]


# --- which reward -----------------------------------------------------------------------------------------------------------


class Smooth(LeftBright):
    def differentiable(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self(images, prompts)


def test_which_reward_of_the_run() -> None:
    only, smooth = build(REWARDS, LeftBright()), build(REWARDS, Smooth())
    for rewards, from_reward, expected in (
        ({"a": only}, None, only),
        ({"a": only, "b": smooth}, None, smooth),
        ({"a": only, "b": smooth}, "a", only),
    ):
        source = Saliency(from_reward=from_reward)
        source.use_rewards(rewards)
        assert source.reward is expected
    other = Saliency(reward=smooth)
    other.use_rewards({"a": only})
    assert other.reward is smooth


@pytest.mark.parametrize(
    ("rewards", "from_reward", "message"),
    [
        (
            {"bright": Smooth(), "ocr": LeftBright()},
            "brigth",
            r"no reward named 'brigth'. Did you mean 'bright'\? The run has: bright, ocr.",
        ),
        (
            {"a": LeftBright(), "b": LeftBright()},
            None,
            "of a, b there are 0 with a method `differentiable`. Say which by from_reward",
        ),
        ({"a": Smooth(), "b": Smooth()}, None, "there are 2 with a method"),
    ],
)
def test_a_reward_that_cannot_be_told(rewards: dict[str, Any], from_reward: str | None, message: str) -> None:
    with pytest.raises(SaliencyError, match=message):
        Saliency(from_reward=from_reward).use_rewards({name: build(REWARDS, reward) for name, reward in rewards.items()})


def test_without_any_reward() -> None:
    with pytest.raises(SaliencyError, match="saliency has no reward to differentiate"):
        maps_of(Saliency(), rollout(torch.rand(2, 3, 2, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrt": "tokens"}, "wrt must be latent or pixels, got 'tokens'"),
        ({"images_at_once": 0}, "images_at_once must be at least 1, got 0"),
        ({"quantile": 1.0}, "quantile must be in"),
        ({"from_reward": "a", "reward": LeftBright()}, r"give from_reward .* or reward .*, not both"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Saliency(**options)


def test_it_is_a_mask_source() -> None:
    assert isinstance(Saliency(), MaskSource)


# --- a run ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrt", ["latent", "pixels"])
def test_a_tiny_run_on_its_own_reward(wrt: str) -> None:
    """The reward sees the two columns on the left: a mask by pixels is on there, and off everywhere else."""

    def edge(images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return images[..., :2].mean((1, 2, 3))

    policy = tiny_policy()
    options = {"wrt": wrt, "quantile": 0.5, "smoothing": 0}
    module = tiny_module(policy, reward=edge, mask_source={"class_path": PATH, "init_args": options})
    before = weights(module)
    tiny_trainer(max_steps=4).fit(module, tiny_loader(PROMPTS))
    assert not torch.equal(weights(module), before)
    found = drawn(policy)
    mask = module.grpo.mask_source(found, Scores(torch.zeros(len(found.images))), policy)
    if wrt == "pixels":
        assert (mask[..., :2] == 1).all()
        assert not mask[..., 2:].any()
    else:  # the decoder clamps, and its convolutions reach further than a pixel
        assert mask[..., :8].mean() > 3 * mask[..., 12:].mean()


def test_a_reward_without_a_gradient_stops_a_run_before_its_first_update() -> None:
    class Blind(LeftBright):
        @torch.no_grad()
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            return super().__call__(images, prompts)

    module = tiny_module(tiny_policy(), reward=Blind(), mask_source=PATH)
    with pytest.raises(SaliencyError, match="the reward Blind gives saliency no gradient"):
        tiny_trainer(max_steps=4).fit(module, tiny_loader(PROMPTS))
    assert module.updates_done == 0


def test_an_unknown_reward_fails_when_the_module_is_built() -> None:
    with pytest.raises(SaliencyError, match=r"no reward named 'clip'\. The run has: LeftBright"):
        tiny_module(tiny_policy(), mask_source=Saliency(from_reward="clip"))


class Compares(LeftBright):
    """A reward whose values are about all images of a call."""

    whole_groups = True


@pytest.mark.parametrize("arguments", [{}, {"from_reward": "Compares"}, {"reward": Compares()}])
def test_a_reward_that_compares_images_has_no_saliency(arguments: dict[str, Any]) -> None:
    with pytest.raises(SaliencyError, match="the reward Compares compares the images of a group"):
        tiny_module(reward=Compares(), mask_source=Saliency(**arguments))
