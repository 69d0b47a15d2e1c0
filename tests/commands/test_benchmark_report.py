"""`varrl test` from a configuration to tables and pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from varrl_lightning.__main__ import main
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.metrics.paper import HPSV3_CATEGORIES
from varrl_lightning.types import Prompt, Scores

CONFIG: dict[str, Any] = {
    "model": {
        "policy": {"class_path": "tiny.tiny_policy"},
        "reward": {"hpsv3": {"reward": "tiny.LeftBright"}, "other": {"reward": "tiny.LeftBright", "weight": -0.5}},
        "mask_source": "full",
        "m": 2,
        "group_size": 2,
    },
    "data": {"train": "train.jsonl", "test": "bench", "batch_size": 2, "eval_batch_size": 7},
    "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False, "limit_val_batches": 0},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    (tmp_path / "train.jsonl").write_text('{"text": "\\"STONE\\""}\n{"text": "\\"RIVER\\""}\n')
    (tmp_path / "bench").mkdir()
    for i, name in enumerate(HPSV3_CATEGORIES):
        words = [f'"{"ABCDEFGHIJKL"[i]}O{letter}"' for letter in "XYZ"]
        (tmp_path / "bench" / f"{name.lower()}.json").write_text(json.dumps(words))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_tables_and_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", "c.yaml", "--output", "out"]) == 0
    content = json.loads((folder / "out" / "test.json").read_text())
    measured, beside = content["tables"]
    assert set(measured["rows"]) == {"sampler", "greedy"}
    row = beside["rows"]["sampler (this run)"]
    assert list(row) == ["All", *HPSV3_CATEGORIES]
    # The rewards are the same but for their weights: the row is that of `hpsv3`, half of it is the sum.
    assert row["All"] == pytest.approx(measured["rows"]["sampler"]["rewards/hpsv3"], abs=1e-5)
    assert measured["rows"]["sampler"]["Reward"] == pytest.approx(row["All"] / 2, abs=1e-5)
    assert sum(row[c] for c in HPSV3_CATEGORIES) / 12 == pytest.approx(row["All"], abs=1e-5)
    assert "NextFlow-RL" in (folder / "out" / "test.md").read_text()
    assert "beside Table 2" in capsys.readouterr().out
    assert not list((folder / "out").glob("*.png"))  # nothing to compare with


class Reader:
    """Reads what was asked for, on every second image; the rest it cannot score."""

    def __call__(self, images: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        ok = torch.arange(len(images)) % 2 == 0
        texts = [list(p.words) if good else [] for p, good in zip(prompts, ok.tolist(), strict=True)]
        return Scores(ok.float().masked_fill(~ok, torch.nan), valid=ok, texts=texts)


@pytest.mark.filterwarnings("ignore:the reward .judges/Reader. gave no score")
def test_each_judge_has_rows_of_its_own_and_none_beside_the_papers(folder: Path) -> None:
    judges = ["--model.evaluate_with", "[test_benchmark_report.Reader, tiny.LeftBright]"]
    assert main(["test", "--config", "c.yaml", "--output", "out", *judges]) == 0
    measured, beside = json.loads((folder / "out" / "test.json").read_text())["tables"]
    rows = ["", ", Reader", ", LeftBright"]
    assert list(measured["rows"]) == [way + row for way in ("sampler", "greedy") for row in rows]
    judged = measured["rows"]["sampler, Reader"]
    # What it could not read counts neither as right nor as wrong.
    assert judged["Word Accuracy"] == 1.0
    assert judged["unread"] > 0
    # The reward LeftBright has the weight .5 in all.
    assert measured["rows"]["greedy, LeftBright"]["Reward"] == pytest.approx(measured["rows"]["greedy"]["Reward"] * 2, abs=1e-5)
    assert not any("Reader" in row or "LeftBright" in row for row in beside["rows"])


def test_another_reward_does_not_stand_beside_table_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--config", "c.yaml", "--output", "out", "--model.reward", "tiny.LeftBright"]) == 0
    assert "beside Table 2" not in capsys.readouterr().out
    _, by_category = json.loads((folder / "out" / "test.json").read_text())["tables"]
    assert set(by_category["rows"]) == {"sampler", "greedy"}


def test_a_batch_that_could_not_be_read_takes_nothing_from_the_others() -> None:
    prompt = Prompt('"STONE"')
    read = Evaluation([prompt], torch.zeros(1, 3, 1, 1), torch.ones(1), {}, [["STONE"]], torch.tensor([True]))
    lost = Evaluation([prompt] * 2, torch.zeros(2, 3, 1, 1), torch.full((2,), torch.nan), {}, None)
    metrics = Evaluation.merge([read, lost]).metrics()
    assert metrics["word_accuracy"] == 1.0
    assert metrics["unread"] == 2.0


def test_a_checkpoint_gives_pairs(folder: Path) -> None:
    assert main(["fit", "--config", "c.yaml", "--trainer.default_root_dir", "run", "--data.test", "null"]) == 0
    assert main(["test", "--config", "c.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]) == 0
    assert sorted(p.name for p in (folder / "test").iterdir()) == ["pairs_1.png", "pairs_2.png", "test.json", "test.md"]
    assert json.loads((folder / "test" / "test.json").read_text())["about"]["checkpoint"] == "run/checkpoints/last.ckpt"


def test_results_keep_each_rewards_scores() -> None:
    prompts = [Prompt(c, category=c) for c in ("Food", "Plants")]
    hpsv3 = Scores(torch.tensor([4.0, 8.0]), valid=torch.tensor([True, False]))
    parts = [
        Evaluation(
            prompts, torch.rand(2, 3, 4, 4), torch.tensor([1.0, 2.0]), {"hpsv3": hpsv3, "clip_score": Scores(torch.ones(2))}, None
        )
    ] * 2
    merged = Evaluation.merge([p.without_images() for p in parts])
    assert merged.metrics() == {"reward": 1.5, "rewards/hpsv3": 4.0, "clip_score": 1.0}
    found = merged.results().categories
    assert list(found) == ["All", "Plants", "Food"]
    assert found["All"] == found["Food"] == 4.0
    assert found["Plants"] != found["Plants"]
