"""The prompts of one update, which several processes sample together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DistributedSampler

from varrl_lightning.data import EvaluationBatches, TrainingBatches
from varrl_lightning.errors import RunStoppedError
from varrl_lightning.grpo.rollout import Share
from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.policies.base import VARPolicy
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.strategies import Parallel
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.training.cut_prompts import warn_of_cut_batch
from varrl_lightning.types import Prompt, Stage

Batches = Literal["shared", "separate", "unknown"]
"""Whether a loader gives all processes one batch, each a batch of its own, or does not say."""


def batches_of(trainer: L.Trainer | None, equal_batches: Literal["auto", "shared", "separate"] = "auto") -> Batches:
    """What the loader of the stage that a Trainer is in gives its processes.

    Args:
        equal_batches: what the user says of a loader that is none of this package's; see `Guards`.
    """
    loaders = [] if trainer is None else list(_loaders(trainer))
    if loaders and all(isinstance(loader, (TrainingBatches, EvaluationBatches)) for loader in loaders):
        return "shared"
    if equal_batches != "auto":
        return equal_batches
    return "separate" if any(map(_is_split, loaders)) else "unknown"


def _loaders(trainer: L.Trainer) -> Iterator[Any]:
    """The loaders of the present stage."""
    if trainer.training:
        given = trainer.train_dataloader
    else:
        given = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    if given is not None:
        yield from given if isinstance(given, (list, tuple)) else [given]


def _is_split(loader: Any) -> bool:
    """Whether a sampler, as Lightning puts one into a DataLoader, gives each process other rows."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    samplers = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return any(isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1 for sampler in samplers)


def prompts_of_all(batch: Any, parallel: Parallel, batches: Batches, counters: RunCounters, policy: VARPolicy) -> list[Prompt]:
    """The prompts of one update: the batch that all processes share, or the batches of all of them, joined in their order.

    Equal batches of an unknown loader are shared, unless it has given the processes different ones before.

    Args:
        batch: of any form that `as_prompts` reads.
        batches: what the loader gives; see `batches_of`.
        counters: name the rollout in the error message, and remember that the batches of an unknown loader have differed.
        policy: what samples the prompts: those that it does not read to their ends are warned of.

    Raises:
        RunStoppedError: when batches are shared, but the processes were given different prompts.
    """
    prompts, of_all = parallel.run_on_all(lambda: (as_prompts(batch),) * 2)
    warn_of_cut_batch(prompts, policy)
    equal = all(theirs == of_all[0] for theirs in of_all)
    if batches == "shared" and not equal:
        ranks = ", ".join(str(rank) for rank, theirs in enumerate(of_all) if theirs != of_all[0])
        raise RunStoppedError(
            f"prompt order: rank {ranks} was given other prompts than rank 0 in rollout {counters.rollouts_done}. Give all "
            "processes the same prompt file and seed."
        )
    if batches == "unknown":
        counters.separate_batches = int(counters.separate_batches or not equal)
        batches = "separate" if counters.separate_batches else "shared"
        if batches == "shared" and len(of_all) > 1:
            rank_zero_warn(SHARED)
    return prompts if batches == "shared" else [prompt for theirs in of_all for prompt in theirs]


SHARED = (
    "all processes were given the same prompts, by a loader without a DistributedSampler: they are taken for one batch that the "
    "processes share. Set guards.equal_batches to shared if it is one, or to separate if each process draws prompts of its own"
)


def share_of_branches(prompts: int, stage: Stage, mask_source: MaskSource, parallel: Parallel) -> Share:
    """The branches of a batch that this process samples.

    Args:
        prompts: P, number of prompts of the batch.

    Raises:
        ValueError: when groups would be split over processes, but the mask source compares the images of a group.
    """
    share = Share.of(prompts * stage.branches, parallel.rank, parallel.world_size)
    if mask_source.whole_groups and len(share.items) % stage.branches:
        raise ValueError(
            f"mask source {type(mask_source).__name__} compares the images of a prompt, but the groups of {prompts} "
            f"prompts are split over {parallel.world_size} processes. Make the prompts per update a multiple of that."
        )
    return share
