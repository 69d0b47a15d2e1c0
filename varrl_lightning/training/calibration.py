"""The steps that score drafts and whole images of the same branches: may one go on training on drafts?"""

from __future__ import annotations

import math

from varrl_lightning.grpo.credit import BranchScores
from varrl_lightning.grpo.grpo import GRPO
from varrl_lightning.metrics.rank_agreement import DraftAgreement
from varrl_lightning.training.counters import RunCounters
from varrl_lightning.types import Stage


def calibration_metrics(grpo: GRPO, stage: Stage, scores: BranchScores, counters: RunCounters) -> dict[str, float]:
    """What a step says of drafts, pooled with the groups of earlier ones, which `counters` keep; nothing where none was scored.

    `draft/reward` is the mean reward of this step's drafts. `draft/tau`, `draft/ceiling` and `draft/ratio` are those of the last
    groups (see `DraftAgreement`), whose number is `draft/groups`; `draft/ratio_low` and `draft/ratio_high` are the interval of the
    ratio, once there are groups enough for one.
    """
    if scores.drafts is None:
        return {}
    drafts, taus = grpo.draft_taus(scores, stage)
    counters.keep_draft_taus(taus[taus.isfinite().all(dim=-1)].tolist())
    found = DraftAgreement.of(counters.draft_taus)
    metrics = {"reward": float(drafts.nanmean()), "tau": found.tau, "ceiling": found.ceiling, "ratio": found.ratio}
    metrics |= {"groups": float(found.groups)}
    if found.enough:
        metrics |= {"ratio_low": found.low, "ratio_high": found.high}
    return {f"draft/{name}": value for name, value in metrics.items() if math.isfinite(value)}
