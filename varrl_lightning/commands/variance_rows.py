"""Of what the variance of a return comes at one middle step m, as a row of the table of `varrl variance`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from varrl_lightning.algorithms.stages import FirstScale, prefix_stage, suffix_stage
from varrl_lightning.algorithms.variance_components import (
    correlation_within_groups,
    implied_continuations,
    whole_continuations,
)
from varrl_lightning.grpo.return_variance import ReturnMeter
from varrl_lightning.module import VARGRPO
from varrl_lightning.types import Prompt, Stage

SMALL = 0.02
"""Standard deviation of a suffix group below which it is counted: normalised by it, a reward's own noise becomes an advantage."""
SIGNALS = (1, 2, 4)
"""Numbers of continuations whose signal is shown."""


@dataclass(frozen=True)
class Row:
    """What was measured at one m; NaN is what the rewards do not tell.

    Args:
        m: scales of the prefix.
        tokens: of the prefix.
        within: variance between continuations of a branch.
        between: variance of the branches' expected rewards within a group; an unbiased estimate, which may be below 0.
        signal: share of signal of V from each number of continuations.
        draft: correlation, within groups, of the reward of a branch's draft (K = 0) with the mean of its continuations.
        prefix_std: mean standard deviation of R in a group of A branches with one continuation each.
        suffix_std: the same in a group of A completions of one s_m.
        suffix_small: share of the suffix groups below `SMALL`.
        branch_seconds: of a branch without continuations: its sampling and its update.
        tail_seconds: of one continuation: its sampling, decoding and scoring.
        implied: K* at these costs, before rounding; infinite where branches do not differ.
    """

    m: int
    tokens: int
    within: float
    between: float
    signal: dict[int, float]
    draft: float
    prefix_std: float
    suffix_std: float
    suffix_small: float
    branch_seconds: float
    tail_seconds: float
    implied: float

    @property
    def best(self) -> int | None:
        """K* as a whole number, at least 1; None where there is none."""
        return whole_continuations(self.implied) if math.isfinite(self.implied) else None

    def flat(self) -> dict[str, Any]:
        """Plain values, as JSON has them: what is not finite is None."""
        values = asdict(self) | {f"signal_{K}": value for K, value in self.signal.items()}
        del values["signal"]
        values |= {"implied_K": values.pop("implied"), "best_K": self.best}
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}


@dataclass(frozen=True)
class Measurement:
    """How rows are measured.

    Args:
        model: samples, scores, and is not changed.
        branches: A of all groups.
        continuations: K of the prefix groups, at least 2.
        first_scale: as of the model.
        batches: prompts, in batches of one image size.
        seed: of the noise.
    """

    model: VARGRPO
    branches: int
    continuations: int
    first_scale: FirstScale
    batches: Sequence[Sequence[Prompt]]
    seed: int

    def row(self, m: int, done: Callable[[int], None]) -> Row:
        """Sample and score the groups of all prompts at a middle step.

        Args:
            done: called with the number of prompts done after each batch.
        """
        schedule = self.model.policy.schedule()
        T = len(schedule)
        stage = prefix_stage(T, m, self.branches, self.continuations, self.first_scale)
        suffix_only = suffix_stage(T, m, self.branches)
        drafts_only = replace(stage, continuations=0)  # of the same branches
        prefix, drafts, suffix = (return_meter(self.model, s, self.seed) for s in (stage, drafts_only, suffix_only))
        prompts = 0
        for batch in self.batches:
            prefix.add(batch)
            for meter in (drafts, suffix):
                meter.add(batch, update=False)
            prompts += len(batch)
            done(prompts)
        components, costs = prefix.sums.components(), prefix.costs
        spread = group_std(suffix.rewards[..., 0])
        return Row(
            m=m,
            tokens=schedule.span(0, m),
            within=components.within,
            between=components.between,
            signal={K: components.signal(K) for K in SIGNALS},
            draft=correlation_within_groups(drafts.rewards[..., 0], prefix.rewards.nanmean(dim=-1)),
            prefix_std=_mean(group_std(prefix.rewards[..., 0])),
            suffix_std=_mean(spread),
            suffix_small=_mean((spread < SMALL).float().where(spread.isfinite(), math.nan)),
            branch_seconds=costs.branch,
            tail_seconds=costs.tail,
            implied=implied_continuations(components, costs),
        )


def return_meter(model: VARGRPO, stage: Stage, seed: int) -> ReturnMeter:
    """Measures a stage as the module would train it.

    Args:
        seed: of the noise.
    """
    return ReturnMeter(
        model.policy,
        model.grpo,
        stage,
        seed,
        reference=model.reference,
        images_at_once=model.images_at_once,
        micro_batch_size=model.micro_batches.number or stage.branches,
    )


def group_std(rewards: Float[Tensor, "P A"]) -> Float[Tensor, " P"]:
    """The unbiased standard deviation of each group's scores; NaN of fewer than two."""
    known = rewards.isfinite()
    n = known.sum(dim=1)
    filled = rewards.double().where(known, 0.0)
    mean = filled.sum(dim=1, keepdim=True) / n[:, None].clamp(min=1)
    squares = (filled - mean).square().where(known, 0.0).sum(dim=1)
    return (squares / (n - 1).clamp(min=1)).sqrt().where(n > 1, math.nan)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of the table; an empty cell is what the rewards do not tell."""
    signals = [f"V of {K}" for K in SIGNALS]
    head = ["m", "tokens", "within", "between", "ratio", *signals, "draft"]
    head += ["suffix std", "of prefix", f"under {SMALL:.2f}", "ms", "K*", "K"]
    lines = [head]
    for row in rows:
        ratio = row.within / row.between if row.between > 0 else math.inf
        lines.append(
            [
                *(str(row.m), str(row.tokens), _number(row.within, ".2e"), _number(row.between, ".2e"), _number(ratio, ".3f")),
                *(_number(row.signal[K], ".3f") for K in SIGNALS),
                _number(row.draft, ".3f"),
                _number(row.suffix_std, ".4f"),
                _number(row.suffix_std / row.prefix_std if row.prefix_std else math.nan, ".0%"),
                _number(row.suffix_small, ".0%"),
                f"{1000 * row.branch_seconds:.1f} + {1000 * row.tail_seconds:.1f} K",
                _number(row.implied, ".2f"),
                str(row.best or ""),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _mean(values: Float[Tensor, " P"]) -> float:
    known = values[values.isfinite()]
    return float(known.mean()) if len(known) else math.nan
