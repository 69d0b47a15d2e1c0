"""`varrl variance` and the doctor's check of K, on a tiny model: what they print and write, and what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import PROMPTS, LeftBright, tiny_module, tiny_policy
from torch import Tensor

from varrl_lightning.__main__ import main
from varrl_lightning.algorithms.stages import prefix_stage, suffix_stage
from varrl_lightning.algorithms.variance_components import BranchCosts, VarianceComponents
from varrl_lightning.commands.doctor_continuations import continuations_pay, stages_with_continuations, verdict
from varrl_lightning.commands.variance import chosen, middle_steps
from varrl_lightning.commands.variance_rows import Measurement, Row, group_std, table
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.types import Prompt


class Level(LeftBright):
    """The mean brightness in steps of ten, which the colour of the first scales decides more than the rest."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return 10 * images.mean((1, 2, 3))


class Alike(LeftBright):
    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return torch.full((len(images),), 0.3)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.jsonl").write_text("".join(json.dumps({"text": p.text}) + "\n" for p in PROMPTS))


def variance(*arguments: str, **model: Any) -> int:
    policy = {"class_path": "tiny.tiny_policy"}
    own = {"policy": policy, "reward": "tiny.LeftBright", "mask_source": "full", "m": 2, "group_size": 3}
    config = {"model": own | model, "data": {"train": "words.jsonl", "batch_size": 2}, "trainer": {"accelerator": "cpu"}}
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return main(["variance", "--config", "x.yaml", *arguments])


def test_a_row_for_each_m_printed_and_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert variance("--prompts=3", "--json=found.json", "--continuations=2") == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:4] == ["m", "tokens", "within", "between"]
    assert [line.split()[:2] for line in lines[1:]] == [["2", "5"], ["3", "13"]]
    assert [line.split(",")[0] for line in said.err.splitlines()] == [
        f"varrl variance: m = {m}: {done} of 3 prompts" for m in (2, 3) for done in (2, 3)
    ]
    found = json.loads(Path("found.json").read_text())
    assert {name: found[name] for name in ("prompts", "branches", "continuations", "seed", "checkpoint")} == {
        **{"prompts": 3, "branches": 3, "continuations": 2, "seed": 0, "checkpoint": None}
    }
    assert [row["m"] for row in found["rows"]] == [2, 3]
    assert not Path("runs").exists()


def test_the_numbers_are_those_of_the_rewards_drawn() -> None:
    assert variance("--prompts=6", "--json=found.json", "--m=3", "--seed=5", "--continuations=3") == 0
    (row,) = json.loads(Path("found.json").read_text())["rows"]
    # The same groups, sampled by hand; noise depends on the prompt and not on its batch.
    module = tiny_module(group_size=3, sampling=None)
    rewards = []
    for stage in (prefix_stage(4, 3, A=3, K=3), suffix_stage(4, 3, A=3), prefix_stage(4, 3, A=3, K=0)):
        keys = prompt_keys(5, 0, PROMPTS, torch.device("cpu"))
        _, scores = module.grpo.sample_and_score(module.policy, PROMPTS, stage, keys)
        rewards.append(module.rewards.total(scores).values.view(6, 3, -1).double())
    R, suffix, drafts = rewards
    within = float(R.var(dim=2).mean())
    between = float(R.mean(dim=2).var(dim=1).mean()) - within / 3
    assert row["within"] == pytest.approx(within, rel=1e-4)
    assert row["between"] == pytest.approx(between, rel=1e-4, abs=1e-9)
    kept = max(between, 0)
    assert [row[f"signal_{K}"] for K in (1, 2, 4)] == pytest.approx([kept / (kept + within / K) for K in (1, 2, 4)], rel=1e-3)
    assert row["prefix_std"] == pytest.approx(float(R[..., 0].std(dim=1).mean()), rel=1e-4)
    spread = suffix[..., 0].std(dim=1)
    assert row["suffix_std"] == pytest.approx(float(spread.mean()), rel=1e-4)
    assert row["suffix_small"] == pytest.approx(float((spread < 0.02).double().mean()))
    draft, mean = (x - x.mean(dim=1, keepdim=True) for x in (drafts[..., 0], R.mean(dim=2)))
    assert row["draft"] == pytest.approx(float(torch.corrcoef(torch.stack([draft.flatten(), mean.flatten()]))[0, 1]), rel=1e-4)
    assert row["tokens"] == 13
    costs = row["branch_seconds"] / row["tail_seconds"]
    assert costs > 0
    assert row["implied_K"] == (pytest.approx(math.sqrt(within / between * costs), rel=1e-3) if between > 0 else None)


def test_rewards_that_tell_nothing_leave_cells_empty() -> None:
    row = Measurement(tiny_module(reward=Alike()), 3, 2, "trained", [PROMPTS[:2]], seed=0).row(2, lambda prompts: None)
    found = row.flat()
    assert (found["within"], found["between"], found["signal_1"], found["implied_K"], found["best_K"]) == (0, 0, None, None, None)
    assert found["suffix_small"] == 1
    assert "nan" not in table([row])[1]


def test_the_table_has_the_numbers_of_a_row() -> None:
    row = Row(4, 49, 0.0107, 0.1, {1: 0.903, 2: 0.949, 4: 0.974}, 0.94, 0.4, 0.05, 0.77, 0.03, 0.02, math.sqrt(0.107 * 1.5))
    _, line = table([row])
    assert line.split() == [
        *("4", "49", "1.07e-02", "1.00e-01", "0.107", "0.903", "0.949", "0.974"),
        *("0.940", "0.0500", "12%", "77%", "30.0", "+", "20.0", "K", "0.40", "1"),
    ]


def test_the_std_of_groups_with_gaps() -> None:
    rewards = torch.tensor([[1.0, math.nan, 3.0], [2.0, math.nan, math.nan], [5.0, 5.0, 5.0]])
    assert group_std(rewards).tolist() == pytest.approx([math.sqrt(2), math.nan, 0.0], nan_ok=True)


def test_what_cannot_be_is_said_before_anything_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, says in (
        (["--continuations=1"], "--continuations must be at least 2, to compare those of a branch, got 1"),
        (["--prompts=7"], "--prompts must be between 1 and 6, the number of training prompts, got 7"),
    ):
        assert variance(*arguments) == 2
        said = capsys.readouterr()
        assert says in said.err
        assert "varrl variance: m" not in said.err
        assert said.out == ""


def test_middle_steps_are_numbers_or_resolutions() -> None:
    policy = tiny_policy()
    assert middle_steps(None, policy, "trained") == [2, 3]
    assert middle_steps("3, 1,3", policy, "trained") == [1, 3]
    assert middle_steps("8px", policy, "trained") == [2]
    for given, says in (("4", r"m in \[1, 4\), got 4"), ("2,many", "got 'many'"), ("0", r"within \[1, 4\]"), ("2,", "got ''")):
        with pytest.raises(ValueError, match=says):
            middle_steps(given, policy, "trained")
    with pytest.raises(ValueError, match="a prefix needs m of at least 2, got 1"):
        middle_steps("1", policy, "shared")


def test_prompts_are_chosen_by_the_seed_and_none_twice() -> None:
    first = chosen(PROMPTS, 4, seed=0)
    assert first == chosen(PROMPTS, 4, seed=0) != chosen(PROMPTS, 4, seed=1)
    assert len({prompt.id for prompt in first}) == 4
    with pytest.raises(ValueError, match="between 1 and 6"):
        chosen(PROMPTS, 0, seed=0)


def test_one_process_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert variance() == 2
    assert "variance measures on one process, but WORLD_SIZE is 2" in capsys.readouterr().err


def test_the_verdict_has_the_numbers() -> None:
    # K* = sqrt(.107 * 1.5) = .4; (1 + .107) / (1 + .107 / 2) = 1.051; (1.5 + 2) / (1.5 + 1) = 1.4.
    said = verdict(VarianceComponents(0.107, 1.0), BranchCosts(1.5, 1.0), K=2)
    assert said == "K = 1 suffices here: 2 continuations gain 5% of signal for 1.4 times the cost"
    # K* = sqrt(4 * 2) = 2.8, and 3 is the better whole number; 5 / (1 + 4 / 3) = 2.143, 5 / 3 = 1.667.
    said = verdict(VarianceComponents(4.0, 1.0), BranchCosts(2.0, 1.0), K=3)
    assert said == "K = 3 is worth its cost: 3 continuations gain 114% of signal for 1.7 times the cost of one"
    said = verdict(VarianceComponents(4.0, 1.0), BranchCosts(2.0, 1.0), K=2)
    assert said == (
        "K = 3 is worth its cost: 3 continuations gain 114% of signal for 1.7 times the cost of one; "
        "2 continuations gain 67% of signal for 1.3 times the cost"
    )
    assert "nothing varies" in verdict(VarianceComponents(0.0, 0.0), BranchCosts(2.0, 1.0), K=2)
    assert "no more than the chance" in verdict(VarianceComponents(1.0, -0.1), BranchCosts(2.0, 1.0), K=2)


def test_the_check_samples_groups_of_the_stage() -> None:
    module = tiny_module(reward=Level())
    (stage,) = stages_with_continuations(module.cycle)
    finding = continuations_pay(module, stage, PROMPTS)
    assert finding.passed
    assert "6 groups of 4" in finding.figure
    assert stages_with_continuations(tiny_module(num_continuations=1).cycle) == []
    for every in (1, 2):  # two whole images measure drafts: they are no choice of K
        drafts = tiny_module(num_continuations=0, calibrate_every=every, alternation=["prefix"])
        assert stages_with_continuations(drafts.cycle) == []
    assert continuations_pay(tiny_module(reward=Alike()), stage, PROMPTS).figure.startswith("cannot be told: nothing varies")
