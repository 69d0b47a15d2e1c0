"""Gradients of single scales: equal to separate backward passes, their cosines without bias, and what m follows from them.

Costs ten seconds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from tiny import PROMPTS, M, tiny_loader, tiny_module, tiny_trainer, weights
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.algorithms.gradient_cosine import Estimate
from varrl_lightning.algorithms.scale_conflict import ConflictSums, ScaleConflict, suggest_m
from varrl_lightning.callbacks import ScaleConflict as Callback
from varrl_lightning.callbacks.scale_conflict import conflict_meter
from varrl_lightning.figures.conflict import conflict_maps
from varrl_lightning.figures.tables import Curve
from varrl_lightning.gradient_agreement.conflict import ConflictMeter, over_all_scales
from varrl_lightning.grpo.objective import flat
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.module import VARGRPO

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
BATCHES = [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]]
OPTIONS: dict[str, Any] = {"blocks": 3, "kl": False, "seed": 0, "parameters": None}


def by_hand(module: VARGRPO, prompts: Any, number: int) -> dict[int, Tensor]:
    """The gradient of each scale's share of the loss: a whole backward pass for each, with the other scales' weights at zero."""
    gradients = {}
    for stage in dict.fromkeys(module.cycle):
        grpo = module.grpo
        keys = prompt_keys(0, -1 - number, prompts, module.policy.device)
        rollout, scores = grpo.sample(module.policy, prompts, stage, keys)
        credit = grpo.assign(rollout, scores).rows(rollout.branches, len(rollout.branches))
        lengths = rollout.schedule.lengths[stage.start : stage.stop]
        for t in range(stage.start, stage.stop):
            first = sum(lengths[: t - stage.start])
            kept = torch.zeros(sum(lengths))
            kept[first : first + lengths[t - stage.start]] = 1
            module.policy.zero_grad()
            ((_, new),) = grpo.log_probs(module.policy, rollout, len(rollout.branches), None)
            # At the policy that sampled, the ratio is 1 and its gradient that of the log-probability.
            (-(credit.policy_weights * kept * credit.advantages[:, None] * flat(new.log_prob)).sum()).backward()
            gradients[t] = torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                    for p in module.policy.parameters()
                    if p.requires_grad
                ]
            ).clone()
    return gradients


@pytest.mark.parametrize("alternation", [["prefix", "suffix"], ["prefix"]])
def test_cosines_are_those_of_separate_backward_passes(alternation: list[str]) -> None:
    module = tiny_module(alternation=alternation, kl_coef=0.0)
    meter = conflict_meter(module, **OPTIONS)
    for batch in BATCHES:
        meter.add(batch)
    conflict = meter.measured()
    hand = [by_hand(module, batch, number) for number, batch in enumerate(BATCHES)]
    assert meter.trained == sorted(hand[0])
    for s in meter.trained:
        assert conflict.norm(s) == pytest.approx(math.sqrt(np.mean([float(g[s] @ g[s]) for g in hand])), rel=1e-4)
        for t in meter.trained:
            cosines = [float(torch.cosine_similarity(g[s].double(), g[t].double(), dim=0)) for g in hand]
            assert float(conflict.batch_cosine[s, t]) == pytest.approx(np.mean(cosines), abs=1e-5)
            # The products of different batches, written out.
            products = [float(hand[b][s].double() @ hand[c][t].double()) for b in range(3) for c in range(3) if b != c]
            squares = [
                [float(hand[b][i].double() @ hand[c][i].double()) for b in range(3) for c in range(3) if b != c] for i in (s, t)
            ]
            if min(map(sum, squares)) > 0:
                expected = sum(products) / math.sqrt(sum(squares[0]) * sum(squares[1]))
                assert conflict.cosine([s], [t]).value == pytest.approx(expected, abs=1e-5)
            else:
                assert math.isnan(conflict.cosine([s], [t]).value)


def test_noise_hides_nothing_from_the_cosine_of_expected_gradients() -> None:
    """Three scales whose true cosines are known, in noise three times as long, which the scales of a batch share."""
    generator = torch.Generator().manual_seed(0)
    true = [torch.tensor([1.0, 0.0, *[0.0] * 38]), torch.tensor([-0.6, 0.8, *[0.0] * 38]), torch.tensor([0.0, 1.0, *[0.0] * 38])]
    sums = ConflictSums(3, blocks=20)
    for batch in range(2000):
        noise = torch.randn(40, generator=generator) * 0.5
        sums.add(batch, [g + noise for g in true])
    conflict = sums.compute()
    assert float(conflict.batch_cosine[0, 1]) > 0.6  # what a single batch says: the two agree
    for s, t, cosine in ((0, 1, -0.6), (0, 2, 0.0), (1, 2, 0.8)):
        estimate = conflict.cosine([s], [t])
        assert abs(estimate.value - cosine) < 3 * estimate.standard_error < 0.2
    both = conflict.cosine([0, 1], [2])
    assert abs(both.value - 0.8 / math.sqrt(0.8)) < 3 * both.standard_error
    assert conflict.agreement(0).value == pytest.approx(1 / (1 + 40 * 0.25), abs=0.03)


def test_batches_without_a_gradient_are_left_out() -> None:
    sums = ConflictSums(2, blocks=2)
    sums.add(0, [None, None])
    sums.add(1, [torch.tensor([math.nan]), torch.tensor([1.0])])
    sums.add(2, [torch.tensor([0.0]), torch.tensor([0.0])])
    assert sums.left_out == 3
    assert math.isnan(sums.compute().cosine([0], [1]).value)
    sums.add(3, [torch.tensor([1.0]), None])
    sums.add(4, [torch.tensor([2.0]), torch.tensor([1.0])])
    conflict = sums.compute()
    assert conflict.common()[0, 0] == 2.0  # 1 * 2, twice over two pairs
    assert math.isnan(conflict.cosine([0], [1]).value)  # one batch has no pair with another
    with pytest.raises(ValueError, match="blocks must be at least 2"):
        ConflictSums(2, blocks=1)


def splits(*values: tuple[float, float]) -> Any:
    """A conflict with these cosines and errors, of m = 2, 3, ..."""

    class Given(ScaleConflict):
        def split(self, m: int) -> Estimate:
            return Estimate(*values[m - 2])

    T = len(values) + 2
    return Given(torch.zeros(1, T, 1, T), torch.zeros(1, T, T), [1], torch.zeros(T, T))


def test_an_m_is_suggested_where_it_can_be_told() -> None:
    clear = suggest_m(splits((0.3, 0.05), (-0.2, 0.05), (0.4, 0.1)))
    assert (clear.m, clear.lowest) == (3, 3)
    unclear = suggest_m(splits((0.0, 0.1), (-0.2, 0.05), (0.4, 0.1)))
    assert (unclear.m, unclear.lowest) == (None, 3)
    unknown = suggest_m(splits((math.nan, math.nan), (-0.2, 0.05)))
    assert (unknown.m, unknown.lowest) == (None, 3)
    assert suggest_m(splits((math.nan, math.nan))).lowest is None


def test_plain_grpo_has_a_gradient_in_every_scale() -> None:
    module = tiny_module(alternation=["prefix"], num_continuations=0)
    full = over_all_scales(module.grpo, module.policy)
    meter = ConflictMeter(module.policy, full, blocks=2)
    for batch in BATCHES:
        meter.add(batch)
    T = len(module.policy.schedule())
    assert meter.trained == list(range(T))
    assert meter.bytes_held == 4 * meter.meter.size * T * 2
    conflict = meter.measured()
    assert all(conflict.norm(t) > 0 for t in range(T))
    assert not math.isnan(conflict.split(M).value) or float(conflict.common().diagonal().min()) <= 0


# --- during training --------------------------------------------------------------------------------------------------------


class Logged(L.Callback):
    """What each step has logged."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        found = {name: float(x) for name, x in trainer.callback_metrics.items() if name.startswith("conflict/")}
        self.steps.append({name: value for name, value in found.items() if math.isfinite(value)})


def run(*callbacks: L.Callback) -> VARGRPO:
    module = tiny_module(group_size=2)
    tiny_trainer(max_steps=4, callbacks=list(callbacks), max_epochs=-1).fit(module, tiny_loader())
    return module


def test_training_is_the_same_and_the_conflict_is_logged() -> None:
    logged = Logged()
    measured = run(Callback(every_n_steps=2, batches=3), logged)
    assert torch.equal(weights(measured), weights(run()))
    assert [bool(step) for step in logged.steps] == [False, True, False, True]
    T = len(measured.policy.schedule())
    assert {f"conflict/norm/scale_{t}" for t in range(1, T + 1)} <= set(logged.steps[1])
    assert logged.steps[1]["conflict/seconds"] > 0
    assert logged.steps[1]["conflict/norm/scale_2"] != logged.steps[3]["conflict/norm/scale_2"]


def test_what_cannot_be_measured_is_refused() -> None:
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(
        MisconfigurationException, match=r"ScaleConflict measures on one process .* 'varrl conflict --ckpt_path FILE'"
    ):
        Callback().setup(trainer, tiny_module(), "fit")
    with pytest.raises(ValueError, match="no trained parameter has a name like"):
        run(Callback(parameters="nothing*"))
    for wrong in ({"every_n_steps": 0}, {"batches": 2}, {"prompts": 0}, {"blocks": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            Callback(**wrong)


def test_maps_show_the_numbers_that_were_measured() -> None:
    curves = {"scale_1/scale_2": Curve([10, 20], [-0.5, 0.25]), "scale_2/scale_3": Curve([20], [1.0])}
    figure = conflict_maps(curves)
    assert isinstance(figure, Figure)
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["step 10", "step 20"]
    assert [sorted(text.get_text() for text in panel.texts) for panel in panels] == [["-0.5"] * 2, ["+0.2", "+0.2", "+1.0", "+1.0"]]
    assert conflict_maps({}) is None


# --- the command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a configuration of the tests' own policy."""
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))
    model = {
        "policy": {"class_path": "tiny.tiny_policy"},
        "reward": "tiny.LeftBright",
        "mask_source": "full",
        "m": 2,
        "group_size": 3,
    }
    config = {"model": model, "data": {"train": "words.jsonl", "batch_size": 2}, "trainer": {"accelerator": "cpu"}}
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return ["--config", "x.yaml"]


def test_the_command_measures_and_suggests(tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: list[str]) -> None:
    target = tmp_path / "conflict.json"
    assert main(["conflict", *quick, "--batches", "3", "--suggest-m", "--json", str(target)]) == 0
    printed = capsys.readouterr()
    written = json.loads(target.read_text())
    assert "batch 3 of 3" in printed.err
    assert printed.out.splitlines()[0].split()[:4] == ["scale", "tokens", "norm", "agreement"]
    assert f"suggested: m = {written['suggested_m']}" in printed.out if written["suggested_m"] else "cannot be told" in printed.out
    assert [split["m"] for split in written["splits"]] == list(range(2, len(written["scales"])))
    assert (written["measured_batches"], written["batches"]) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batches", "2"], "--batches must be at least 3"),
        (["--json", "missing/file.json"], "--json missing/file.json cannot be written"),
        (["--prompts", "1000000"], "prompts"),
        (["--parameters", "nothing*"], "nothing"),
    ],
)
def test_bad_options_are_one_message(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], quick: list[str]
) -> None:
    assert main(["conflict", *quick, *options]) == 2
    assert message in capsys.readouterr().err
