"""A run that is killed with SIGKILL at random moments, saves included, and started again each time, as a cluster would.

    python -m tests.killing FOLDER --kills 50

Every process is a fork of this one, which has imported everything, so that fifty starts take no longer than the training itself.
What each must find and leave is checked; the last line on stdout is a JSON object with the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE")
EVERY = 2
"""Steps between saves."""
CONFIG = """
seed_everything: 3
model:
  policy: {{class_path: {policy}}}
  reward: {{class_path: {reward}}}
  mask_source: full
  m: {m}
  group_size: 2
  num_continuations: 2
  kl_coef: 0.01
  score: sampler
  optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 1.0e-4}}}}
  lr_scheduler: {{class_path: torch.optim.lr_scheduler.CosineAnnealingLR, init_args: {{T_max: 20}}}}
data:
  train: {folder}/train.jsonl
  validation: {folder}/validation.jsonl
  batch_size: 1
trainer:
  accelerator: cpu
  max_steps: {steps}
  max_epochs: -1
  val_check_interval: 3
  default_root_dir: {folder}/run
  callbacks:
    - {{class_path: varrl_lightning.callbacks.Checkpoints, init_args: {{every_n_steps: {every}}}}}
    - {{class_path: tests.killing.Notes, init_args: {{path: {folder}/notes}}}}
"""


class Notes(Callback):
    """A line for each start, with the step it goes on from, and one for each finished step: at once, for a kill to leave it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._note(f"start {pl_module.rollouts_done}")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self._note(f"step {pl_module.rollouts_done}")

    def _note(self, text: str) -> None:
        with Path(self.path).open("a") as file:
            file.write(text + "\n")


class Run:
    """One run in its folder; `m` is a middle step of the policy."""

    def __init__(self, folder: Path, steps: int, policy: str, reward: str, m: int = 4) -> None:
        folder.mkdir(parents=True)
        self.folder, self.checkpoints, self.notes = folder, folder / "run" / "checkpoints", folder / "notes"
        for name, words in (("train", WORDS[:5]), ("validation", WORDS[5:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": f'"{word}"'}) + "\n" for word in words))
        config = CONFIG.format(folder=folder, steps=steps, every=EVERY, policy=policy, reward=reward, m=m)
        (folder / "config.yaml").write_text(config)
        self.starts, self.ended = 0, False

    def start(self) -> int:
        """`varrl fit` in a process of its own, started again by the cluster but the first time; returns its id."""
        child = os.fork()
        if child:
            self.starts += 1
            return child
        status = 1
        try:
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["SLURM_RESTART_COUNT"] = str(self.starts)
            from varrl_lightning.commands.cli import main

            status = main(["fit", "--config", str(self.folder / "config.yaml")])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def saved(self) -> int:
        """The step of `last.ckpt`, 0 without one; every checkpoint of the run can be read."""
        steps = {}
        for name in ("last", "best"):
            path = self.checkpoints / f"{name}.ckpt"
            if path.exists():
                checkpoint = torch.load(path, weights_only=True)
                assert checkpoint["optimizer_states"][0]["state"]
                assert all(x.isfinite().all() for x in checkpoint["state_dict"].values())
                steps[name] = checkpoint["varrl"]["rollouts_done"]
        return int(steps.get("last", 0))

    def history(self) -> list[list[int]]:
        """For each start, the step it went on from and those it finished."""
        starts: list[list[int]] = []
        for line in self.notes.read_text().splitlines() if self.notes.exists() else []:
            kind, step = line.split()
            if kind == "start":
                starts.append([int(step)])
            else:
                starts[-1].append(int(step))
        return starts

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        try:
            return any(not name.endswith((".ckpt", ".earlier")) for name in os.listdir(self.checkpoints))
        except FileNotFoundError:
            return False

    def result(self) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
        """The last checkpoint, and what was logged of each step."""
        with (self.folder / "run" / "metrics.csv").open(newline="") as file:
            rows = [tuple(row[k] for k in ("step", "reward", "grad_norm", "lr", "val/reward")) for row in csv.DictReader(file)]
        return torch.load(self.checkpoints / "last.ckpt", weights_only=True), rows


def kill(run: Run, chance: random.Random, seconds: float, figures: Counter[str]) -> bool:
    """Start a run's process and kill it at some moment of the next `seconds`, or in the save that follows; False if it ended."""
    before, starts = run.saved(), len(run.history())
    child = run.start()
    moment, in_save = time.monotonic() + chance.uniform(0.0, seconds), chance.random() < 0.5
    while time.monotonic() < moment or (in_save and not run.saving()):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, (run.folder / "log").read_text()[-3000:]
            run.ended = True
            return False
        time.sleep(0.0005)
    if in_save:
        time.sleep(chance.uniform(0.0, 0.01))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    figures["kills"] += 1
    figures["within a save"] += run.saving()
    check(run, before, starts, figures)
    return True


def check(run: Run, before: int, starts: int, figures: Counter[str]) -> None:
    """What a killed process has left can be read, and no more than the steps since the last save are lost."""
    saved, history = run.saved(), run.history()
    assert saved >= before
    if len(history) == starts:
        figures["before training"] += 1
        return
    first, *steps = history[-1]
    assert first == before, f"went on from step {first}, but step {before} was saved"
    assert steps == list(range(before + 1, before + 1 + len(steps)))
    lost = (steps[-1] if steps else before) - saved
    assert 0 <= lost <= EVERY, f"{lost} steps lost"
    figures["steps lost"] += lost
    figures["most steps lost"] = max(figures["most steps lost"], lost)


def finish(run: Run) -> None:
    """Let a run go on to its end."""
    child = run.start()
    _, status = os.waitpid(child, 0)
    assert status == 0, (run.folder / "log").read_text()[-3000:]


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ by so much as a bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [where]
        return [x for key in a for x in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, (list, tuple)):
        return [x for i, (x, y) in enumerate(zip(a, b, strict=True)) for x in differences(x, y, f"{where}.{i}")]
    return [] if a == b else [where]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="varrl_lightning.LetteringPolicy.from_pretrained")
    parser.add_argument("--reward", default="ocr")
    given = parser.parse_args()
    import varrl_lightning.commands.cli  # noqa: F401  before the first fork

    torch.set_num_threads(1)
    chance, figures = random.Random(given.seed), Counter[str]()
    began = time.monotonic()
    straight = Run(given.folder / "undisturbed", given.steps, given.policy, given.reward)
    finish(straight)
    seconds = time.monotonic() - began
    expected, rows = straight.result()
    while figures["kills"] < given.kills:
        run = Run(given.folder / f"run_{figures['runs']}", given.steps, given.policy, given.reward)
        figures["runs"] += 1
        while figures["kills"] < given.kills and kill(run, chance, seconds, figures):
            pass
        if not run.ended:
            finish(run)
        found, logged = run.result()
        assert not (wrong := differences(expected, found)), f"another result after {run.starts} starts: {wrong[:5]}"
        assert logged == rows, f"{run.folder}: other rows in metrics.csv"
        assert not run.saving(), f"left behind: {os.listdir(run.checkpoints)}"
        figures["starts"] += run.starts
    print(json.dumps(dict(figures) | {"seconds": round(time.monotonic() - began), "of an undisturbed run": round(seconds, 1)}))


if __name__ == "__main__":
    main()
