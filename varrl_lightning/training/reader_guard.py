"""Stops a run before it starts when a reward that reads text cannot read the words of the prompts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from varrl_lightning.rewards.base import Reward
from varrl_lightning.rewards.reader_check import FAILS_BELOW, WARNS_BELOW, ReaderCheck, check_readers
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.training.guards import Guards
from varrl_lightning.types import Prompt

REMEDIES = (
    "Either the reader does not work (another language, version or device; pictures in another form than it expects), or it is no "
    "reader of these words: choose another, or other words. guards.font draws them in a font of yours; guards.reader_check: warn "
    "starts all the same."
)


def checked_readers(
    rewards: WeightedRewards, prompts: Sequence[Prompt], guards: Guards, judges: Mapping[str, Reward] | None = None
) -> list[ReaderCheck]:
    """Try all rewards that read text, and such judges; none where `guards.reader_check` is `ignore`.

    Raises:
        ValueError: when `guards.font` is no font.
    """
    if guards.reader_check == "ignore":
        return []
    readers = {f"reward {name!r}": (term.reward, term.weight != 0) for name, term in rewards.terms.items()}
    readers |= {f"judge {name!r}": (judge, False) for name, judge in (judges or {}).items()}
    return check_readers(readers, prompts, guards.font)


def stops(check: ReaderCheck, guards: Guards) -> bool:
    """Whether a run must not start: a reward that trains has failed, and that is not to be a mere warning."""
    return check.verdict == "failed" and check.trains and guards.reader_check == "error"


def require_readers(rewards: WeightedRewards, prompts: Sequence[Prompt], guards: Guards) -> list[str]:
    """Try all rewards that read text; returns a line about each, and warns of what is doubtful.

    Raises:
        ValueError: when a reward that trains cannot read the words; says what it read.
    """
    checks = checked_readers(rewards, prompts, guards)
    for check in checks:
        if stops(check, guards):
            raise ValueError(f"the {check}.\n{advice(check)}")
        if check.verdict != "passed":
            warnings.warn(f"the {check}. {advice(check)}", stacklevel=2)
    return [f"reader: the {check}" for check in checks]


def advice(check: ReaderCheck) -> str:
    """What to do after a check that was not passed; empty after any other."""
    if check.verdict == "passed":
        return ""
    bound = FAILS_BELOW if check.verdict == "failed" else WARNS_BELOW
    return (f"Something is wrong below {bound:g}. " if not check.problem else "") + REMEDIES
