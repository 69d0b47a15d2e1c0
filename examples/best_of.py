"""What the best of several images is worth, and what pruning by drafts saves: accuracy and seconds, on the embedded model.

    python examples/best_of.py [--prompts 200] [--candidates 8] [--prune_at 4] [--output FILE]

Samples test prompts by the model that comes with the package: one image each, the best of N whole images by the OCR reward, and the
best of N drafts of the first scales, completed. Then whole images again, of as many candidates as the pruned ones' time allows. The
accuracy is by the OCR reward, which has chosen, and by Tesseract, which has not (the extra `tesseract`). Rows take turns, prompt
batch by prompt batch, so that seconds may be compared within a run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from varrl_lightning import LetteringPolicy, Prompt
from varrl_lightning.evaluation.best_of import BestOf, best_of
from varrl_lightning.evaluation.evaluate import EVALUATION_UPDATE, sample_images
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.metrics.text import WordAccuracy
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.rewards.weighted import WeightedRewards

AT_ONCE = 20


def accuracy(reader: Reward, images: Tensor, prompts: Sequence[Prompt]) -> float:
    """The word accuracy of images by one reader."""
    metric, texts = WordAccuracy(), reader(images, prompts).texts
    metric.update([list(prompt.words) for prompt in prompts], [list(words) for words in texts or ()])
    return float(metric.compute())


def sampled(policy: LetteringPolicy, prompts: Sequence[Prompt], how: BestOf | None, seed: int) -> Tensor:
    """One image per prompt, the best of several or the only one."""
    if how is None:
        return sample_images(policy, prompts, policy.default_sampling, seed)
    keys = prompt_keys(seed, EVALUATION_UPDATE, prompts, policy.device)
    return best_of(policy, prompts, policy.default_sampling, keys, how, images_at_once=64).images


def measure(policy: LetteringPolicy, prompts: Sequence[Prompt], ways: dict[str, BestOf | None]) -> dict[str, tuple[Tensor, float]]:
    """The images of each way, and its seconds."""
    images, seconds = defaultdict(list), defaultdict(float)
    for first in range(0, len(prompts), AT_ONCE):
        for name, how in ways.items():
            began = time.perf_counter()
            images[name].append(sampled(policy, prompts[first : first + AT_ONCE], how, seed=0))
            seconds[name] += time.perf_counter() - began
    return {name: (torch.cat(parts), seconds[name]) for name, parts in images.items()}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--prune_at", type=int, default=4, help="scales")
    parser.add_argument("--output", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    policy, N, m = LetteringPolicy.from_pretrained(), options.candidates, options.prune_at
    prompts = load_prompts("builtin:lettering/test.jsonl")[: options.prompts]
    ocr = OCRReward(detect=False, max_line_width=96, min_confidence=0.5)
    rewards, readers = WeightedRewards.from_spec(ocr), {"ocr": ocr}
    if why_not_installed() is None:
        readers["tesseract"] = TesseractReward()
    ways: dict[str, BestOf | None] = {
        "one image": None,
        f"best of {N}": BestOf(N, rewards),
        f"best of {N}, pruned at {m}": BestOf(N, rewards, prune_at=m),
    }
    found = measure(policy, prompts, ways)
    (_, of_whole), (_, of_pruned) = (found[name] for name in list(ways)[1:])
    affordable = max(2, round(N * of_pruned / of_whole))
    found |= measure(policy, prompts, {f"best of {affordable}, as long as pruned": BestOf(affordable, rewards)})
    rows = []
    for name, (images, seconds) in found.items():
        measured = {reader: round(accuracy(by, images, prompts), 4) for reader, by in readers.items()}
        rows.append({"way": name, "seconds": round(seconds, 1), **measured})
        print(
            f"{name:<32}{seconds:8.1f} s   " + "   ".join(f"{reader} {value:.3f}" for reader, value in measured.items()), flush=True
        )
    if options.output:
        options.output.write_text(json.dumps({"prompts": len(prompts), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
