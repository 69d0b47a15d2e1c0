"""Counts the images that a cycle of stages samples and the tokens that it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from varrl_lightning.schedule import Schedule
from varrl_lightning.types import Stage


@dataclass(frozen=True)
class StageCost:
    """The cost of one update of a stage, for the complete batch of prompts.

    Args:
        stage: the stage.
        times: how often the stage comes in one cycle.
        prompts: P, over all ranks.
        images: P * A * K, or P * A drafts, or both in a calibration; all of them sampled, decoded and scored.
        tokens: trained tokens: those of scales `[start, stop)` in P * A branches.
        share: of an image's tokens, how much the stage trains, in (0, 1].
        ranks: processes that share the branches.
    """

    stage: Stage
    times: int
    prompts: int
    images: int
    tokens: int
    share: float
    ranks: int = 1

    @property
    def branches_per_rank(self) -> int:
        """ceil(P * A / ranks), the same on every rank; where it does not divide, the last places repeat a branch."""
        return -(-self.prompts * self.stage.branches // self.ranks)


def cycle_costs(cycle: Sequence[Stage], schedule: Schedule, prompts: int, ranks: int = 1) -> list[StageCost]:
    """The cost of each different stage of a cycle, in the order in which they come.

    Args:
        prompts: P, prompts per update over all ranks, >= 1.
        ranks: processes that share them, >= 1.
    """
    if prompts < 1:
        raise ValueError(f"an update needs at least one prompt, got {prompts}")
    total = schedule.span(0, len(schedule))
    return [
        StageCost(
            stage=stage,
            times=list(cycle).count(stage),
            prompts=prompts,
            images=prompts * stage.scored_per_prompt,
            tokens=prompts * stage.branches * schedule.span(stage.start, stage.stop),
            share=schedule.span(stage.start, stage.stop) / total,
            ranks=ranks,
        )
        for stage in dict.fromkeys(cycle)
    ]


def cost_table(costs: Sequence[StageCost]) -> Table:
    """The costs as a table; its caption sums up one cycle."""
    table = Table(title="One cycle of updates", title_justify="left", caption=_summary(costs), caption_justify="left")
    for heading in ("stage", "updates", "prompts x A x K = images", "scales", "trained tokens", "of an image"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for cost in costs:
        stage = cost.stage
        table.add_row(
            stage.name,
            str(cost.times),
            f"{cost.prompts} x {stage.branches} x {_images_of_branch(stage)} = {cost.images}",
            f"{stage.start + 1}-{stage.stop}",
            f"{cost.tokens:,}",
            f"{cost.share:.0%}",
        )
    return table


def _images_of_branch(stage: Stage) -> str:
    if stage.scores_drafts:
        return "1 draft"
    return f"({stage.continuations} + 1 draft)" if stage.with_drafts else str(stage.continuations)


def _summary(costs: Sequence[StageCost]) -> str:
    updates = sum(cost.times for cost in costs)
    images = sum(cost.times * cost.images for cost in costs)
    tokens = sum(cost.times * cost.tokens for cost in costs)
    return (
        f"In all {updates} update{'s' * (updates > 1)}, {images:,} images sampled and scored, {tokens:,} tokens trained.\n"
        "A: branches of a prompt, to be compared; K: continuations of a branch.\n"
        "Scales count from 1, as in the paper." + "".join(f"\n{line}" for line in _over_ranks(costs))
    )


def _over_ranks(costs: Sequence[StageCost]) -> list[str]:
    """Lines about how the branches of each stage are divided among ranks; none for one process."""
    if costs[0].ranks == 1:
        return []
    lines = []
    for cost in costs:
        ranks, each, A, branches = cost.ranks, cost.branches_per_rank, cost.stage.branches, cost.prompts * cost.stage.branches
        images = each * cost.stage.scored_per_prompt // A
        groups = f"{each // A} whole groups" if each % A == 0 else f"groups of {A} are split"
        idle = ranks * each - branches
        lines.append(
            f"{cost.stage.name}: {branches} branches over {ranks} ranks: {each} branches, {images} images "
            f"on each ({groups}{f'; {idle} of {ranks * each} places repeat a branch' if idle else ''})."
        )
    return lines
