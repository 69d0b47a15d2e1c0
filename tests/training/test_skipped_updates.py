"""Rollouts without anything to learn from: nothing moves, everything counts, and only several without any score stop a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import PROMPTS, LeftBright, tiny_loader, tiny_module, tiny_trainer, weights
from torch import Tensor

from varrl_lightning.callbacks import Checkpoints, SafeStop
from varrl_lightning.data import TrainingBatches
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.module import VARGRPO
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.types import Prompt

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*", "ignore:You defined a `validation_step`", "ignore:the reward .* gave no score"
)

UNJUDGED = r"no reward \(Scripted\) gave a score to any image of rollout \d\. Such updates are skipped"


class Scripted(LeftBright):
    """What it does in each rollout: `vivid` scores, `flat` scores all images alike, `silent` gives no score."""

    def __init__(self, script: Sequence[str]) -> None:
        self.script, self.module = script, None

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        kind = self.script[self.module.rollouts_done] if self.module is not None else "vivid"  # type: ignore[unreachable]
        if kind == "vivid":
            return super().__call__(images, prompts)
        return torch.full((len(images),), 91.31956 if kind == "flat" else torch.nan)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.5)


def halving(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)


def scripted(script: Sequence[str], **options: Any) -> VARGRPO:
    reward = Scripted(script)
    module = tiny_module(reward=reward, **({"optimizer": adamw, "alternation": ["prefix"]} | options))
    reward.module = module  # type: ignore[assignment]
    return module


def fitted(script: Sequence[str], path: Path | None = None, callbacks: Any = None, **options: Any) -> VARGRPO:
    module = scripted(script, **options)
    steps = len(script) * options.get("updates_per_rollout", 1)
    trainer = tiny_trainer(max_steps=steps, callbacks=callbacks, enable_checkpointing=callbacks is not None)
    trainer.fit(module, TrainingBatches(PROMPTS, 2, processed=lambda: module.rollouts_done), ckpt_path=path)
    assert module.rollouts_done == len(script)
    assert module.updates_done == trainer.global_step == steps
    return module


def moments(module: VARGRPO) -> list[Tensor]:
    state = module.trainer.optimizers[0].state
    return [x for p in module.policy.parameters() if p in state for x in state[p].values()]


@pytest.mark.parametrize("kind", ["flat", "silent"])
def test_neither_momentum_nor_decay_moves_the_weights(kind: str) -> None:
    options: dict[str, Any] = {"ema_decay": 0.5, "updates_per_rollout": 2, "lr_scheduler": halving}
    before = fitted(["vivid"], **options)
    if kind == "silent":
        with pytest.warns(UserWarning, match=UNJUDGED) as warned:
            after = fitted(["vivid", kind, kind], **options)
        assert sum("gave a score to any image" in str(w.message) for w in warned) == 1
    else:
        after = fitted(["vivid", kind, kind], **options)
    assert torch.equal(weights(after), weights(before))
    assert len(moments(before)) > 10
    for one, other in zip(moments(after), moments(before), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(after.average.parameters(), before.average.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(one, other)
    assert after.counters == RunCounters(3, 6, 0, 0, 4, *((2, 2) if kind == "silent" else (0, 0)))
    assert after.trainer.optimizers[0].param_groups[0]["lr"] == 1e-2 / 8  # schedules go on


def test_a_kl_acts_on_groups_without_variance_but_not_where_nothing_is_judged() -> None:
    options: dict[str, Any] = {"kl_coef": 1.0}
    before = weights(fitted(["vivid"], **options))
    assert not torch.equal(weights(fitted(["vivid", "flat"], **options)), before)
    with pytest.warns(UserWarning, match=UNJUDGED):
        assert torch.equal(weights(fitted(["vivid", "silent"], **options)), before)
    # The KL to the rollout's own policy has no gradient where nothing else has one.
    assert torch.equal(weights(fitted(["vivid", "flat"], kl={"old_coef": 1.0})), weights(fitted(["vivid"], kl={"old_coef": 1.0})))


def test_the_first_rollout_may_be_idle(caplog: pytest.LogCaptureFixture) -> None:
    """A schedule is stepped before the optimizer has made a step."""
    caplog.set_level(logging.INFO, logger="lightning.pytorch")
    start = weights(tiny_module())
    module = fitted(["flat", "flat"], lr_scheduler=halving)
    assert torch.equal(weights(module), start)
    said = [record.message for record in caplog.records if "says nothing" in record.message]
    assert said == [
        "rollout 0 says nothing: in each group all returns are equal, or the mask leaves no token; and there is no KL. "
        "Such updates are skipped and counted as skipped_steps; this is said once"
    ]


def test_a_skipped_step_is_logged() -> None:
    module = fitted(["flat"])
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert metrics["frac_reward_zero_std"] == 1
    assert (metrics["skipped_steps"], metrics["unjudged_rollouts"], metrics["bad_steps"]) == (1, 0, 0)
    assert (metrics["loss"], metrics["grad_norm"], metrics["num_tokens"], metrics["tokens_per_second"]) == (0, 0, 0, 0)
    assert metrics["lr"] == pytest.approx(1e-2)
    assert metrics["reward"] == pytest.approx(91.31956)
    with pytest.warns(UserWarning, match=UNJUDGED):
        module = fitted(["silent"])
    metrics = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert (metrics["frac_reward_zero_std"], metrics["frac_invalid"], metrics["skipped_steps"]) == (1, 1, 1)
    assert metrics["unjudged_rollouts"] == 1
    assert {"reward", "loss"}.isdisjoint(metrics)
    assert not any(value != value for value in metrics.values())


def test_batches_that_a_reward_does_not_apply_to_are_borne() -> None:
    """Text, scene, text, in batches of one prompt."""

    class OfText(LeftBright):
        def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
            off = torch.tensor([prompt.category != "text" for prompt in prompts])
            return super().__call__(images, prompts).masked_fill(off, torch.nan)

    prompts = [Prompt(p.text, category=c) for p, c in zip(PROMPTS, ("text", "scene", "text"), strict=False)]
    module = tiny_module(reward=OfText())
    with pytest.warns(UserWarning, match=r"no reward \(OfText\) gave a score to any image of rollout 1"):
        tiny_trainer(max_steps=3).fit(module, tiny_loader(prompts, batch_size=1))
    assert module.counters == RunCounters(3, 3, 0, 0, 1, 1, 0)


def test_only_several_in_a_row_stop_a_run(tmp_path: Path) -> None:
    guards = {"guards": {"max_bad_steps": 3}}
    with pytest.warns(UserWarning, match=UNJUDGED):
        fitted(["silent", "silent", "vivid", "silent", "silent"], **guards)
    module = scripted(["vivid", "silent", "silent", "silent", "vivid"], **guards)
    said = r"no reward \(Scripted\) gave a score to any image of 3 rollouts in a row, up to rollout 4"
    trainer = tiny_trainer(
        max_steps=5, callbacks=[SafeStop(), Checkpoints()], default_root_dir=str(tmp_path), enable_checkpointing=True
    )
    with pytest.warns(UserWarning, match=UNJUDGED), pytest.raises(RunStoppedError, match=said):
        trainer.fit(module, TrainingBatches(PROMPTS, 2, processed=lambda: module.rollouts_done))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert RunCounters(**{name: saved["varrl"][name] for name in vars(RunCounters())}) == RunCounters(3, 3, 0, 0, 2, 2, 2)
    assert saved["global_step"] == 3


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", f"ignore:{UNJUDGED}")
def test_a_run_that_stops_goes_on_exactly(tmp_path: Path) -> None:
    """Saved before, between and after rollouts that were skipped."""
    script = ["flat", "vivid", "silent", "flat", "vivid"]
    options: dict[str, Any] = {"lr_scheduler": halving, "ema_decay": 0.9, "alternation": ["prefix", "suffix"]}
    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole = fitted(script, callbacks=[saving], **options)
    assert len(list(tmp_path.iterdir())) == 5
    for step in (1, 3, 4):
        resumed = fitted(script, tmp_path / f"step={step}.ckpt", **options)
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.counters == whole.counters
        for one, other in zip(resumed.average.parameters(), whole.average.parameters(), strict=True):  # type: ignore[union-attr]
            assert torch.equal(one, other)


def test_counters_of_an_older_version() -> None:
    counters = RunCounters(1, 1, 1, 1, 1, 1, 1)
    counters.load_state_dict({"rollouts_done": 4, "updates_done": 8, "bad_steps": 2, "bad_steps_in_a_row": 1})
    assert counters == RunCounters(4, 8, 2, 1, 0, 0, 0)
    with pytest.raises(KeyError, match="updates_done"):
        counters.load_state_dict({"rollouts_done": 4})
