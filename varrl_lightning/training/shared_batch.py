"""The prompts of one update, which several processes sample together."""

from __future__ import annotations

from typing import Any

from varrl_lightning.errors import RunStoppedError
from varrl_lightning.grpo.rollout import Share
from varrl_lightning.mask_sources.base import MaskSource
from varrl_lightning.prompts.batches import as_prompts
from varrl_lightning.strategies import Parallel
from varrl_lightning.types import Prompt, Stage


def prompts_of_all(batch: Any, parallel: Parallel, same_everywhere: bool, rollouts_done: int = 0) -> list[Prompt]:
    """The batch that all processes were given; where they were given different batches, these joined.

    Args:
        batch: of any form that `as_prompts` reads.
        same_everywhere: whether the loader gives every process the same batch.
        rollouts_done: number of the rollout, for the error message.

    Raises:
        RunStoppedError: when such a loader has given the processes different prompts.
    """
    prompts, of_all = parallel.run_on_all(lambda: (as_prompts(batch),) * 2)
    if all(theirs == of_all[0] for theirs in of_all):
        return prompts
    if same_everywhere:
        ranks = ", ".join(str(rank) for rank, theirs in enumerate(of_all) if theirs != of_all[0])
        raise RunStoppedError(
            f"prompt order: rank {ranks} was given other prompts than rank 0 in rollout {rollouts_done}. Give all "
            "processes the same prompt file and seed."
        )
    return [prompt for theirs in of_all for prompt in theirs]


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
