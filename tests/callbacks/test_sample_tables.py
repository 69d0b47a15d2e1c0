"""Tables of a run: when they are written, that they are what trained, and that they change nothing.

Four runs of the tiny model of two to five steps, a second each.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.callbacks.running import datamodule, small_module, trainer
from tests.callbacks.test_any_logger import Notes
from tests.tiny import weights
from varrl_lightning.callbacks import Checkpoints, SafeStop, SampleTables, default_callbacks
from varrl_lightning.grpo.grpo import GRPO, MicroBatch
from varrl_lightning.module import VARGRPO
from varrl_lightning.sample_tables.parquet import read_sample_tables, table_files, table_path
from varrl_lightning.sample_tables.pngs import from_png

pytest.importorskip("pyarrow")
STEPS = 4
"""Three prefix stages with K = 2, and a suffix stage."""


@dataclass
class Run:
    folder: Path
    module: VARGRPO
    notes: Notes = field(default_factory=Notes)
    used: list[Tensor] = field(default_factory=list)
    """The advantages in the loss of each step."""


def fitted(folder: Path, *callbacks: Any, max_steps: int = STEPS, **options: Any) -> Run:
    run, path = Run(folder, small_module()), options.pop("ckpt_path", None)

    class Watched(GRPO):
        def losses(self, policy: Any, reference: Any, rollout: Any, rows: Any, *others: Any) -> Iterator[MicroBatch]:
            run.used.append(rows.advantages)
            return super().losses(policy, reference, rollout, rows, *others)

    run.module.updater.grpo = Watched(**vars(run.module.grpo))
    fit = trainer(
        folder,
        callbacks,
        max_steps=max_steps,
        logger=run.notes,
        **({"val_check_interval": 2, "check_val_every_n_epoch": None} | options),
    )
    fit.fit(run.module, datamodule=datamodule(folder.parent / "data"), ckpt_path=path)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fitted(tmp_path_factory.mktemp("tables") / "run", SafeStop(), SampleTables(prompts=1), Checkpoints())


def test_there_is_a_table_of_the_step_before_each_validation(run: Run) -> None:
    assert list(table_files(run.folder)) == [2, 4]
    rows = read_sample_tables(run.folder)
    assert [(r.step, r.stage, r.group, r.branch, r.continuation) for r in rows] == [
        *((2, "prefix", 0, a, k) for a in range(2) for k in range(2)),
        *((4, "suffix", 0, a, 0) for a in range(2)),
    ]


def test_advantages_are_those_of_the_loss(run: Run) -> None:
    rows = read_sample_tables(run.folder)
    assert len(run.used) == STEPS
    for row in rows:
        assert row.advantage == float(run.used[row.step - 1][row.branch])
    assert len({abs(row.advantage) for row in rows} - {0.0}) >= 2


def test_rewards_are_those_of_the_pictures(run: Run) -> None:
    """The reward is the brightness on the left less that on the right; the pictures are rounded to 1/255."""
    for row in read_sample_tables(run.folder):
        image = from_png(row.image) / 255
        reward = image[:, :5].mean() - image[:, -5:].mean()
        assert row.reward == pytest.approx(reward, abs=1 / 255)
        assert row.rewards == {"Watched": row.reward}
        assert row.read == (row.words if row.reward > -0.06 else ("XYZ",))


def test_loggers_get_the_columns_without_pictures(run: Run) -> None:
    tables = [(step, columns, rows) for name, step, columns, rows in run.notes.tables if name == "training_samples"]
    assert [(step, len(rows)) for step, _, rows in tables] == [(2, 4), (4, 2)]
    columns, first = tables[0][1], tables[0][2][0]
    assert {"prompt", "reward", "rewards.Watched", "return", "advantage"} <= set(columns)
    assert not {"image", "masks", "image_mask"} & set(columns)
    assert first[columns.index("advantage")] == read_sample_tables(run.folder)[0].advantage
    assert {type(value) for row in tables[0][2] for value in row} <= {str, int, float, type(None)}


def test_training_is_the_same_bit_by_bit_and_nobody_looks_on_afterwards(run: Run, tmp_path: Path) -> None:
    plain = fitted(tmp_path / "run", SafeStop(), Checkpoints())
    assert torch.equal(weights(run.module), weights(plain.module))
    assert not table_files(plain.folder)
    assert run.module.observers.members == []


def test_a_resumed_run_removes_the_tables_of_the_steps_that_it_repeats(run: Run) -> None:
    later = table_path(run.folder, 5)
    later.write_bytes(table_path(run.folder, 4).read_bytes())
    before = {step: path.read_bytes() for step, path in table_files(run.folder).items()}
    fitted(run.folder, SafeStop(), SampleTables(), Checkpoints(), max_steps=5, ckpt_path=run.folder / "checkpoints" / "last.ckpt")
    assert {step: path.read_bytes() for step, path in table_files(run.folder).items()} == {s: before[s] for s in (2, 4)}


def test_tables_after_every_so_many_steps(tmp_path: Path) -> None:
    fitted(tmp_path / "run", SampleTables(every_n_steps=3, side=8), max_steps=3)
    rows = read_sample_tables(tmp_path / "run")
    assert {row.step for row in rows} == {3}
    assert {row.group for row in rows} == {0, 1}
    assert {from_png(row.image).shape for row in rows} == {(8, 8, 3)}


def test_a_table_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"step_000001\.parquet could not be written: .*Training goes on without this table"):
        run = fitted(tmp_path / "run", InTheWay(), SampleTables(every_n_steps=1), max_steps=1)
    assert run.module.rollouts_done == 1


class InTheWay(Callback):
    """Puts a file where the tables would be, when the run has begun."""

    def on_train_batch_start(self, trainer: Any, *others: Any) -> None:
        folder = Path(trainer.default_root_dir) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tables").touch()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    run = fitted(tmp_path / "run", SampleTables(every_n_steps=1), fast_dev_run=1)
    assert run.module.rollouts_done == 1
    assert not (tmp_path / "run" / "samples").exists()


def test_without_pyarrow_it_is_refused_before_training_and_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c for c in default_callbacks() if isinstance(c, SampleTables)]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"not installed: pip install 'varrl-lightning\[tables\]'"):
        SampleTables()
    assert not [c for c in default_callbacks() if isinstance(c, SampleTables)]
    SampleTables(prompts=0)


@pytest.mark.parametrize(("name", "value"), [("prompts", -1), ("every_n_steps", 0), ("side", 0)])
def test_values_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be >= .*, got {value}"):
        SampleTables(**{name: value})


def test_with_no_prompts_it_writes_nothing(tmp_path: Path) -> None:
    assert len(fitted(tmp_path / "run", SampleTables(prompts=0), max_steps=2).used) == 2
    assert not table_files(tmp_path / "run")


def test_only_the_step_before_a_validation_is_copied(tmp_path: Path) -> None:
    tables, copied = SampleTables(prompts=1), []
    scored = tables._recorder.scored

    def noted(*arguments: Any) -> None:
        scored(*arguments)
        copied.append(tables._recorder._images is not None)

    tables._recorder.scored = noted  # type: ignore[method-assign]
    fitted(tmp_path / "run", tables)
    assert copied == [False, True, False, True]
