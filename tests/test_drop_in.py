"""VARGRPO in other people's Trainers, with their callbacks, loaders and scripts."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from fresh import Fresh
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from tests.tiny import PROMPTS, WORDS, LeftBright, tiny_loader, tiny_module, tiny_policy, tiny_trainer, weights
from varrl_lightning import VARGRPO
from varrl_lightning.__main__ import main
from varrl_lightning.errors import SpecError
from varrl_lightning.types import Sampling, Score, Stage

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings(
    "ignore:You defined a `validation_step`", "ignore:Be aware that when using `ckpt_path`", "ignore:Checkpoint directory"
)
ROWS = [{"caption": f'"{word}"', "row": number} for number, word in enumerate(WORDS)]
SPECS: dict[str, Any] = {
    "policy": {"class_path": "tests.tiny.tiny_policy", "init_args": {"seed": 3}},
    "reward": {"class_path": "tests.tiny.LeftBright"},
    "mask_source": "full",
    "m": 2,
    "group_size": 2,
    "sampling": {"top_k": 8},
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
    "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 9}},
}


def module_of(**options: Any) -> VARGRPO:
    return VARGRPO(**(SPECS | options))


def columns(rows: list[dict[str, Any]] = ROWS, **options: Any) -> DataLoader[Any]:
    """Somebody's loader: torch's default collate makes columns of captions and row numbers."""
    return DataLoader(rows, **({"batch_size": 2} | options))  # type: ignore[arg-type]


# --- one run with everything that Lightning brings ----------------------------------------------------------------------------


@dataclass
class Run:
    folder: Path
    module: VARGRPO
    trainer: L.Trainer
    best: ModelCheckpoint
    said: str


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("pipeline")
    best = ModelCheckpoint(folder, "{epoch}-{step}", monitor="val/reward", mode="max", save_top_k=2, save_last=True)
    callbacks = [
        best,
        ModelCheckpoint(folder / "steps", every_n_train_steps=2, save_top_k=-1),
        EarlyStopping("val/reward", mode="max", patience=99),
        LearningRateMonitor("step"),
        RichProgressBar(),
        DeviceStatsMonitor(cpu_stats=False),
    ]
    module = module_of(ema_decay=0.9)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        val_check_interval=2,
        log_every_n_steps=1,
        callbacks=callbacks,
        logger=[CSVLogger(folder, name="csv", version=""), TensorBoardLogger(folder, name="events", version="")],
        gradient_clip_val=None,
    )
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("tensorboardX").addHandler(handler)
    trainer.fit(module, columns(), columns(ROWS[:2]))
    logging.getLogger("tensorboardX").removeHandler(handler)
    return Run(folder, module, trainer, best, said.getvalue())


def test_lightnings_own_callbacks_and_loggers_find_what_they_need(run: Run) -> None:
    assert (run.module.rollouts_done, run.trainer.global_step, run.trainer.current_epoch) == (6, 6, 2)
    # Validation follows steps 2 and 5: the second batch of each pass.
    assert sorted(path.name for path in run.folder.glob("*.ckpt")) == ["epoch=0-step=2.ckpt", "epoch=1-step=5.ckpt", "last.ckpt"]
    assert {path.name for path in (run.folder / "steps").iterdir()} == {
        f"epoch={e}-step={s}.ckpt" for e, s in [(0, 2), (1, 4), (1, 6)]
    }
    assert float(run.best.best_model_score) == max(float(score) for score in run.best.best_k_models.values())
    with (run.folder / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len([row for row in rows if row["reward"]]) == 6
    assert len([row for row in rows if row["val/reward"]]) == 2
    rates = [float(row["lr-AdamW"]) for row in rows if row["lr-AdamW"]]
    assert rates == pytest.approx([1e-3 * (0.1 + 0.9 * step / 9) for step in range(6)])
    assert list((run.folder / "events").glob("events.out.tfevents*"))
    assert "NaN or Inf" not in run.said


def test_a_checkpoint_of_plain_specs_needs_its_path_alone(run: Run, tmp_path: Path) -> None:
    path = run.folder / "steps" / "epoch=1-step=6.ckpt"
    loaded = VARGRPO.load_from_checkpoint(path)
    assert torch.equal(weights(loaded), weights(run.module))
    assert not torch.equal(weights(loaded), weights(module_of()))
    assert dict(loaded.hparams) == dict(run.module.hparams)
    assert (loaded.rollouts_done, loaded.updates_done, loaded.sampling) == (6, 6, Sampling(top_k=8))
    assert torch.equal(loaded(PROMPTS[:2]), run.module(PROMPTS[:2]))
    assert VARGRPO.load_from_checkpoint(path, m=3, seed=7).cycle[0].stop == 3
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        loaded.load_from_checkpoint(path)
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(loaded, columns())
    trainer.save_checkpoint(tmp_path / "again.ckpt")
    again = VARGRPO.load_from_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(weights(again), weights(loaded))
    assert again.rollouts_done == 7


# --- what a checkpoint holds of the arguments ---------------------------------------------------------------------------------


def test_objects_are_asked_for_again(tmp_path: Path) -> None:
    module = tiny_module(kl_coef=0.1, reference=tiny_policy(seed=1), score=Score("guided", max_weight=3.0))
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(module, tiny_loader())
    trainer.save_checkpoint(tmp_path / "objects.ckpt", weights_only=False)
    given = {"policy": tiny_policy(seed=5), "reference": tiny_policy(seed=1), "reward": LeftBright(), "optimizer": None}
    said = (
        "the checkpoint does not hold policy (a tests.tiny.TinyPolicy), reference (a tests.tiny.TinyPolicy), reward (a "
        "tests.tiny.LeftBright), optimizer (a "
        "tests.tiny.tiny_module.<locals>.<lambda>): objects of the program that wrote it. Give them again, as in "
        "VARGRPO.load_from_checkpoint(path, policy=..., reference=..., reward=..., optimizer=...)"
    )
    with pytest.raises(SpecError, match=re.escape(said)):
        VARGRPO.load_from_checkpoint(tmp_path / "objects.ckpt")
    with pytest.raises(SpecError, match=re.escape("load_from_checkpoint(path, optimizer=...)")):
        VARGRPO.load_from_checkpoint(tmp_path / "objects.ckpt", **(given | {"optimizer": module.hparams["optimizer"]}))
    loaded = VARGRPO.load_from_checkpoint(tmp_path / "objects.ckpt", **given)
    assert torch.equal(weights(loaded), weights(module))
    assert loaded.grpo.objective.score == module.grpo.objective.score
    assert loaded.grpo.objective.score.max_weight == 3.0


def test_a_checkpoint_holds_the_weights_once(tmp_path: Path) -> None:
    module = tiny_module(kl_coef=0.1)
    trainer = tiny_trainer(max_steps=1)
    trainer.fit(module, tiny_loader())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    of_weights = sum(x.numel() * x.element_size() for x in module.state_dict().values())
    assert (tmp_path / "weights.ckpt").stat().st_size < 1.5 * of_weights


def test_dataclasses_and_numbers_of_other_libraries_become_plain() -> None:
    import numpy as np

    stages = [Stage(0, 2, 4, 2, name="prefix"), {"start": 2, "stop": 4, "branches": 4, "name": "suffix"}]
    module = module_of(
        stages=stages, group_size=None, eta=np.float64(0.5), score={"kind": "guided"}, reward=LeftBright, alternation=("prefix",)
    )
    assert module.cycle == (Stage(0, 2, 4, 2, name="prefix"), Stage(2, 4, 4, name="suffix"))
    assert type(module.hparams["eta"]) is float
    assert module.hparams["reward"] == "tests.tiny.LeftBright"
    again = VARGRPO(**module.hparams)
    assert (again.cycle, again.grpo.objective, dict(again.hparams)) == (module.cycle, module.grpo.objective, dict(module.hparams))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": {"class_path": "tests.tiny.tiny_policy", "init_args": {"sed": 3}}}, "has no 'sed'. Did you mean 'seed'?"),
        ({"policy": "tests.tiny.tiny_polcy"}, "tiny_polcy"),
        ({"policy": {"class_path": "tests.tiny.LeftBright"}}, "LeftBright does not correspond to a subclass of VARPolicy"),
        ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lrr": 1}}}, "has no 'lrr'. Did you mean 'lr'?"),
        ({"score": {"knd": "model"}}, "score has no 'knd'. Did you mean 'kind'?"),
    ],
)
def test_a_wrong_spec_is_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        module_of(**options)


class Ours(VARGRPO):
    """A subclass with an argument, an optimizer and a step of its own, and a policy that it makes itself."""

    def __init__(self, rate: float, watch: Callback | None = None, **options: Any) -> None:
        super().__init__(tiny_policy(), **options)
        self.save_hyperparameters(ignore="policy")
        self.rate, self.watch, self.seen = rate, watch, 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch["nested"], batch_idx)
        self.seen += 1
        self.log("seen", float(self.seen))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.policy.transformer.parameters(), lr=self.rate)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)}


def test_a_subclass_with_a_step_and_an_optimizer_of_its_own(tmp_path: Path) -> None:
    options = {name: value for name, value in SPECS.items() if name not in ("policy", "optimizer", "lr_scheduler")}
    module = Ours(0.5, watch=Callback(), **options)
    before = weights(module).clone()
    trainer = tiny_trainer(max_steps=2)
    trainer.fit(module, DataLoader([{"nested": row} for row in ROWS], batch_size=2))  # type: ignore[arg-type]
    assert float(trainer.callback_metrics["seen"]) == module.seen == module.rollouts_done == 2
    assert not torch.equal(weights(module), before)
    assert module.optimizers().param_groups[0]["lr"] == 0.125  # type: ignore[union-attr]
    trainer.save_checkpoint(tmp_path / "ours.ckpt", weights_only=False)
    loaded = Ours.load_from_checkpoint(tmp_path / "ours.ckpt")
    assert torch.equal(weights(loaded), weights(module))
    assert (loaded.rate, loaded.watch) == (0.5, None)


# --- the Trainer's settings ---------------------------------------------------------------------------------------------------


class TwoOptimizers(VARGRPO):
    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([p], lr=0.1) for p in list(self.policy.transformer.parameters())[:2]]


@pytest.mark.parametrize(
    ("kind", "options", "flags", "said"),
    [
        (VARGRPO, {}, {"gradient_clip_val": 0.5}, "give the module max_grad_norm=0.5 and leave the Trainer without it"),
        (VARGRPO, {}, {"accumulate_grad_batches": 2}, "give larger batches, and the module micro_batch_size"),
        (VARGRPO, {}, {"callbacks": GradientAccumulationScheduler({0: 2})}, "GradientAccumulationScheduler cannot be used"),
        (VARGRPO, {}, {"callbacks": StochasticWeightAveraging(1e-2)}, "StochasticWeightAveraging cannot be used: it replaces"),
        (
            VARGRPO,
            {"lr_scheduler": "torch.optim.lr_scheduler.ReduceLROnPlateau"},
            {},
            "ReduceLROnPlateau, which waits for a metric",
        ),
        (TwoOptimizers, {}, {}, "configure_optimizers must give one optimizer, got 2"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_drawn(
    kind: type[VARGRPO], options: dict[str, Any], flags: dict[str, Any], said: str
) -> None:
    module = kind(**(SPECS | options))
    module._sample = lambda *_: pytest.fail("something was drawn")  # type: ignore[method-assign]
    with pytest.raises(MisconfigurationException, match=re.escape(said)):
        tiny_trainer(max_steps=1, **flags).fit(module, columns())


def test_a_trainer_that_clips_may_validate() -> None:
    found = tiny_trainer(gradient_clip_val=0.5).validate(module_of(), columns(), verbose=False)
    assert found[0].keys() == {"val/reward"}


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from ROWS


@pytest.mark.parametrize(
    ("flags", "loader", "rollouts"),
    [
        ({"fast_dev_run": True}, columns(), 1),
        ({"overfit_batches": 1, "max_epochs": 2}, columns(), 2),
        ({"limit_train_batches": 0.34, "max_epochs": 2}, columns(), 2),
        ({"val_check_interval": 0.5, "max_epochs": 1, "precision": "bf16-mixed"}, columns(), 3),
        ({"max_epochs": 2, "limit_train_batches": 2, "check_val_every_n_epoch": 2}, DataLoader(Endless(), batch_size=2), 4),
    ],
)
def test_lightnings_ways_to_shorten_a_run(flags: dict[str, Any], loader: DataLoader[Any], rollouts: int) -> None:
    module = module_of()
    tiny_trainer(num_sanity_val_steps=1, **flags).fit(module, loader, columns(ROWS[:2]))
    assert module.rollouts_done == rollouts


def test_a_module_is_used_again_and_again() -> None:
    module = module_of(alternation=["prefix", "suffix"])
    before = tiny_trainer().validate(module, columns(), verbose=False)[0]["val/reward"]
    tested = tiny_trainer().test(module, columns(), verbose=False)[0]
    assert tested["test/reward"] == pytest.approx(before)
    pictures = tiny_trainer().predict(module, columns())
    assert pictures is not None
    torch.testing.assert_close(torch.cat(pictures), torch.cat([module(batch) for batch in columns()]))  # type: ignore[arg-type]
    for rollouts in (1, 3):
        start = weights(module).clone()
        tiny_trainer(max_steps=rollouts - module.rollouts_done).fit(module, columns(), columns())
        assert module.rollouts_done == rollouts
        assert not torch.equal(weights(module), start)
    assert module.grpo.stage(module.rollouts_done).name == "suffix"


# --- going on from Lightning's own checkpoints --------------------------------------------------------------------------------


class Resumable(DataLoader[Any]):
    """A loader that says where it is, as those of torchdata do."""

    def __init__(self) -> None:
        super().__init__(ROWS, batch_size=2)  # type: ignore[arg-type]
        self.position = 0

    def __iter__(self) -> Iterator[Any]:
        self.position %= 3
        while self.position < 3:
            self.position += 1
            yield ROWS[2 * self.position - 2 : 2 * self.position]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


@pytest.mark.parametrize(
    ("loader", "every", "where"),
    [(Resumable, {"every_n_train_steps": 1}, [2, 3]), (columns, {"every_n_epochs": 1}, [3])],
    ids=["stateful, in mid-epoch and at its end", "plain, at the end of an epoch"],
)
def test_a_run_goes_on_exactly(tmp_path: Path, loader: Any, every: dict[str, int], where: list[int]) -> None:
    def fitted(path: Path | None = None, **options: Any) -> VARGRPO:
        module = module_of(kl_coef=0.05)
        tiny_trainer(max_epochs=2, **options).fit(module, loader(), ckpt_path=path)
        return module

    saving = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, **every)  # type: ignore[arg-type]
    whole = fitted(callbacks=saving, enable_checkpointing=True)
    for step in where:
        resumed = fitted(tmp_path / f"step={step}.ckpt")
        assert torch.equal(weights(resumed), weights(whole))
        assert resumed.rollouts_done == 6


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides the configure_model")
def test_lightnings_average_is_what_is_loaded(tmp_path: Path) -> None:
    module = module_of()
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2)
    trainer = tiny_trainer(max_steps=2, callbacks=[EMAWeightAveraging(decay=0.5), saving], enable_checkpointing=True)
    trainer.fit(module, columns())
    last = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["current_model_state"]
    loaded = VARGRPO.load_from_checkpoint(tmp_path / "step=2.ckpt")
    assert torch.equal(weights(loaded), weights(module))  # at the end of a fit the module has the average too
    assert not torch.equal(last["policy.transformer.head.weight"], loaded.policy.transformer.head.weight)


# --- a run of the command line, and scripts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cli_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a run that trained an adapter for a step, and its command."""
    folder = tmp_path_factory.mktemp("cli")
    policy = {
        "class_path": "varrl_lightning.add_lora",
        "init_args": {"rank": 2, "policy": {"class_path": "tests.tiny.tiny_policy"}},
    }
    for part, words in (("train", WORDS[:4]), ("validation", WORDS[4:])):
        (folder / part).write_text("".join(f'{{"text": "\\"{word}\\""}}\n' for word in words))
    command = ["fit", f"--model.policy={policy}", "--model.reward=tests.tiny.LeftBright", "--model.mask_source=full", "--model.m=2"]
    command += ["--model.group_size=2", "--model.score.kind=guided", "--model.kl_coef=0.01", "--seed_everything=3"]
    command += [f"--data.{part}={folder / part}" for part in ("train", "validation")] + ["--trainer.limit_val_batches=1"]
    command += ["--data.batch_size=2", "--trainer.max_steps=1", "--trainer.accelerator=cpu"]
    command += [f"--trainer.default_root_dir={folder / 'run'}"]
    assert main_of(command) == 0
    return folder / "run", command


def main_of(arguments: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["varrl", *arguments])
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        return main()


def test_a_run_of_the_command_line_is_loaded_in_a_plain_script(cli_run: tuple[Path, list[str]], fresh: Fresh) -> None:
    folder, _ = cli_run
    checkpoint = folder / "checkpoints" / "last.ckpt"
    script = f"""
from varrl_lightning import VARGRPO
module = VARGRPO.load_from_checkpoint({str(checkpoint)!r})
kind = module.grpo.objective.score.kind
print(module.seed, module.rollouts_done, kind, module.policy.transformer.head.lora_A.default.weight.sum().item())
"""
    result = fresh(script)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert result.stdout.split()[:3] == ["3", "1", "guided"]
    assert float(result.stdout.split()[3]) == pytest.approx(saved["policy.transformer.head.lora_A.default.weight"].sum().item())


def test_the_command_lines_arguments_win_over_those_in_the_checkpoint(cli_run: tuple[Path, list[str]]) -> None:
    folder, command = cli_run
    assert main_of([*command, f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}", "--model.guards.max_bad_steps=42"]) == 0
    assert "max_bad_steps: 42" in (folder / "config.yaml").read_text()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    import existing_pipeline
    import load_checkpoint

    path, rewards = existing_pipeline.train(steps=2, folder=tmp_path)
    assert len(rewards) == 2
    assert all(0 < reward < 1 for reward in rewards)
    assert Path(path) == tmp_path / "best.ckpt"
    load_checkpoint.draw(path, ['"STONE"', '"RIVER"'], tmp_path / "best.png")
    assert capsys.readouterr().out.endswith(f"after 2 updates: 2 pictures in {tmp_path / 'best.png'}\n")
    with Image.open(tmp_path / "best.png") as picture:
        assert picture.size == (120, 48)
