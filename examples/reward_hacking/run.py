"""Whether the callback `RewardHacking` tells a hacked reward from an honest one: three seeds of each, on the embedded model.

    python examples/reward_hacking/run.py [--seeds 0 1 2] [--runs FOLDER]

Trains by the size as a JPEG file, by the darkness of the text (`dark_text.py`), and honestly by the OCR reward, otherwise as
configs/quickstart.yaml does. Training never sees the OCR reward of the first two, and Tesseract of the last one (the extra
`tesseract`). It checks 200 validation prompts every five steps, and a run ends at its first alarm. Prints for each run its step,
and how much word accuracy the prompts had lost by then. Runs that exist already are not repeated. Writes results.json
beside this file.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OCR = {"class_path": "ocr", "init_args": {"detect": False, "max_line_width": 96, "min_confidence": 0.5}}
READERS = {"jpeg_size": "ocr", "dark_text": "ocr", "honest": "tesseract"}
"""The judge of each kind of run."""
TITLES = {"jpeg_size": "the size as a JPEG", "dark_text": "dark text", "honest": "the OCR reward"}
KINDS: dict[str, list[str]] = {
    "jpeg_size": ["--model.reward=jpeg_size", f"--model.evaluate_with={json.dumps({'ocr': OCR})}"],
    "dark_text": ['--model.reward={"class_path": "dark_text.DarkText"}', f"--model.evaluate_with={json.dumps({'ocr': OCR})}"],
    "honest": ["--model.evaluate_with=tesseract"],
}


STEPS, EVERY, PROMPTS = 100, 5, 200
RATES = {"jpeg_size": 4e-5, "dark_text": 2e-5, "honest": 4e-5}
"""Learning rates, constant: at the quick-start's a hacked reward ruins the words within a few checks."""


def train(kind: str, seed: int, folder: Path) -> None:
    """One run of the command line, with a check every so many steps."""
    command = [sys.executable, "-m", "varrl_lightning", "fit", "--config", "quickstart.yaml", *KINDS[kind]]
    command += [f"--seed_everything={seed}", f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={EVERY}"]
    command += [f"--model.optimizer.init_args.lr={RATES[kind]}", "--model.lr_scheduler=null"]
    command += ["--trainer.limit_val_batches=1", "--data.eval_batch_size=8"]
    command += ["--trainer.callbacks+=RewardHacking", f"--trainer.callbacks.prompts={PROMPTS}"]
    command += ["--trainer.callbacks.stop=true"]
    command += ["--trainer.callbacks+=Summary", "--trainer.callbacks.max_prompts=0"]
    command += ["--trainer.callbacks+=SampleGrids", "--trainer.callbacks.every_n_validations=0"]
    command += [f"--trainer.default_root_dir={folder}"]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)


def checks(folder: Path) -> list[dict[str, float]]:
    """The numbers of each check of a run; `step` counts updates that are done."""
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = [
            {k.removeprefix("hacking/"): float(v) for k, v in row.items() if k.startswith("hacking/") and v}
            | {"step": float(row["step"])}
            for row in csv.DictReader(file)
        ]
    measured = [row for row in rows if "alarms" in row]
    return [row | {"step": row["step"] + 1 if i else 0.0} for i, row in enumerate(measured)]


def result(kind: str, seed: int, folder: Path) -> dict[str, Any]:
    """What the checks of a run came to; the alarm is the first one."""
    rows, judge = checks(folder), READERS[kind]
    accuracy = [round(row[f"judges/{judge}/word_accuracy/mean"], 4) for row in rows]
    fired = next((i for i, row in enumerate(rows) if row["alarms"]), None)
    file = folder / "alarms.json"
    alarms = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return {
        "trained_by": TITLES[kind],
        "judge": judge,
        "seed": seed,
        "steps": [int(row["step"]) for row in rows],
        "reward": [round(row["reward/mean"], 4) for row in rows],
        "word_accuracy": accuracy,
        "diversity": [round(row["diversity/mean"], 4) for row in rows],
        "alarm_step": None if fired is None else int(rows[fired]["step"]),
        "lost_by_then": None if fired is None else round(accuracy[0] - accuracy[fired], 4),
        "fallen": [alarm["name"] for alarm in alarms],
        "alarms": [alarm["text"] for alarm in alarms],
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/reward_hacking"), help="a folder for the runs")
    options = parser.parse_args()
    results = []
    for kind, seed in itertools.product(KINDS, options.seeds):
        folder = options.runs / f"{kind}-{seed}"
        if not (folder / "summary.json").is_file():
            train(kind, seed, folder)
        results.append(one := result(kind, seed, folder))
        alarm = "no alarm" if one["alarm_step"] is None else f"alarm at step {one['alarm_step']}, {one['lost_by_then']:+.3f} lost"
        accuracy = f"accuracy {one['word_accuracy'][0]:.3f} to {one['word_accuracy'][-1]:.3f}"
        print(f"{kind:<10} seed {seed}  {accuracy}  {alarm}", flush=True)
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
