"""calibrate_every in a run: which steps measure drafts, what they log, what a resumed run still knows, and the warning."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.tiny import LeftBright, saved, tiny_loader, tiny_module, tiny_trainer
from varrl_lightning.callbacks.monitors import Monitors
from varrl_lightning.training.counters import CALIBRATED_GROUPS, RunCounters

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*no `val_dataloader`.*")
DRAFTS: dict[str, Any] = {"num_continuations": 0, "calibrate_every": 2, "alternation": ["prefix"]}
NAMES = {"draft/reward", "draft/tau", "draft/ceiling", "draft/ratio", "draft/groups"}


class Contrary(LeftBright):
    """Finds drafts, which it knows by their number (6 prompts of 8 branches), as bad as they are good."""

    def __call__(self, images: Any, prompts: Any) -> Any:
        values = super().__call__(images, prompts)
        return -values if len(images) == 48 else values


class Steps(Callback):
    """What each step has logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append({name: value for name, value in metrics.items() if not math.isnan(value)})


def test_every_second_step_measures_and_a_resumed_run_remembers(tmp_path: Path) -> None:
    module, steps = tiny_module(**DRAFTS), Steps()
    trainer = tiny_trainer(max_steps=6, callbacks=[steps], max_epochs=-1)  # two epochs
    trainer.fit(module, tiny_loader())
    assert [seen.keys() >= NAMES for seen in steps.seen] == [False, True] * 3
    assert not any(name.startswith("draft/") for name in steps.seen[2])
    assert [seen["draft/groups"] for seen in steps.seen[1::2]] == [2, 4, 6], "the groups of all calibrations so far"
    assert {"prefix/reward", "calibration/reward", "calibration/draft/tau"} <= {name for seen in steps.seen for name in seen}
    taus = module.counters.draft_taus
    assert steps.seen[5]["draft/tau"] == pytest.approx(sum(tau for tau, _ in taus) / 6)

    resumed, later = tiny_module(**DRAFTS), Steps()
    tiny_trainer(max_steps=8, callbacks=[later], max_epochs=-1).fit(
        resumed, tiny_loader(), ckpt_path=saved(module, tmp_path / "x.ckpt")
    )
    assert later.seen[-1]["draft/groups"] == 8
    assert resumed.counters.draft_taus[:6] == taus


def test_old_groups_are_forgotten_and_older_checkpoints_have_none() -> None:
    counters = RunCounters()
    counters.keep_draft_taus([[float(i), 1.0] for i in range(CALIBRATED_GROUPS + 3)])
    assert counters.draft_taus[0] == [3.0, 1.0]
    assert len(counters.draft_taus) == CALIBRATED_GROUPS
    state = RunCounters().state_dict()
    del state["draft_taus"]
    counters.load_state_dict(state)
    assert counters.draft_taus == []


def test_a_run_on_drafts_that_rank_the_wrong_way_is_warned_of() -> None:
    module = tiny_module(reward=Contrary(), group_size=8, m=3, **(DRAFTS | {"calibrate_every": 1}))
    trainer = tiny_trainer(max_steps=4, callbacks=[Monitors(patience=100)], max_epochs=-1)
    with pytest.warns(UserWarning, match="drafts rank the branches of a group worse than whole images do: tau-b -"):
        trainer.fit(module, tiny_loader(batch_size=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_continuations": 1}, "with num_continuations = 1 no draft is trained on"),
        ({"num_continuations": 0, "calibrate_every": 0}, "calibrate_every must be at least 1 prefix update, got 0"),
        ({"num_continuations": 0, "alternation": ["suffix"]}, "no prefix"),
        ({"num_continuations": 0, "stages": [{"start": 0, "stop": 2, "branches": 4, "continuations": 0}]}, "spells the cycle out"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_module(**({"calibrate_every": 2} | options))


def test_the_update_is_that_of_the_whole_images() -> None:
    """The weights after a calibration are those after the same rollout of a K = 2 prefix."""
    trained = []
    for options in (DRAFTS | {"calibrate_every": 1}, {"num_continuations": 2, "alternation": ["prefix"]}):
        module = tiny_module(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1), **options)
        tiny_trainer(max_steps=1).fit(module, tiny_loader())
        trained.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    assert torch.equal(*trained)
