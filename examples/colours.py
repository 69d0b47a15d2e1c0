"""What reinforcement learning does to the colours of the embedded model's signs, which no reward looks at.

    python examples/colours.py [CHECKPOINT ...]

Prints, for the model that comes with the package and for each checkpoint of a run, from images of the test prompts: the share
of signs that have the colour which their prompt names, and where it names none, how often each colour is painted, with the entropy
in bits (3 when all eight are equally frequent).
"""

from __future__ import annotations

import argparse
import colorsys
import math
from collections import Counter

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning import VARGRPO
from varrl_lightning.evaluation.evaluate import sample_images
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.policies.lettering import LetteringPolicy, sign_of
from varrl_lightning.policies.lettering_sign import COLOURS
from varrl_lightning.prompts.files import load_prompts

TONES = torch.tensor([colorsys.hsv_to_rgb(hue, saturation, 0.91) for hue, saturation in COLOURS.values()])
"""The colours as they are rendered, in the middle of their brightness."""


def colours(images: Float[Tensor, "N 3 H W"]) -> list[str]:
    """The nearest colour to each sign's ground: its median pixel, since letters cover less than half."""
    ground = images.flatten(2).median(dim=2).values  # (N, 3)
    ground = ground * (0.91 / ground.max(dim=1, keepdim=True).values)  # dark or light, a colour is the same
    return [list(COLOURS)[i] for i in torch.cdist(ground, TONES).argmin(dim=1).tolist()]


def entropy(counts: Counter[str]) -> float:
    """The entropy of the frequencies, in bits."""
    shares = [n / counts.total() for n in counts.values()]
    return -sum(p * math.log2(p) for p in shares)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT")
    parser.add_argument("--prompts", default="builtin:lettering/test.jsonl")
    arguments = parser.parse_args()
    prompts = load_prompts(arguments.prompts)
    asked = [sign_of(prompt).colour for prompt in prompts]
    if None not in asked or not any(asked):
        parser.error(f"{arguments.prompts}: some prompts must name a colour and some must not")
    policies: dict[str, VARPolicy] = {"embedded": LetteringPolicy.from_pretrained()}
    policies |= {path: VARGRPO.load_from_checkpoint(path).policy for path in arguments.checkpoints}
    for name, policy in policies.items():
        painted = colours(sample_images(policy, prompts, policy.default_sampling, seed=0))
        right = [painted_one == wanted for painted_one, wanted in zip(painted, asked, strict=True) if wanted]
        free = Counter(painted_one for painted_one, wanted in zip(painted, asked, strict=True) if not wanted)
        print(f"{name}: named colours kept {sum(right)} of {len(right)} ({sum(right) / len(right):.2f})")
        shown = ", ".join(f"{colour} {n / free.total():.2f}" for colour, n in free.most_common())
        print(f"  where none is named ({free.total()}): {shown}; entropy {entropy(free):.2f} bits")


if __name__ == "__main__":
    main()
