"""A reward of your own, used by its class path: nothing to register, nothing to install.

A reward is any object that can be called with images, a (N, 3, H, W) tensor of RGB in [0, 1], and their N prompts. It returns one
number per image, higher is better, in one of three forms:

    a tensor (N,)              the shortest
    a list of floats and None  None, or NaN, where the reward does not apply: that image leaves its group, or is scored by
                               the other rewards alone
    Scores(...)                with named components for the log, and regions (boxes in pixels) for Mask Propagation

It need not be differentiable, it may call a service, and it gets the prompt of each image, whose `extra` holds the columns of the
prompt file that are nobody's. Optional are:

    constructor arguments      set as `init_args`; a value is checked against the annotation, where there is one
    check_prompts(prompts)     called before training; raises a ValueError for prompts that the reward cannot score
    reads_words                True where it looks for the prompts' words: sets with the same words then overlap
    can_score(prompt)          False for a prompt that the reward leaves to others; one that none can score is refused
    prepare()                  called by a reward service before the first request, and by `varrl variance`; loads large models
    read_back(images, prompts) what a reward that reads text reads in images of single words, so that a broken reader is found
    unreadable(words)          the words that its reader can never read, with the characters that it does not know
    differentiable(images, prompts)   values with a gradient to the images, for the mask source `saliency`

Try this one from its own folder. On its own:

    python centred.py
    python -m varrl_lightning fit --config CONFIG --model.reward centred.Centred

`python -m` finds it because it searches the current folder; elsewhere put the folder on PYTHONPATH. Beside the OCR
reward, in the config:

    model:
      reward:
        text: {reward: {class_path: ocr, init_args: {detect: false}}, weight: 1.0}
        centred: {reward: {class_path: centred.Centred, init_args: {contrast: 0.3}}, weight: 0.2}

To give it a name that others can install, make it a distribution: `plugins/varrl-brightness` is one, in two files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varrl_lightning.types import Prompt


class Centred:
    """1 when the dark strokes of an image are centred from left to right, 0 when they are at one edge.

    Args:
        contrast: how much darker than the image's mean a stroke is, in (0, 1).
    """

    def __init__(self, contrast: float = 0.2) -> None:
        if not 0 < contrast < 1:
            raise ValueError(f"contrast must be in (0, 1), got {contrast}")
        self.contrast = contrast

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> list[float | None]:
        grey = images.mean(dim=1)
        ink = grey < grey.mean(dim=(1, 2), keepdim=True) - self.contrast
        x = torch.linspace(-1, 1, images.shape[-1])
        # An image without strokes is neither centred nor not.
        return [1 - abs(float(x[columns].mean())) if len(columns := i.nonzero()[:, 1]) else None for i in ink]


def main() -> None:
    from varrl_lightning.rewards.weighted import WeightedRewards

    images = torch.ones(3, 3, 24, 64)
    images[0, :, 8:16, 24:40] = 0  # in the middle
    images[1, :, 8:16, :16] = 0  # at the left edge; the third stays empty
    prompts = [Prompt(text="a stroke")] * 3
    rewards = WeightedRewards.from_spec({"class_path": "centred.Centred", "init_args": {"contrast": 0.3}})
    scores = rewards(images, prompts)
    for where, value, usable in zip(("middle", "left", "empty"), scores.values, scores.usable, strict=True):
        print(f"{where:<8}{f'{value:.2f}' if usable else 'no score'}")


if __name__ == "__main__":
    main()
