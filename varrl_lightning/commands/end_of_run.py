"""What `varrl fit` says at its end: what was reached, and the commands that come next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L

from varrl_lightning.callbacks import Checkpoints
from varrl_lightning.callbacks.best_metric import deciding_metric
from varrl_lightning.callbacks.run_folder import checkpoint_path, dry, run_folder, shown
from varrl_lightning.callbacks.summary import MEASURES
from varrl_lightning.data import PromptDataModule
from varrl_lightning.module import VARGRPO

VALIDATION = "val/"


def end_of_run(trainer: L.Trainer, module: VARGRPO, data: PromptDataModule) -> str:
    """What a run has reached and what to do next, for the console; empty where it left no checkpoint.

    The commands have the paths of the run and can be pasted into a shell. They take `best.ckpt` where there is one.
    """
    saved = {name: path for name in ("best", "last") if (path := checkpoint_path(trainer, name)).exists()}
    if dry(trainer) or not saved:
        return ""
    lines = ["Reached", *(f"  {line}" for line in _reached(trainer, module, data, saved))]
    config = run_folder(trainer) / "config.yaml"
    if config.is_file():
        lines.append("Next")
        for what, command in _commands(run_folder(trainer), next(iter(saved.values())), _example(module, data), data):
            lines += [f"  {what}:", f"    {command}"]
    return "\n".join(lines)


def _reached(trainer: L.Trainer, module: VARGRPO, data: PromptDataModule, saved: dict[str, Path]) -> Iterator[str]:
    checkpoints = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
    summary = _summary(run_folder(trainer) / "summary.json")
    metric = None if checkpoints is None else checkpoints.best_of
    measured = {f"{VALIDATION}{name}" for name in MEASURES if summary.get(f"{name}_after") is not None}
    name = (metric or deciding_metric(module, {*trainer.callback_metrics, *measured}).name).removeprefix(VALIDATION)
    name = name if name in MEASURES else "reward"
    before, after = summary.get(f"{name}_before"), summary.get(f"{name}_after")
    if after is not None:
        kind = "validation" if data.paths["test"] is None else "test"
        start = "" if before is None else f"{before:.3f} -> "
        yield f"{MEASURES[name]} {start}{after:.3f}, on {summary['eval_samples']} {kind} prompts, after {summary['steps']} steps"
    best = None if checkpoints is None else checkpoints.best
    if "best" in saved:
        value = "" if best is None else f"  {metric} {best:.3f}, the highest of all validations"
        now = trainer.callback_metrics.get(metric or "")
        later = "" if now is None or best is None or float(now) >= best else f"; the last had {float(now):.3f}"
        yield f"{shown(saved['best'])}{value}{later}"
    if "last" in saved:
        yield f"{shown(saved['last'])}  after step {module.rollouts_done}"


def _summary(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _commands(run: Path, checkpoint: Path, example: str, data: PromptDataModule) -> Iterator[tuple[str, str]]:
    """What each command does, and the command."""
    given = f"--config {_quoted(run / 'config.yaml')} --ckpt_path {_quoted(checkpoint)}"
    pictures, scores, weights = (_quoted(run / name) for name in ("pictures", "test", "policy.safetensors"))
    yield (
        "Sample prompts of your own",
        f"varrl predict {given} --prompt {shlex.quote(example)} --output {pictures}",
    )
    if data.paths["test"] is not None:
        yield "Score this checkpoint on the test prompts", f"varrl test {given} --output {scores}"
    else:
        yield "Score this checkpoint on the validation prompts", f"varrl validate {given}"
    yield "Write the policy as one file of weights", f"varrl export {given} --output {weights}"


def _example(module: VARGRPO, data: PromptDataModule) -> str:
    """A text that the policy takes as a prompt: the first of the run's, or its class where the policy knows classes alone."""
    prompt = next(prompt for prompts in data.prompts.values() for prompt in prompts)
    classes = getattr(module.policy, "class_names", None)
    return str(prompt.text if classes is None else classes[prompt.label or 0])


def _quoted(path: Path) -> str:
    return shlex.quote(shown(path))
