"""A training step where rewards fail or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.tiny import LeftBright, change_losses, tiny_loader, tiny_module, tiny_trainer, weights
from varrl_lightning.errors import RewardError, RunStoppedError
from varrl_lightning.types import Prompt, Scores

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:You defined a `validation_step`")


class Sometimes:
    """A reward that has no score for the images given, counted over the whole run."""

    def __init__(self, bad: Sequence[int]) -> None:
        self.bad = bad

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> list[float | None]:
        scores = LeftBright()(images, prompts).tolist()
        return [None if i in self.bad else s for i, s in enumerate(scores)]


@pytest.mark.filterwarnings("ignore:the reward .* gave no score")
def test_images_without_a_score_leave_their_branch_to_the_others() -> None:
    """Image 0 is one of branch 0's two continuations; images 2 and 3 are all of branch 1's."""
    module = tiny_module(reward=Sometimes([0, 2, 3]))
    kept = {}
    original = module.updater.update

    def spy(trained, parallel, rollout, credit, *rest, **sizes):
        kept["credit"] = credit
        return original(trained, parallel, rollout, credit, *rest, **sizes)

    module.updater.update = spy  # type: ignore[method-assign]
    tiny_trainer(max_steps=1).fit(module, tiny_loader())
    credit = kept["credit"]
    assert credit.active.tolist() == [True, False] + [True] * 6
    assert credit.policy_weights[1].abs().sum() == 0
    torch.testing.assert_close(credit.returns[0, 0], credit.rewards[0, 0, 1])


def test_all_images_failing_stops_the_run() -> None:
    class Never:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
            return Scores(torch.full((len(images),), torch.nan))

    module = tiny_module(reward=Never())
    with (
        pytest.warns(UserWarning, match="gave (no|a) score"),
        pytest.raises(RunStoppedError, match=r"no reward \(Never\) gave a score to any image of 5 rollouts in a row"),
    ):
        tiny_trainer(max_steps=8).fit(module, tiny_loader())
    assert module.rollouts_done == 5


def test_a_reward_that_raises_is_named() -> None:
    class Broken:
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            raise KeyError("font")

    with pytest.raises(RewardError, match="'Broken' raised KeyError: 'font'"):
        tiny_trainer(max_steps=2).fit(tiny_module(reward=Broken()), tiny_loader())


def poisoned(steps: Sequence[int]):
    """A module whose gradient is not finite in the given updates."""
    module = tiny_module(guards={"max_bad_steps": 3})
    change_losses(module, lambda loss: loss * torch.nan if module.updates_done in steps else loss)
    return module


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    module = poisoned([0])
    start = weights(module)
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(module, tiny_loader())
    assert torch.equal(weights(module), start)
    assert (module.counters.bad_steps, module.counters.bad_steps_in_a_row, module.rollouts_done, trainer.global_step) == (
        1,
        1,
        1,
        1,
    )
    module = poisoned([1, 2])
    tiny_trainer(max_steps=5).fit(module, tiny_loader())
    assert torch.isfinite(weights(module)).all()
    assert (module.counters.bad_steps, module.counters.bad_steps_in_a_row) == (2, 0)


def test_several_such_steps_in_a_row_stop_the_run() -> None:
    module = poisoned(range(1, 9))
    with pytest.raises(RunStoppedError, match="not finite in 3 steps in a row, up to rollout 4"):
        tiny_trainer(max_steps=8).fit(module, tiny_loader())
    assert torch.isfinite(weights(module)).all()
