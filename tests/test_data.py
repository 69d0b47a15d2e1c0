"""The order of prompts, and what survives an interruption."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from tests.tiny import LeftBright, tiny_module, tiny_trainer
from varrl_lightning.__main__ import main
from varrl_lightning.configuration.class_path import import_class
from varrl_lightning.data import EvaluationBatches, OverlapError, PromptDataModule, PromptFileError, TrainingBatches
from varrl_lightning.registry import REWARDS, load
from varrl_lightning.rewards.base import BaseReward
from varrl_lightning.types import Prompt

PROMPTS = [Prompt(text=f"prompt {i}") for i in range(11)]


def ids(batches: Any) -> list[list[str]]:
    return [[p.id for p in batch] for batch in batches]


def write(path: Path, prompts: list[Prompt]) -> str:
    path.write_text("\n".join(json.dumps({"text": p.text}) for p in prompts))
    return str(path)


class Recorder(LightningModule):
    """Learns nothing and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []
        self.evaluated: list[list[str]] = []
        self.fail_at: int | None = None

    def training_step(self, batch: list[Prompt], batch_idx: int) -> None:
        if len(self.seen) == self.fail_at:
            raise RuntimeError("interrupted")
        self.optimizers().step()
        self.seen.append([p.id for p in batch])

    def validation_step(self, batch: list[Prompt], batch_idx: int) -> None:
        self.evaluated.append([p.id for p in batch])

    test_step = validation_step

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> int:
        self.validation_step(batch, batch_idx)
        return len(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    """Saves a checkpoint at the end of one batch, or when training fails."""

    def __init__(self, path: Path, batch: int = -1) -> None:
        self.path, self.batch = path, batch

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if len(pl_module.seen) == self.batch:
            trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "train": write(tmp_path / "train.jsonl", PROMPTS),
        "validation": write(tmp_path / "validation.jsonl", [Prompt(text=f"validation {i}") for i in range(5)]),
    }


def trainer(max_steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "accelerator": "cpu", "max_epochs": -1, "limit_val_batches": 0, **options,
    }  # fmt: skip
    return Trainer(max_steps=max_steps, callbacks=list(callbacks), **settings)


def fit(
    data: PromptDataModule, max_steps: int, *callbacks: Callback, resume: Path | None = None, **options: Any
) -> list[list[str]]:
    module = Recorder()
    trainer(max_steps, *callbacks, **options).fit(module, data, ckpt_path=resume, weights_only=True)
    return module.seen


def test_every_pass_shows_every_prompt_once_but_for_the_incomplete_batch() -> None:
    batches = TrainingBatches(PROMPTS, batch_size=4, seed=3)
    assert len(batches) == 2
    left_out = set()
    for number in range(20):
        shown = Counter(i for batch in ids(batches.epoch(number)) for i in batch)
        assert len(shown) == 8
        assert set(shown.values()) == {1}
        left_out |= {p.id for p in PROMPTS} - set(shown)
    assert left_out == {p.id for p in PROMPTS}


def test_the_order_is_a_function_of_seed_and_pass_alone() -> None:
    first, again, other = (TrainingBatches(PROMPTS, 4, seed) for seed in (0, 0, 1))
    list(first)
    assert ids(first.epoch(5)) == ids(again.epoch(5))
    assert ids(first.epoch(5)) != ids(first.epoch(6))
    assert ids(first.epoch(5)) != ids(other.epoch(5))
    # Pinned: a resumed run must find the same order under another version of Python.
    assert ids(again.epoch(0))[0] == ["prompt 0", "prompt 6", "prompt 5", "prompt 7"]


def test_without_shuffling_the_file_is_followed() -> None:
    assert ids(TrainingBatches(PROMPTS, 4, seed=None)) == ids([PROMPTS[:4], PROMPTS[4:8]])


def test_iteration_goes_on_from_any_position() -> None:
    whole = TrainingBatches(PROMPTS, 4)
    stream = ids(whole) + ids(whole) + ids(whole) + ids(whole)
    for position in range(4):
        resumed = TrainingBatches(PROMPTS, 4)
        resumed.load_state_dict({"position": position})
        assert ids(resumed) + ids(resumed) == stream[position : position + 4]


def test_a_batch_never_mixes_sizes() -> None:
    mixed = [Prompt(text=f"p{i}", size=[None, (24, 64), (48, 64)][i % 3]) for i in range(20)]
    for batches in (TrainingBatches(mixed, 3), EvaluationBatches(mixed, 3)):
        assert all(len({p.size for p in batch}) == 1 for batch in batches)
    assert sum(len(batch) for batch in EvaluationBatches(mixed, 3)) == 20


def test_too_few_prompts_for_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 4, but there are only 3 training prompts, and"):
        TrainingBatches(PROMPTS[:3], 4)
    with pytest.raises(ValueError, match=r"only 1 training prompts of size \(24, 64\)"):
        TrainingBatches([*PROMPTS, Prompt(text="wide", size=(24, 64))], 4)


def test_lightning_keeps_the_order_over_epochs(files: dict[str, str]) -> None:
    stream = TrainingBatches(PROMPTS, 4, seed=7)
    expected = [ids(stream.epoch(n)) for n in range(3)]
    assert fit(PromptDataModule(**files, batch_size=4, seed=7), 6) == [batch for of_pass in expected for batch in of_pass]


def test_lightning_keeps_the_stream_when_it_cuts_epochs_short(files: dict[str, str]) -> None:
    stream = TrainingBatches(PROMPTS, 2, seed=7)
    expected = ids(stream) + ids(stream)
    assert fit(PromptDataModule(**files, batch_size=2, seed=7), 8, limit_train_batches=3) == expected[:8]


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("options", [{}, {"limit_val_batches": 2, "num_sanity_val_steps": 1}], ids=["fit", "validating"])
def test_a_resumed_run_sees_what_the_whole_run_sees(
    files: dict[str, str], tmp_path: Path, stop: int, options: dict[str, Any]
) -> None:
    """Two batches an epoch: odd stops are mid-epoch, even ones at its last batch."""
    whole = fit(PromptDataModule(**files, batch_size=4), 9, **options)
    checkpoint = tmp_path / "middle.ckpt"
    before = fit(PromptDataModule(**files, batch_size=4), 9, SaveAt(checkpoint, stop), **options)[:stop]
    after = fit(PromptDataModule(**files, batch_size=4), 9, resume=checkpoint, **options)
    assert before + after == whole


@pytest.mark.parametrize("fail_at", [0, 1, 2, 3, 4])
def test_a_batch_that_training_did_not_finish_is_shown_again(files: dict[str, str], tmp_path: Path, fail_at: int) -> None:
    whole = fit(PromptDataModule(**files, batch_size=4), 8)
    module, checkpoint = Recorder(), tmp_path / "interrupted.ckpt"
    module.fail_at = fail_at
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(8, SaveAt(checkpoint)).fit(module, PromptDataModule(**files, batch_size=4))
    # A second interruption, of the resumed run, to see that the counters do not drift.
    again = Recorder()
    again.fail_at = 2
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(8, SaveAt(checkpoint)).fit(again, PromptDataModule(**files, batch_size=4), ckpt_path=checkpoint)
    after = fit(PromptDataModule(**files, batch_size=4), 8, resume=checkpoint)
    assert module.seen + again.seen + after == whole


def test_resuming_with_other_prompts_is_said(files: dict[str, str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "middle.ckpt"
    fit(PromptDataModule(**files, batch_size=4), 3, SaveAt(checkpoint, 3))
    with pytest.warns(UserWarning, match="order of the training prompts changes from here on: batch_size was 4 and is 2"):
        fit(PromptDataModule(**files, batch_size=2), 4, resume=checkpoint)


def test_evaluation_shows_all_prompts_in_order(files: dict[str, str]) -> None:
    data = PromptDataModule(test=files["validation"], predict=files["train"], eval_batch_size=2)
    module = Recorder()
    trainer(1, limit_val_batches=1.0).test(module, data, verbose=False)
    trainer(1).predict(module, data)
    assert [i for batch in module.evaluated for i in batch] == [f"validation {i}" for i in range(5)] + [p.id for p in PROMPTS]


def test_a_sanity_check_does_not_move_validation(files: dict[str, str]) -> None:
    module = Recorder()
    trainer(2, limit_val_batches=1.0, num_sanity_val_steps=1).fit(
        module, PromptDataModule(**files, batch_size=4, eval_batch_size=2)
    )
    assert [batch[0] for batch in module.evaluated] == ["validation 0", "validation 0", "validation 2", "validation 4"]


def test_all_files_are_checked_before_training(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="cannot read the prompt file"):
        PromptDataModule(**files, test=str(tmp_path / "missing.jsonl")).setup("fit")
    module = Recorder()
    with pytest.raises(PromptFileError, match="cannot read the prompt file"):
        trainer(1).fit(module, PromptDataModule(**files, test=str(tmp_path / "missing.jsonl")))
    assert module.seen == []


def test_overlap_with_evaluation(files: dict[str, str], tmp_path: Path) -> None:
    shared = write(tmp_path / "shared.jsonl", [PROMPTS[3], Prompt(text="new")])
    with pytest.raises(OverlapError, match="train and test share 1 prompts: prompt 3"):
        PromptDataModule(**files, test=shared).setup("fit")
    with pytest.warns(UserWarning, match="train and test share 1 prompts"):
        PromptDataModule(**files, test=shared, overlap="warn").setup("fit")
    PromptDataModule(**files, test=shared, overlap="ignore").setup("fit")


def test_single_words_of_different_prompts_are_warned_of_once(tmp_path: Path) -> None:
    """What is learnt of a word in one prompt is known in all; the whole prompts and their words all differ."""
    asked = {"train": ("ABATE", "OZONE", "ABBOT"), "validation": ("ABATE ABBOT",), "test": ("ABATE", "OZONE LAYER")}
    files = {name: write(tmp_path / f"{name}.jsonl", [Prompt(f'a "{words}"') for words in of]) for name, of in asked.items()}
    alone = {name: files[name] for name in ("train", "validation")} | {
        "test": write(tmp_path / "new.jsonl", [Prompt('"Ozone, now"')])
    }
    said = r"words: train and validation share 2 \(abate, abbot\); train and test share 1 \(ozone\)\. What"
    data = PromptDataModule(**alone, batch_size=2)
    with pytest.warns(UserWarning, match=said) as caught:
        data.setup("fit")
    assert len(caught) == 1
    data.setup("test")  # another warning would be an error
    PromptDataModule(**alone, batch_size=2, overlap="ignore").setup("fit")
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        PromptDataModule(**files, batch_size=2, overlap="warn").setup("fit")
    of_prompts, of_words = (str(one.message) for one in recorded)
    assert of_prompts.startswith("train and test share 1 prompts")
    assert "train and test share 1 (ozone); validation and test share 1 (abate). What" in of_words
    without = PromptDataModule(**alone, batch_size=2)
    without.compare_words = False
    without.setup("fit")


class Reads:
    reads_words = True

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))


def test_words_overlap_where_a_reward_reads_them(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [Prompt('a red "PLANT"'), Prompt('"STONE"')])
    val = write(tmp_path / "val.jsonl", [Prompt('"plant" of brass')])
    data = PromptDataModule(train=train, validation=val, batch_size=2)
    with pytest.raises(OverlapError, match="share 1 prompts: plant"):
        data.setup("fit")  # nothing says which rewards there are
    data.compare_words = False
    data.setup("fit")
    for reward, overlaps in ((LeftBright(), False), ({"a": {"reward": LeftBright()}, "b": {"reward": Reads(), "weight": 0}}, True)):
        data = PromptDataModule(train=train, validation=val, batch_size=2)
        runs = tiny_trainer(max_steps=1, limit_val_batches=0)
        if overlaps:
            with pytest.raises(OverlapError, match="share 1 prompts: plant"):
                runs.fit(tiny_module(reward=reward), data)
        else:
            runs.fit(tiny_module(reward=reward), data)
    same = write(tmp_path / "same.jsonl", [Prompt('A red "plant"')])
    data = PromptDataModule(train=train, validation=same)
    data.compare_words = False
    with pytest.raises(OverlapError, match='share 1 prompts: a red "plant"'):
        data.setup("fit")


@pytest.mark.parametrize(
    ("reward", "reads"), [("tiny.LeftBright", False), ("flow_grpo_ocr", True), ("clip_score", False), ("http", True)]
)
def test_which_rewards_read_words(reward: str, reads: bool) -> None:
    kind = import_class(reward) if "." in reward else load(REWARDS, reward)
    assert getattr(kind, "reads_words", BaseReward.reads_words) == reads


@pytest.mark.parametrize("command", ["validate", "doctor"])
def test_the_command_line_asks_the_rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", [Prompt('"PLANT"'), Prompt('"STONE"')])
    write(tmp_path / "val.jsonl", [Prompt('a red "plant"')])
    model = {"policy": {"class_path": "tiny.tiny_policy"}, "mask_source": "full", "m": 2, "group_size": 2}
    data = {"train": "train.jsonl", "validation": "val.jsonl", "batch_size": 2}
    tree = {"model": model | {"reward": "tiny.LeftBright"}, "data": data, "trainer": {"accelerator": "cpu"}}
    (tmp_path / "x.yaml").write_text(json.dumps(tree))
    assert main([command, "--config", "x.yaml"]) == 0
    assert "share" not in capsys.readouterr().err


def test_a_stage_without_its_file_says_which(files: dict[str, str]) -> None:
    data = PromptDataModule(train=files["train"])
    data.setup("test")
    with pytest.raises(PromptFileError, match=r"set data\.test to a JSONL file"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1 prompt, got 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1 prompt, got 0"),
    ],
)
def test_impossible_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptDataModule(**option)
