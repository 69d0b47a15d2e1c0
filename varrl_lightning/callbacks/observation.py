"""What a policy's images are like under a sampler, for the alarm about a reward that is hacked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.word_metrics import words_found
from varrl_lightning.evaluation.evaluate import Evaluation
from varrl_lightning.metrics.image_statistics import group_diversity, image_statistics, text_area
from varrl_lightning.module import VARGRPO
from varrl_lightning.rewards.pixels import JpegSize
from varrl_lightning.types import Prompt, Sampling
from varrl_lightning.types.normal_form import normal_words


@dataclass(frozen=True)
class Observation:
    """Numbers of images of fixed prompts.

    Args:
        watched: a number of each prompt, NaN where there is none, by `reward`, `judges/NAME`, of a judge that reads also
            `judges/NAME/word_accuracy`, and `diversity`.
        logged: means over the images.
    """

    watched: dict[str, Tensor]
    logged: dict[str, float]


def observe(module: VARGRPO, prompts: Sequence[Prompt], sampling: Sampling, groups: int, group_size: int) -> Observation:
    """Sample an image of each prompt, and for the first `groups` prompts a group; score and measure them.

    Every process of a run calls it, samples its share, and is given all numbers.
    """
    probe = module.evaluator.probe(prompts, module.parallel, sampling)
    watched = {name: evaluation.values.cpu() for name, evaluation in probe.items()}
    readers = {name: evaluation for name, evaluation in probe.items() if name != "reward" and evaluation.texts is not None}
    watched |= {f"{name}/word_accuracy": word_accuracy(evaluation) for name, evaluation in readers.items()}
    if groups:
        images = module.evaluator.groups(prompts[:groups], group_size, module.parallel, sampling)
        watched["diversity"] = group_diversity(images).cpu()
    logged = {f"{name}/mean": float(values.nanmean()) for name, values in appearance(probe["reward"]).items()}
    return Observation(watched, logged)


def samplers(module: VARGRPO) -> dict[str, Sampling]:
    """The training sampler, and by `deployed/` the policy's own where training samples in another way."""
    deployed = module.policy.default_sampling
    return {"": module.sampling} | ({} if deployed == module.sampling else {"deployed/": deployed})


def word_accuracy(evaluation: Evaluation) -> Float[Tensor, " N"]:
    """The share of each prompt's words that a reader has found in its image; NaN where it was not read, or has no words."""
    shares = []
    for prompt, words, was_read in zip(evaluation.prompts, evaluation.texts or (), evaluation.was_read().tolist(), strict=True):
        wanted = normal_words(prompt.words, evaluation.case)
        found = words_found(wanted, normal_words(words, evaluation.case))
        shares.append(found / len(wanted) if was_read and wanted else math.nan)
    return torch.tensor(shares)


def appearance(evaluation: Evaluation) -> dict[str, Tensor]:
    """What each image looks like, whatever it is worth.

    Returns:
        The numbers of `image_statistics`; `file_size`, kilobytes as a JPEG; and where the reward reads `text_area`, the share
        of the image in the boxes of its words, and `extra_characters`, the characters read beyond those wanted.
    """
    numbers = {name: values.cpu() for name, values in image_statistics(evaluation.images).items()}
    numbers["file_size"] = JpegSize()(evaluation.images, evaluation.prompts).cpu()
    reader = evaluation.scores.get(evaluation.reader or "")
    if reader is not None and reader.regions is not None:
        numbers["text_area"] = text_area(reader.regions, *evaluation.images.shape[-2:])
    if evaluation.texts is not None:
        wanted = [sum(map(len, prompt.words)) for prompt in evaluation.prompts]
        read = [sum(map(len, words)) for words in evaluation.texts]
        extra = torch.tensor([max(0, r - w) for r, w in zip(read, wanted, strict=True)], dtype=torch.float32)
        numbers["extra_characters"] = extra.masked_fill(~evaluation.was_read().cpu(), torch.nan)
    return numbers
