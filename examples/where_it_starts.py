"""How well the embedded model spells before any reinforcement learning, sampled in several ways.

    python examples/where_it_starts.py [--split test] [--no-judge] [TRANSFORMER.safetensors ...]

Prints, for each file of weights (the model that comes with the package, if none is named), word accuracy and NED by the reward's
reader, and word accuracy by Tesseract where it is installed: of complete pictures and of the same pictures decoded after m scales.
First every list of prompts as the recipes sample them, those of pre-training too, whose words the model has seen; then one list in
several ways.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from varrl_lightning.evaluation.evaluate import EVALUATION_UPDATE, Evaluation
from varrl_lightning.grpo.rollout import prompt_keys
from varrl_lightning.policies.lettering import CONTENT, LetteringPolicy
from varrl_lightning.prompts.files import load_prompts
from varrl_lightning.rewards.ocr import OCRReward
from varrl_lightning.rewards.tesseract import TesseractReward, why_not_installed
from varrl_lightning.types import Prompt, Sampling

WAYS = {
    "shipped: top 2": Sampling(top_k=2),
    "greedy": Sampling(top_k=1),
    "top 2, temperature .85": Sampling(top_k=2, temperature=0.85),
    "top 2, temperature .7": Sampling(top_k=2, temperature=0.7),
    "top 2, temperature .5": Sampling(top_k=2, temperature=0.5),
    "temperature .7": Sampling(temperature=0.7),
    "temperature .5": Sampling(temperature=0.5),
    "top 2, guidance 1.5": Sampling(top_k=2, cfg=1.5),
    "top 2, guidance 2": Sampling(top_k=2, cfg=2.0),
    "all codes, temperature 1": Sampling(),
}
SPLITS = ("pretraining", "train", "validation", "test")


def read(images: Tensor, prompts: Sequence[Prompt], reward: OCRReward) -> dict[str, float]:
    """Word accuracy and NED of pictures by one reader."""
    scores = reward(images, prompts)
    return Evaluation(prompts, images, scores.values, {"ocr": scores}, scores.texts, scores.usable).metrics()


@torch.no_grad()
def sample_both(policy: LetteringPolicy, prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> tuple[Tensor, Tensor]:
    """The same pictures after all scales, and after the scales of content."""
    keys = prompt_keys(seed, EVALUATION_UPDATE, prompts, policy.device)
    complete, content = [], []
    for first in range(0, len(prompts), 50):
        rows = slice(first, first + 50)
        state = policy.sample(policy.begin(policy.encode_prompts(prompts[rows]), sampling, keys[rows]), CONTENT)
        content.append(policy.decode_latent(state.latent))
        complete.append(policy.decode_latent(policy.sample(state, len(policy.schedule())).latent))
    return torch.cat(complete), torch.cat(content)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="*", default=["embedded"], metavar="TRANSFORMER")
    parser.add_argument("--split", default="test", choices=SPLITS, help="the list that is sampled in several ways (default: test)")
    parser.add_argument("--prompts", type=int, help="only the first so many prompts; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", type=int, default=len(WAYS), help="only the first so many ways of sampling")
    parser.add_argument("--no-judge", action="store_true", help="leave Tesseract out, which takes most of the time")
    arguments = parser.parse_args()
    lists = {split: load_prompts(f"builtin:lettering/{split}.jsonl")[: arguments.prompts] for split in SPLITS}
    readers = {"ocr": OCRReward(detect=False, max_line_width=96, min_confidence=0.5)}
    if not arguments.no_judge and why_not_installed() is None:
        readers["tesseract"] = TesseractReward(detect=False)
    ways = list(WAYS.items())[: arguments.ways]
    runs = [(split, *ways[0]) for split in SPLITS] + [(arguments.split, *way) for way in ways[1:]]
    print(f"whole / after {CONTENT} scales")
    for path in arguments.weights:
        policy = LetteringPolicy.from_pretrained(path)
        for split, name, sampling in runs:
            prompts = lists[split]
            pictures = sample_both(policy, prompts, sampling, arguments.seed)
            metrics = {reader: [read(images, prompts, reward) for images in pictures] for reader, reward in readers.items()}
            shown = ", ".join(f"{reader} {w['word_accuracy']:.3f} / {c['word_accuracy']:.3f}" for reader, (w, c) in metrics.items())
            words = sum(len(prompt.words) for prompt in prompts)
            print(
                f"{path} | {split}, {len(prompts)} prompts of {words} words | {name} | {shown}, NED {metrics['ocr'][0]['ned']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
