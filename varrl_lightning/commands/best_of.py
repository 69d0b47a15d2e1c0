"""The options of `varrl predict` that keep the best of several images of a prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.errors import ConfigError
from varrl_lightning.evaluation.best_of import BestOf
from varrl_lightning.module import VARGRPO
from varrl_lightning.rewards.weighted import WeightedRewards
from varrl_lightning.types import Prompt

FILE = "best_of.json"


def add_best_of(parser: LightningArgumentParser) -> None:
    """Add the options to the parser of `predict`."""
    # `int | None` is not what jsonargparse shows as optional in its help.
    parser.add_argument("--best_of", type=Optional[int], default=None, help="Images of each prompt, of which the best is kept.")  # noqa: UP045
    parser.add_argument("--best_by", type=Optional[Any], default=None, help="The reward that chooses; model.reward by default.")  # noqa: UP045
    parser.add_argument("--prune_at", type=Optional[int], default=None, help="Scales whose draft is scored; the best is completed.")  # noqa: UP045


def built_best_of(options: Namespace, model: VARGRPO, prompts: Sequence[Prompt]) -> BestOf | None:
    """How to choose, with its rewards ready; None where each prompt has one image.

    Raises:
        ConfigError: on options that need `--best_of`.
        ValueError: on a number out of its range, and where the rewards cannot score these prompts.
        PluginError: on a reward that cannot be built.
    """
    if options.best_of is None:
        given = [f"--{name}" for name in ("best_by", "prune_at") if options[name] is not None]
        if given:
            raise ConfigError(f"{' and '.join(given)} chooses among several images of a prompt: give their number as --best_of")
        return None
    spec = options.best_by
    rewards = model.rewards if spec is None else WeightedRewards.from_spec(spec.as_dict() if isinstance(spec, Namespace) else spec)
    how = BestOf(options.best_of, rewards, options.prune_at)
    how.check_policy(model.policy)
    rewards.check_prompts(prompts)
    rewards.prepare()
    return how


def report_best_of(how: BestOf, candidates: Sequence[Sequence[float]], prompts: Sequence[Prompt], folder: Path) -> str:
    """Write `best_of.json`, what each candidate was worth; returns a line about the choice.

    Args:
        candidates: of each prompt; NaN where there is no score.
    """
    values = [[value if math.isfinite(value) else None for value in each] for each in candidates]
    entries = [{"prompt": prompt.text, "values": each} for prompt, each in zip(prompts, values, strict=False)]
    content = {"rewards": list(how.rewards.terms), "prune_at": how.prune_at, "prompts": entries}
    replace_text(folder / FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    scored = [known for each in values if (known := [value for value in each if value is not None])]
    names, of = " + ".join(how.rewards.terms), "" if how.prune_at is None else f" of drafts of {how.prune_at} scales"
    if not scored:
        return f"No candidate has a score by {names}: the first one of each prompt was kept. See {folder / FILE}"
    best = sum(map(max, scored)) / len(scored)
    mean = sum(sum(each) / len(each) for each in scored) / len(scored)
    return f"Best of {how.candidates} by {names}{of}: {best:.3f}; mean of all candidates {mean:.3f}. All values: {folder / FILE}"
