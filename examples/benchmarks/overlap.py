"""The time saved by scoring images while the next ones are sampled: seconds per rollout with and without, in one run.

    python examples/benchmarks/overlap.py

Samples rollouts of the embedded model in parts and scores them, in turn, after sampling and during it, with the OCR reward (which
competes for the same processor) and with one that waits as for a service (`--wait` seconds per image).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from varrl_lightning import LetteringPolicy, Prompt
from varrl_lightning.algorithms.stages import cycle
from varrl_lightning.grpo.rollout import prompt_keys, sample_tree
from varrl_lightning.rewards.background import BackgroundScoring
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.weighted import WeightedRewards

WORDS = ("STONE", "RIVER", "BREAD", "CLOUD", "PLANT", "HORSE", "CANDY", "TIGER")


class Waiting:
    """A reward that waits as for a service, and computes almost nothing."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        time.sleep(self.seconds * len(images))
        return images.mean(dim=(1, 2, 3))


def rollout_seconds(policy: LetteringPolicy, reward: Any, beside: bool, branches: int, update: int) -> float:
    rewards, prompts = WeightedRewards.from_spec(reward), [Prompt(f'"{word}"') for word in WORDS]
    stage = cycle(len(policy.schedule()), 4, branches, 2, ["prefix"])[0]
    keys = prompt_keys(0, update, prompts, policy.device)
    start = time.perf_counter()
    with BackgroundScoring(rewards) as scoring:
        rollout = sample_tree(
            policy, prompts, stage, policy.default_sampling, keys, stage.images_per_prompt, scoring.add if beside else None
        )
        if beside:
            scoring.result()
        else:
            rewards.score_all(rollout.images, rollout.image_prompts)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--wait", type=float, default=0.02, help="seconds an image of the waiting reward")
    options = parser.parse_args()
    policy = LetteringPolicy.from_pretrained()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(WORDS)} parts of {2 * options.branches} images")
    for name, reward in (("ocr", OCRReward(detect=False)), (f"waiting {options.wait} s", Waiting(options.wait))):
        times: dict[bool, list[float]] = {False: [], True: []}
        for update in range(options.repeats + 1):
            for beside in (False, True):
                taken = rollout_seconds(policy, reward, beside, options.branches, update)
                if update:  # the first warms up
                    times[beside].append(taken)
        after, along = (statistics.median(times[beside]) for beside in (False, True))
        print(f"{name}: scored after sampling {after:.2f} s, during it {along:.2f} s per rollout, ratio {after / along:.2f}")


if __name__ == "__main__":
    main()
