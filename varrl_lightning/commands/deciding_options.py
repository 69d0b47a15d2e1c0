"""What decides the gradients of a configuration, as text by name, so that sums of other gradients are told from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace

from varrl_lightning.prompts.sets import prompt_line
from varrl_lightning.types import Prompt
from varrl_lightning.weights.fingerprint import digest

WITHOUT_EFFECT = (
    *("micro_batch_size", "images_at_once", "updates_per_rollout", "max_grad_norm", "lr_scheduler", "ema_decay"),
    *("seed", "eval_seed", "evaluate_with", "monitor", "guards"),
)
"""Arguments of `VARGRPO` that change no gradient at given weights, prompts and noise; the noise is seeded by the command."""


def deciding_options(
    model: Namespace, described: Mapping[str, Mapping[str, Any]] | None, prompts: Sequence[Prompt]
) -> dict[str, str]:
    """What the gradients depend on besides weights and the command's own options: JSON by dotted name.

    Args:
        model: the arguments of `VARGRPO`, as parsed.
        described: the variants, by name; None for the stages of the configuration.
        prompts: those of training, whose contents count and not their file's name.
    """
    arguments = {name: value for name, value in vars(model).items() if name not in WITHOUT_EFFECT}
    variants = {} if described is None else {f"variant {name!r}": changes for name, changes in described.items()}
    lines = [json.dumps(prompt_line(prompt), sort_keys=True, default=str) for prompt in prompts]
    found = {f"model.{name}": _json(value) for name, value in arguments.items()}
    found |= {name: _json(changes) for name, changes in variants.items()}
    return found | {"training prompts": f"{len(prompts)} with the digest {digest(lines)[:8]}"}


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_plain)


def _plain(value: Any) -> Any:
    """A parsed value that JSON does not know: a namespace as a mapping, anything else as its text."""
    return value.as_dict() if isinstance(value, Namespace) else str(value)
